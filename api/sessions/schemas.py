"""What the session endpoint takes and answers."""

from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from api.text import Slug


class OpenSession(BaseModel):
    stream: Slug
    viewer_key: Annotated[
        str, Field(pattern=r"^[0-9a-f]{64}$", description="Ed25519 public key of the viewer, hex")
    ]


class SessionOpened(BaseModel):
    session_id: UUID
    playlist_url: str
