"""Bank accounts: IBAN (ISO 13616), BIC (ISO 9362), and names in the characters that banks exchange.

Invariant: what `BankAccount.parse` returns has an IBAN whose check digits hold (ISO 7064 mod 97-10), a well-formed BIC
or none, and a name of 1 to 70 characters of the SEPA set (EPC217-08).
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Self

_IBAN: Final = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}")
_BIC: Final = re.compile(r"[A-Z]{6}[A-Z0-9]{2}([A-Z0-9]{3})?")
_NAME_CHARS: Final = 70
_NOT_SEPA: Final = re.compile(r"[^a-zA-Z0-9/\-?:().,'+ ]")
_SPELLED: Final = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "&": "+"}
)
NO_NAME: Final = "NOTPROVIDED"


class BankAccountError(ValueError):
    """A text that is no bank account. The message holds none of it."""


@dataclass(frozen=True, slots=True)
class BankAccount:
    iban: str
    bic: str  # empty when not given
    name: str

    def __repr__(self) -> str:
        return "BankAccount(***)"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`IBAN`, `IBAN;NAME` or `IBAN;BIC;NAME`. Raises BankAccountError."""
        parts = [part.strip() for part in text.split(";")]
        if len(parts) > 3:
            raise BankAccountError("a bank account is written IBAN, IBAN;NAME or IBAN;BIC;NAME")
        iban, bic, name = parts[0], parts[1] if len(parts) == 3 else "", parts[-1] if len(parts) > 1 else ""
        return cls(
            check_iban(iban), check_bic(bic) if bic else "", sepa_text(name)[:_NAME_CHARS].strip() or NO_NAME
        )


def check_iban(text: str) -> str:
    """Without spaces, in capitals. Raises BankAccountError."""
    iban = text.replace(" ", "").upper()
    if not iban.isascii() or not _IBAN.fullmatch(iban):
        raise BankAccountError("this is not an IBAN")
    digits = "".join(str(int(c, 36)) for c in iban[4:] + iban[:4])
    if int(digits) % 97 != 1:
        raise BankAccountError("the check digits of the IBAN do not hold")
    return iban


def check_bic(text: str) -> str:
    bic = text.replace(" ", "").upper()
    if not bic.isascii() or not _BIC.fullmatch(bic):
        raise BankAccountError("this is not a BIC")
    return bic


def sepa_text(text: str) -> str:
    """In the SEPA characters: accents dropped, what has no equivalent becomes a full stop; no slash first."""
    plain = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(_NOT_SEPA.sub(".", plain).split()).lstrip("/").replace("//", "/")
