"""Crew: a creator and the friends who carry the stream; its numbers and its public keys.

Invariant: the settings in force are those of the last SettingsChanged; a retired key stays known forever, so that what
it signed stays verifiable.
"""

from dataclasses import dataclass
from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.events import CrewFounded, Event, KeyAdded, KeyRetired, SettingsChanged
from ledger.keys import PUBLIC_KEY_BYTES, key_id
from ledger.settings import Settings

PURPOSES = ("ticket", "log")


@dataclass(frozen=True, slots=True)
class CrewKey:
    purpose: str
    key_id: bytes
    public_key: bytes
    retired: bool


class Crew(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.name = ""
        self.unit = ""
        self.genesis_us = 0
        self.epoch_length_s = 0
        self.settings = Settings()
        self.keys: dict[tuple[str, bytes], CrewKey] = {}

    def found(self, *, name: str, unit: str, epoch_length_s: int, at_us: int) -> None:
        """Epoch 0 begins at the whole multiple of the epoch length at or before `at_us`."""
        if self.version:
            raise DomainError("the crew is founded already")
        if not 1 <= epoch_length_s <= 7 * 86_400:
            raise DomainError("an epoch lasts from 1 second to 7 days")
        length_us = epoch_length_s * 1_000_000
        self.trigger(
            CrewFounded,
            at_us=at_us,
            name=name,
            unit=unit,
            genesis_us=at_us - at_us % length_us,
            epoch_length_s=epoch_length_s,
        )
        self.trigger(SettingsChanged, at_us=at_us, settings=Settings().as_dict())

    def change_settings(self, changes: dict[str, int], *, at_us: int) -> None:
        changed = self.settings.changed(changes)
        if changed != self.settings:
            self.trigger(SettingsChanged, at_us=at_us, settings=changed.as_dict())

    def add_key(self, purpose: str, public_key: bytes, *, at_us: int) -> None:
        """Adding a known key again changes nothing; a retired one does not come back."""
        if purpose not in PURPOSES or len(public_key) != PUBLIC_KEY_BYTES:
            raise DomainError(f"a key has 32 bytes and a purpose among {', '.join(PURPOSES)}")
        known = self.keys.get((purpose, key_id(public_key)))
        if known is not None and known.retired:
            raise DomainError("this key was retired")
        if known is None:
            self.trigger(
                KeyAdded, at_us=at_us, purpose=purpose, key_id=key_id(public_key), public_key=public_key
            )

    def retire_key(self, purpose: str, retired_id: bytes, *, at_us: int) -> None:
        key = self.keys.get((purpose, retired_id))
        if key is None:
            raise DomainError("no such key")
        if not key.retired:
            self.trigger(KeyRetired, at_us=at_us, purpose=purpose, key_id=retired_id)

    def public_keys(self, purpose: str) -> list[CrewKey]:
        return [k for k in self.keys.values() if k.purpose == purpose]

    def apply(self, event: Event) -> None:
        match event:
            case CrewFounded():
                self.name, self.unit = event.name, event.unit
                self.genesis_us, self.epoch_length_s = event.genesis_us, event.epoch_length_s
            case SettingsChanged():
                self.settings = Settings.recorded(event.settings)
            case KeyAdded():
                self.keys[event.purpose, event.key_id] = CrewKey(
                    event.purpose, event.key_id, event.public_key, retired=False
                )
            case KeyRetired():
                key = self.keys[event.purpose, event.key_id]
                self.keys[event.purpose, event.key_id] = CrewKey(
                    key.purpose, key.key_id, key.public_key, retired=True
                )
            case _:
                raise TypeError(type(event).__name__)
