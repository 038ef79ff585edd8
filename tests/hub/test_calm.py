"""A node that serves nobody and has not changed is seldom checked; whoever is watched through is, as often as ever."""

import random
from dataclasses import replace
from uuid import UUID

import pytest

from hub.calm import REST_S_MAX, REST_S_MIN, Calm, Carrier
from hub.viewings import SEEN_S
from projections.schema import HISTORY_LENGTH

ATTIC = Carrier(UUID(int=1), "http://attic:8100", 1_000, HISTORY_LENGTH)
CELLAR = Carrier(UUID(int=2), "http://cellar:8100", 700, 99)


class Scene:
    def __init__(self) -> None:
        self.now_s, self.viewers = 0.0, 0
        self.calm = Calm(random.Random(1), lambda: self.now_s)
        self.calm.checked("main", [ATTIC, CELLAR])

    def can_wait(self, *carriers: Carrier, slug: str = "main") -> bool:
        return self.calm.can_wait(slug, list(carriers), lambda: self.viewers)


def test_a_stream_that_nobody_watches_waits_for_a_while_and_not_for_ever() -> None:
    scene = Scene()
    scene.viewers = 1  # the check itself
    scene.now_s = SEEN_S - 1
    assert scene.can_wait(ATTIC, CELLAR)
    scene.viewers, scene.now_s = 0, REST_S_MIN - 1
    assert scene.can_wait(CELLAR, ATTIC)
    scene.now_s = REST_S_MAX
    assert not scene.can_wait(ATTIC, CELLAR)
    assert not scene.can_wait(ATTIC, CELLAR, slug="other")


@pytest.mark.parametrize(("ago_s", "viewers"), [(1.0, 2), (SEEN_S + 1, 1)])
def test_a_viewer_ends_the_rest_at_once(ago_s: float, viewers: int) -> None:
    scene = Scene()
    scene.now_s, scene.viewers = ago_s, viewers
    assert not scene.can_wait(ATTIC, CELLAR)


@pytest.mark.parametrize(
    "carriers",
    [
        [ATTIC],
        [ATTIC, CELLAR, replace(CELLAR, node_id=UUID(int=3))],
        [ATTIC, replace(CELLAR, url="http://cellar:8101")],
        [ATTIC, replace(CELLAR, health=699)],
        [ATTIC, replace(CELLAR, health=701)],
    ],
)
def test_what_has_changed_is_checked_at_once(carriers: list[Carrier]) -> None:
    assert not Scene().can_wait(*carriers)


def test_a_node_that_was_not_checked_often_yet_is_at_every_turn() -> None:
    scene = Scene()
    new = replace(ATTIC, checks=HISTORY_LENGTH - 1)
    scene.calm.checked("main", [new])
    assert not scene.can_wait(new)


def test_a_broadcast_begins_with_a_check() -> None:
    scene = Scene()
    scene.calm.forget_but({"other"})
    assert not scene.can_wait(ATTIC, CELLAR)
