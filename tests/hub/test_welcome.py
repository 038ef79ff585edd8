"""What `streamrp2p up` says at each start: where everything is, and how to come by what was shown once."""

import re
import typing
from dataclasses import asdict
from pathlib import Path

import click
import pytest
import typer

from hub.bootstrap import FirstRun
from hub.cli import app
from hub.commands.up import welcome
from hub.settings import Settings
from hub.setup import set_up

SECRETS = ("operator_token", "stream_key", "invite_code", "friend_token", "creator_token")
PAGES = ("/watch/main", "/live/main.m3u8", "/creator", "/friend", "/operator", "/audit", "/log")


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, database_url=database_url, public_url="https://hub.example")


def command(words: list[str]) -> click.Command:
    """The command that these words name. Raises AssertionError when there is none."""
    group: typing.Any = typer.main.get_command(app)
    context = click.Context(group)
    while isinstance(group, click.Group) and words:
        found = group.get_command(context, words.pop(0))
        assert found is not None
        group = found
    return typing.cast(click.Command, group)


def test_the_first_start_shows_each_secret_and_each_page(settings: Settings) -> None:
    first = set_up(settings)
    said = welcome(settings, asdict(first))
    assert all(getattr(first, name) in said for name in SECRETS)
    assert all(f"https://hub.example{page}" in said for page in PAGES)


def test_a_start_after_one_that_died_before_it_showed_them_says_how_to_make_new_ones(
    settings: Settings,
) -> None:
    lost = set_up(settings)  # committed, and then nobody printed it
    told = set_up(settings)
    assert told == FirstRun(lost.stream_slug)
    said = welcome(settings, asdict(told))
    assert not any(getattr(lost, name) in said for name in SECRETS)
    assert all(f"https://hub.example{page}" in said for page in PAGES)
    for remade in ("stream key main", "stream token main", "token create", "invite NAME"):
        assert f"streamrp2p {remade}" in said


def test_every_command_it_names_exists(settings: Settings) -> None:
    told = asdict(FirstRun("main"))
    said = welcome(settings, told) + welcome(settings, told | dict.fromkeys(SECRETS, "x"))
    named = re.findall(r"streamrp2p ([a-z]+(?: [a-z]+)?)", said)
    assert len(named) > 5
    for words in named:
        command(words.split())


def test_a_start_that_fails_still_shows_what_the_first_run_made(settings: Settings) -> None:
    told = asdict(FirstRun("main"))
    assert welcome(settings, told, complete=False) == ""
    said = welcome(settings, told | dict.fromkeys(SECRETS, "secret"), complete=False)
    assert "NOT up" in said
    assert said.count("secret") >= len(SECRETS)
