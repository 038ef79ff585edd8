"""The key of the account that pays, from a file: 64 hexadecimal digits, or a keystore (Web3 Secret Storage).

Invariant: a key never stands in an error, a log line or a command's arguments; a key file is open to its owner alone;
making one never replaces another.
"""

import os
import re
import secrets
from pathlib import Path
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

_MAX_BYTES: Final = 64 * 1024
_HEX_KEY: Final = re.compile(r"(0x)?[0-9a-fA-F]{64}")


class KeyFileError(Exception):
    """A key file that cannot be used. The message names the file and holds nothing of it."""

    exit_code = 2


def open_account(path: Path, passphrase: Path | None) -> LocalAccount:
    """`passphrase` is a file too, for a keystore. Raises KeyFileError."""
    text = _read_private(path)
    if not text.startswith("{"):
        if not _HEX_KEY.fullmatch(text):
            raise KeyFileError(f"{path} is neither a key (64 hexadecimal digits) nor a keystore")
        key: bytes = bytes.fromhex(text.removeprefix("0x"))
    elif passphrase is None:
        raise KeyFileError(f"{path} is a keystore: name the file with its passphrase")
    else:
        try:
            key = bytes(Account.decrypt(text, _read_private(passphrase)))
        except (ValueError, TypeError, KeyError, NotImplementedError):
            raise KeyFileError(f"{path} does not open with the passphrase in {passphrase}") from None
    try:
        account: LocalAccount = Account.from_key(key)
    except Exception:  # whatever it is, it might quote the key
        raise KeyFileError(f"{path} holds no usable key") from None
    return account


def make_key(path: Path) -> None:
    """A new random key in a new file. Raises KeyFileError when there is a file already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already and is left as it is") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_private(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise KeyFileError(f"{path} is open to other accounts: chmod 600 {path}")
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise KeyFileError(f"{path} is too large for a key")
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not text") from None
