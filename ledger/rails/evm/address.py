"""Addresses of accounts on the chain.

Invariant: an address that passes is spelled with its checksum (EIP-55), so a mistyped one does not pass, and is not
the zero address, from which nothing comes back.
"""

import re
from typing import Final

from eth_utils.address import to_checksum_address

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")


class AddressError(ValueError):
    """A text that is no address. The message holds none of it."""


def check_address(text: str) -> str:
    """The address as it is. Raises AddressError."""
    if not _ADDRESS.fullmatch(text):
        raise AddressError("this is not an address on a chain (0x and 40 hexadecimal digits)")
    if to_checksum_address(text) != text:
        raise AddressError(
            "the checksum of the address does not hold (EIP-55): copy it as the wallet shows it"
        )
    if not int(text, 16):
        raise AddressError("the zero address is nobody's")
    return text
