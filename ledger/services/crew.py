"""Commands on the crew: founding, settings, keys.

Invariant: founding and adding a key may be repeated; the second time changes nothing.
"""

from ledger.aggregates.crew import Crew
from ledger.application import Ledger, NotFound
from ledger.ids import CREW_ID
from ledger.services.retry import until_saved
from ledger.settings import Settings


def found_crew(ledger: Ledger, *, name: str, unit: str, epoch_length_s: int, at_us: int) -> Crew:
    """The crew, founded now if there is none. An existing crew keeps its own epoch length and unit."""

    def attempt() -> Crew:
        crew = ledger.load_or_new(Crew, CREW_ID)
        if not crew.version:
            crew.found(name=name, unit=unit, epoch_length_s=epoch_length_s, at_us=at_us)
            ledger.save(crew)
        return crew

    return until_saved(attempt)


def crew(ledger: Ledger) -> Crew:
    """Raises NotFound before the crew is founded."""
    return ledger.load(Crew, CREW_ID)


def settings(ledger: Ledger) -> Settings:
    """The numbers in force; the defaults before the crew is founded."""
    try:
        return crew(ledger).settings
    except NotFound:
        return Settings()


def change_settings(ledger: Ledger, changes: dict[str, int], *, at_us: int) -> Settings:
    """Raises DomainError naming the setting that is unknown or out of range."""

    def attempt() -> Settings:
        found = crew(ledger)
        found.change_settings(changes, at_us=at_us)
        ledger.save(found)
        return found.settings

    return until_saved(attempt)


def add_key(ledger: Ledger, purpose: str, public_key: bytes, *, at_us: int) -> None:
    """Publish a public key (purpose "ticket" or "log") in the log."""

    def attempt() -> None:
        found = crew(ledger)
        found.add_key(purpose, public_key, at_us=at_us)
        ledger.save(found)

    until_saved(attempt)


def retire_key(ledger: Ledger, purpose: str, key_id: bytes, *, at_us: int) -> None:
    def attempt() -> None:
        found = crew(ledger)
        found.retire_key(purpose, key_id, at_us=at_us)
        ledger.save(found)

    until_saved(attempt)
