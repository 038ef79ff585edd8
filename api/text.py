"""Kinds of text and numbers that the API takes, bounded.

Invariant: what passes here can be stored in Postgres, shown in a page and put into a log line.
"""

from typing import Annotated

from fastapi import Path
from pydantic import Field

from ledger.ids import SLUG
from ledger.money import MAX_AMOUNT_MICRO

# No control characters: Postgres refuses NUL, and the others have no business in a name.
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["Ada"])]
Reference = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$", examples=["bank-2026-0042"])
]
Slug = Annotated[str, Field(pattern=f"^{SLUG}$", examples=["main"])]
SlugPath = Annotated[str, Path(pattern=f"^{SLUG}$", examples=["main"])]
# Into the log, which cannot forget: a word, not a story.
Reason = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[\x20-\x7e]+$", examples=["wrong bytes"])
]
AmountMicro = Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT_MICRO, examples=[5_000_000])]
Port = Annotated[int, Field(strict=True, ge=1, le=65_535)]
Count = Annotated[int, Field(strict=True, ge=0, le=(1 << 53) - 1)]
