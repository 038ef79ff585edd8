"""The rails that this hub can pay by, opened as its settings say.

Invariant: a payout is run only on the rail it was planned for. Its name in the log says where the money goes: `csv`,
`pain.001`, or the chain and token (`eip155:1/erc20:0x...`), so settings that point elsewhere now do not pay it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from hub.clock import now_us
from hub.settings import PREFIX, Settings, SettingsError
from ledger.aggregates.payout import Payout
from ledger.rails import Rail, pain001
from ledger.rails.bank_account import BankAccount
from ledger.rails.csv_file import CsvRail
from ledger.rails.given import EVM_JOURNAL
from ledger.rails.pain001 import Pain001Rail
from ledger.services import payment_files
from ledger.store.database import connect

if TYPE_CHECKING:
    from ledger.rails.evm.asset import Asset
    from ledger.rails.evm.rail import EvmRail

# The evm modules are imported where they are used: they are slow to load, and an extra (`streamrp2p[hub,evm]`).
EVM: Final = "evm"
_EVM_PREFIX: Final = "eip155:"
# As typed; in the log a chain's rail has the name of what it pays with.
NAMES: Final = ("csv", pain001.NAME, EVM)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan must know of a rail."""

    name: str  # as recorded
    quantum_micro: int  # the smallest amount it can pay


def terms(settings: Settings, typed: str, unit: str) -> Terms:
    """Of a rail in NAMES. `unit` is the crew's unit of account. Raises SettingsError."""
    if typed == EVM:
        asset = evm_asset(settings)
        if asset.unit != unit:
            raise SettingsError(
                f"{PREFIX}EVM_UNIT={asset.unit} says what one whole coin or token stands for; "
                f"the crew's unit of account is {unit}"
            )
        return Terms(asset.name, asset.quantum_micro)
    return Terms(typed, pain001.CENT_MICRO if typed == pain001.NAME else 1)


def is_evm(payout: Payout) -> bool:
    return payout.rail.startswith(_EVM_PREFIX)


@contextmanager
def open_rail(
    settings: Settings,
    payout: Payout,
    *,
    debtor: BankAccount | None = None,
    from_nonce: int | None = None,
) -> Iterator[Rail]:
    """The rail that the payout was planned for. Raises SettingsError."""
    folder = payouts_folder(settings)
    if is_evm(payout):
        with open_evm(settings, from_nonce=from_nonce) as rail:
            yield rail
    elif payout.rail == pain001.NAME:
        yield Pain001Rail(folder, str(payout.id), debtor=debtor, created_us=now_us())
    elif payout.rail == "csv":
        yield CsvRail(_csv_path(settings, payout))
    else:
        raise SettingsError(
            f"payout {payout.id} is planned for {payout.rail!r}, which this hub does not have"
        )


@contextmanager
def open_evm(settings: Settings, *, from_nonce: int | None = None) -> Iterator["EvmRail"]:
    """Raises SettingsError, KeyFileError."""
    from ledger.rails.evm.fees import GWEI
    from ledger.rails.evm.key import open_account
    from ledger.rails.evm.node import HttpTransport, Node
    from ledger.rails.evm.rail import EvmRail

    asset = evm_asset(settings)
    account = open_account(evm_key_file(settings), settings.evm_passphrase_file)
    if settings.evm_rpc_url is None:
        raise _missing("EVM_RPC_URL")
    transport = HttpTransport(settings.evm_rpc_url.get_secret_value())
    try:
        yield EvmRail(
            evm_journal(settings),
            Node(transport),
            account,
            asset,
            fee_cap=settings.evm_fee_cap_gwei * GWEI,
            confirmations=settings.evm_confirmations,
            from_nonce=from_nonce,
        )
    finally:
        transport.close()


def evm_asset(settings: Settings) -> "Asset":
    """Raises SettingsError that names what is missing."""
    from ledger.rails.evm.address import AddressError, check_address
    from ledger.rails.evm.asset import COIN_DECIMALS, Asset

    if settings.evm_chain_id is None:
        raise _missing("EVM_CHAIN_ID")
    if settings.evm_unit is None:
        raise _missing("EVM_UNIT")
    try:
        token = None if settings.evm_token is None else check_address(settings.evm_token)
    except AddressError as error:
        raise SettingsError(f"{PREFIX}EVM_TOKEN: {error}") from error
    if token is None and settings.evm_decimals != COIN_DECIMALS:
        raise SettingsError(
            f"{PREFIX}EVM_DECIMALS={settings.evm_decimals} is a token's, and {PREFIX}EVM_TOKEN is not set: "
            f"a chain's own coin has {COIN_DECIMALS} decimals"
        )
    return Asset(settings.evm_chain_id, token, settings.evm_decimals, settings.evm_unit)


def estimated(rail: Rail, amounts_micro: Sequence[int]) -> dict[str, str | int] | None:
    """For the operator: what such a run would take from the account. None for a rail that costs nothing."""
    from ledger.rails.evm.asset import COIN_DECIMALS, decimal
    from ledger.rails.evm.rail import EvmRail

    if not isinstance(rail, EvmRail):
        return None
    found = rail.estimate(amounts_micro)
    return {
        "account": found.account,
        "pays": rail.name,
        "has": decimal(found.asset_balance, rail.asset.decimals),
        "to pay": decimal(found.asset_needed, rail.asset.decimals),
        "coins for fees": decimal(found.coin_balance, COIN_DECIMALS),
        "fees at most": decimal(found.fee_needed, COIN_DECIMALS),
        "one payment costs at most": decimal(found.fee_each, COIN_DECIMALS),
        "next nonce": found.next_nonce,
        "missing": found.shortfall or "nothing",
    }


def evm_key_file(settings: Settings) -> Path:
    return settings.evm_key_file or settings.data_dir / "keys" / "evm.key"


def make_evm_key(settings: Settings) -> str:
    """A new key in a new file; returns the address it stands for. Raises KeyFileError."""
    from ledger.rails.evm.key import make_key, open_account

    make_key(evm_key_file(settings))
    return str(open_account(evm_key_file(settings), None).address)


def check_destination(text: str) -> None:
    """What looks like an address on a chain must be one, with its checksum. Raises SettingsError."""
    if text[:2].lower() == "0x":
        from ledger.rails.evm.address import AddressError, check_address

        try:
            check_address(text)
        except AddressError as error:
            raise SettingsError(str(error)) from error


def evm_journal(settings: Settings) -> Path:
    """One for all payouts and accounts: it is what keeps a nonce from being used twice."""
    return payouts_folder(settings) / EVM_JOURNAL


def payouts_folder(settings: Settings) -> Path:
    return settings.data_dir / "payouts"


def check_files(settings: Settings) -> Path:
    """The folder of payment files. Raises OtherFilesError when it is not what this database was last paid with."""
    with connect(settings.resolved_database_url(), autocommit=True) as connection:
        payment_files.check(connection, payouts_folder(settings))
    return payouts_folder(settings)


def use_files(settings: Settings, *, accept: bool = False, dry_run: bool = False) -> Path:
    """The same, for whoever is about to write there: it is this folder that the database knows from now on."""
    if dry_run and accept:
        return payouts_folder(settings)
    if dry_run:
        return check_files(settings)
    with connect(settings.resolved_database_url(), autocommit=True) as connection:
        payment_files.use(connection, payouts_folder(settings), use_id=uuid4(), accept=accept)
    return payouts_folder(settings)


def files_of(settings: Settings, payout: Payout, rail: Rail) -> list[Path]:
    """Where the rail keeps what it was given; files for the bank may be none yet."""
    if isinstance(rail, Pain001Rail):
        return rail.files()
    return [evm_journal(settings) if is_evm(payout) else _csv_path(settings, payout)]


def _csv_path(settings: Settings, payout: Payout) -> Path:
    """One file a payout, so that it can be handed over as a whole."""
    return payouts_folder(settings) / f"{payout.id}.csv"


def _missing(name: str) -> SettingsError:
    return SettingsError(f"{PREFIX}{name} is not set: docs/operators.md, Paying on a chain")
