"""Spot checks are not paid: what a session was served that a probe turns out to have been, and nothing else."""

from contextlib import closing

import pytest
from crew_life import HOUR_US, Life, make_id

from ledger.application import Ledger
from ledger.audit.helpers import Helpers
from ledger.audit.replay import Replay
from ledger.audit.report import AuditFailure
from ledger.audit.store import Store
from ledger.event_codec import decode, encode
from ledger.events import EpochSettled, NodeProbed, NodeProbedV1, SettlementLine
from ledger.receipt import to_bitmap
from ledger.services import nodes
from ledger.services.explain import Earned, explain
from ledger.services.explain_log import LedgerLog, explain_recorded
from ledger.ticket import SignedTicket


@pytest.fixture
def life(ledger: Ledger) -> Life:
    made = Life(ledger)
    made.found()
    made.join("anna")
    made.tick(3600 - made.now_us // 1_000_000 % 3600)  # an epoch begins
    made.go_live(40)
    return made


def see(life: Life, ticket: SignedTicket, polled: int = 10, at_hub: int = 1) -> None:
    """The hub saw the player poll the first segments, and fetch some of them at itself."""
    life.desk.observe(
        ticket.ticket.session_id,
        base_sequence=0,
        polled=to_bitmap(0, range(polled)),
        fetched_at_hub=to_bitmap(0, range(at_hub)),
        at_us=life.tick(),
    )


def claim(life: Life, ticket: SignedTicket, count: int) -> None:
    """The node claims to have served the first segments to its plain player."""
    assert life.batch("anna", life.receipt(ticket, "anna", list(range(count)))) == ["accepted"]


def name(life: Life, ticket: SignedTicket) -> None:
    """The probe is over."""
    nodes.change_node(
        life.ledger,
        life.nodes["anna"][1].id,
        lambda n: n.probed(
            outcome="ok",
            sequence=0,
            latency_us=1,
            segment_bytes=1_000_000,
            session_id=ticket.ticket.session_id,
            at_us=life.tick(),
        ),
    )


def settled(life: Life) -> list[tuple[str, int]]:
    """What the epoch that ends now pays for, by the hub and, line for line, by the audit."""
    life.tick(3600 - life.now_us // 1_000_000 % 3600)
    before = len(lines(life))
    life.settle()
    audit(life)
    return [(x.reason, x.units) for x in lines(life)[before:] if x.reason != "floor_share"]


def lines(life: Life) -> list[SettlementLine]:
    events = [r.event for r in life.ledger.read(0, 50_000)]
    return [line for e in events if isinstance(e, EpochSettled) for line in e.lines]


def audit(life: Life) -> None:
    with closing(Store()) as store, closing(Helpers(1)) as helpers:
        replay = Replay(store, helpers, verify_signatures=False)
        for recorded in life.ledger.read(0, 50_000):
            replay.apply(recorded.position, recorded.data)
        replay.finish()


def test_a_spot_check_is_not_paid_and_the_player_beside_it_is(life: Life) -> None:
    player, probe = life.ticket("anna"), life.ticket("anna")
    for ticket in (player, probe):
        see(life, ticket)
        claim(life, ticket, 6)
    name(life, probe)
    assert settled(life) == [("plain_delivery", 6)]


def test_with_nobody_watching_spot_checks_cost_the_creator_nothing(life: Life) -> None:
    for _ in range(5):
        probe = life.ticket("anna")
        see(life, probe)
        claim(life, probe, 8)
        name(life, probe)
    before = life.index.settled_to
    assert settled(life) == []
    assert lines(life) == []
    assert life.index.settled_to > before  # they are behind us, and wait for nothing


def test_what_the_hub_saw_of_its_own_probe_lets_no_other_claim_through(life: Life) -> None:
    """Ten segments may be claimed for each that the hub saw fetched: those of a probe do not count."""
    unseen, probe = life.ticket("anna"), life.ticket("anna")
    claim(life, unseen, 9)
    see(life, probe, polled=30, at_hub=9)
    name(life, probe)
    assert settled(life) == []


def test_viewers_who_sign_are_paid_whatever_is_probed_beside_them(life: Life) -> None:
    signing, probe = life.ticket("anna", "vera"), life.ticket("anna")
    see(life, probe)
    claim(life, probe, 6)
    name(life, probe)
    assert life.batch("anna", life.receipt(signing, "vera", [0, 1, 2])) == ["accepted"]
    assert settled(life) == [("delivery", 3)]


def test_a_claim_that_comes_after_the_probe_was_named_is_not_paid_either(life: Life) -> None:
    probe = life.ticket("anna")
    name(life, probe)
    assert settled(life) == []
    see(life, probe)
    claim(life, probe, 6)
    assert settled(life) == []


def test_a_probe_that_is_named_too_late_or_never_is_paid_as_the_player_it_seemed_to_be(life: Life) -> None:
    late, never = life.ticket("anna"), life.ticket("anna")
    for ticket in (late, never):
        see(life, ticket)
        claim(life, ticket, 6)
    life.tick(3600 - life.now_us // 1_000_000 % 3600)
    name(life, late)  # in the next epoch: the settlement does not read that far
    before = len(lines(life))
    life.settle()
    audit(life)
    paid = [(x.reason, x.units) for x in lines(life)[before:] if x.reason != "floor_share"]
    assert paid == [("plain_delivery", 12)]
    assert settled(life) == []


def test_a_claim_that_waits_is_dropped_when_its_player_turns_out_a_probe(life: Life) -> None:
    probe = life.ticket("anna")
    claim(life, probe, 5)  # nothing was seen of it yet: it waits
    assert settled(life) == []
    name(life, probe)
    player = life.ticket("anna")
    see(life, player, polled=10, at_hub=1)
    claim(life, player, 7)
    assert settled(life) == [("plain_delivery_late", 7)]


def test_a_session_that_goes_on_after_it_was_named_is_paid_for_what_it_gets_then(life: Life) -> None:
    """The hub says that a probe is over. A ticket that it issues after that is for somebody who watches."""
    first = life.ticket("anna")
    see(life, first)
    claim(life, first, 4)
    name(life, first)
    session = f"session {life.serial - 1}"
    assert make_id(session) == first.ticket.session_id
    second = life.ticket("anna", session=session)
    see(life, second, polled=20, at_hub=2)
    assert life.batch("anna", life.receipt(second, "anna", list(range(10, 16)))) == ["accepted"]
    assert settled(life) == [("plain_delivery", 6)]


@pytest.mark.parametrize("session", ["signing", "unknown"])
def test_an_audit_does_not_accept_that_a_viewer_who_signs_was_a_probe(life: Life, session: str) -> None:
    ticket = life.ticket("anna", "vera")
    assert life.batch("anna", life.receipt(ticket, "vera", [0, 1, 2])) == ["accepted"]
    name(life, ticket if session == "signing" else life.ticket("anna"))
    if session == "signing":
        with pytest.raises(AuditFailure, match="a viewer who signs"):
            audit(life)
        return
    entries = [r.data for r in life.ledger.read(0, 50_000)]
    event = decode(entries[-1])
    assert isinstance(event, NodeProbed)
    fields = {f: getattr(event, f) for f in event.__struct_fields__} | {"session_id": make_id("nobody")}
    with closing(Store()) as store, closing(Helpers(1)) as helpers:
        replay = Replay(store, helpers, verify_signatures=False)
        for position, data in enumerate(entries[:-1]):
            replay.apply(position, data)
        with pytest.raises(AuditFailure, match="never opened"):
            replay.apply(len(entries) - 1, encode(NodeProbed(**fields)))


def test_an_explanation_says_what_was_a_spot_check(life: Life) -> None:
    player, probe = life.ticket("anna"), life.ticket("anna")
    for ticket, count in ((player, 6), (probe, 8)):
        see(life, ticket)
        claim(life, ticket, count)
    name(life, probe)
    settled(life)
    log = LedgerLog(life.ledger)
    position = next(
        r.position
        for r in life.ledger.read(0, 50_000)
        if isinstance(r.event, EpochSettled) and any(x.reason == "plain_delivery" for x in r.event.lines)
    )
    event = life.ledger.read(position, 1)[0].event
    assert isinstance(event, EpochSettled)
    line = next(n for n, x in enumerate(event.lines) if x.reason == "plain_delivery")
    whole, quick = explain(log, position, line), explain_recorded(life.ledger, position, line)
    assert whole == quick
    assert isinstance(whole, Earned)
    assert whole.receipts is not None
    assert whole.spot_checks is not None
    assert sum(r.units for r in whole.receipts) == 6
    assert sum(r.units for r in whole.spot_checks) == 8


def test_a_probe_of_before_names_no_session() -> None:
    old = NodeProbedV1(
        originator_id=make_id("node"),
        originator_version=2,
        at_us=HOUR_US,
        outcome="ok",
        sequence=7,
        latency_us=8,
        segment_bytes=9,
    )
    new = decode(encode(old))
    assert isinstance(new, NodeProbed)
    assert (new.outcome, new.sequence, new.latency_us, new.segment_bytes) == ("ok", 7, 8, 9)
    assert new.session_id is None
