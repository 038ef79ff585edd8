"""What the friend endpoints answer."""

from uuid import UUID

from pydantic import BaseModel, Field


class FriendOut(BaseModel):
    friend_id: UUID
    name: str
    node_ids: list[UUID]


class Friends(BaseModel):
    friends: list[FriendOut]


class FriendToken(BaseModel):
    friend_id: UUID
    friend_token: str = Field(description="for the friend's own page and statement; shown once")
    friend_url: str
