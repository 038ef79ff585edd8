"""What the receipt endpoints answer."""

from pydantic import BaseModel, Field


class VerdictOut(BaseModel):
    index: int = Field(description="of the receipt in its batch")
    verdict: str = Field(description="docs/protocol.md lists them")
    units: int = Field(description="segments newly credited")
    bytes: int = Field(description="the published sizes of those")
    cap: str = Field(description="why it was capped, when it was")
    position: int = Field(description="where the verdict stands in the log")


class Verdicts(BaseModel):
    verdicts: list[VerdictOut]
