"""The first run of a hub: keys, crew, operator token, a first stream and a first invite.

Invariant: every step may be repeated; a hub that died in the middle of its first run finishes it at the next start.
What is secret is returned once, to be printed, and kept only as a hash.
"""

from dataclasses import dataclass
from uuid import uuid4

from api.directory import Directory, Role
from api.newcomers import invite_friend, new_stream_key
from hub.clock import now_us
from hub.keystore import KeyStore
from hub.rotation import take_up
from hub.settings import Settings
from ledger.application import Ledger
from ledger.services import crew, streams
from ledger.services.budgets import set_tariff

FIRST_STREAM = "main"


@dataclass(frozen=True, slots=True)
class FirstRun:
    """What to tell the operator; the secrets are None when an earlier run showed them."""

    stream_slug: str
    operator_token: str | None = None
    stream_key: str | None = None
    invite_code: str | None = None
    friend_token: str | None = None
    creator_token: str | None = None


def first_run(settings: Settings, ledger: Ledger, directory: Directory) -> FirstRun:
    """Make what is missing. Raises KeyStoreError, ledger.application.Unavailable."""
    folder = settings.data_dir / "keys"
    KeyStore.open(folder)  # makes those that are missing
    at_us = now_us()
    crew.found_crew(
        ledger,
        name=settings.crew_name,
        unit=settings.unit,
        epoch_length_s=settings.epoch_length_s,
        at_us=at_us,
    )
    take_up(ledger, folder, at_us=at_us)
    if streams.load_stream(ledger, FIRST_STREAM) is not None:
        return FirstRun(FIRST_STREAM)
    owner_id = uuid4()
    stream_key = new_stream_key(FIRST_STREAM)
    creator_token = directory.create_token(Role.CREATOR, owner_id, FIRST_STREAM, at_us=at_us)
    operator_token = directory.create_token(Role.OPERATOR, None, "first run", at_us=at_us)
    friend = invite_friend(ledger, directory, "first friend", at_us=at_us)
    # Last: its presence says that the first run is complete.
    stream_id = streams.register_stream(
        ledger, slug=FIRST_STREAM, owner_id=owner_id, stream_key=stream_key, at_us=at_us
    )
    set_tariff(ledger, stream_id, at_us=at_us)
    return FirstRun(FIRST_STREAM, operator_token, stream_key, friend.code, friend.token, creator_token)
