"""The log's side of its witnesses: asks each for a cosignature before a checkpoint is published.

Invariants: a witness that is away, slow or wrong about itself never holds up the log; one that has seen a longer or
another log under this name does: then nothing is published, for it would be a fork. Only cosignatures that verify under
the witness's own key are taken.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx2
import structlog

from ledger import merkle
from ledger.checkpoint import Checkpoint, parse_decimal
from ledger.note import MAX_NOTE_BYTES, Note, NoteError
from ledger.tlog.cosignature import WitnessKey
from ledger.tlog.witness import encode_request

TIMEOUT_S: Final = 3.0  # for all that is asked of one witness at one time
MAX_WITNESSES: Final = 16

log = structlog.get_logger()


class ForkSeen(Exception):
    """A witness has cosigned another log under this name, or a later one. The message is for people."""


@dataclass(frozen=True, slots=True)
class WitnessAddress:
    """Where a witness is asked, and the key that its answers must verify under. Text form: `vkey@URL`."""

    key: WitnessKey
    url: str  # the submission prefix

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NoteError."""
        vkey, at, url = text.strip().partition("@")
        if not at or not url.startswith(("http://", "https://")):
            raise NoteError("a witness is given as its verifier key, an @ and its URL")
        return cls(WitnessKey.parse(vkey), url.rstrip("/"))

    @classmethod
    def parse_all(cls, text: str) -> tuple[Self, ...]:
        """Several, with commas between them. Raises NoteError."""
        found = tuple(cls.parse(part) for part in text.split(",") if part.strip())
        if len(found) > MAX_WITNESSES:
            raise NoteError(f"a log has at most {MAX_WITNESSES} witnesses")
        return found


class Cosigners:
    """Used by one thread at a time."""

    def __init__(self, witnesses: Sequence[WitnessAddress]) -> None:
        self._witnesses = tuple(witnesses)
        self._sizes: dict[WitnessAddress, int] = {}  # what each has cosigned last
        self._tls = httpx2.create_ssl_context()

    def cosign(
        self, note: bytes, subtree: merkle.Subtree, *, alive: Callable[[], None] = lambda: None
    ) -> bytes:
        """The note with the cosignatures that it lacked and that could be had. Raises ForkSeen.

        `subtree` gives the hashes of the tree that the note is the checkpoint of; `alive` is called before each
        witness is asked.
        """
        checkpoint = Checkpoint.parse_text(Note.parse(note).text)
        for witness in self._witnesses:
            if witness.key.cosigned_s(Note.parse(note)) is not None:
                continue
            alive()
            try:
                note += _run(self._ask_in_time(witness, note, checkpoint, subtree))
            except TimeoutError:
                log.warning("witness.away", witness=witness.key.name, error=f"no answer within {TIMEOUT_S} s")
            except (httpx2.HTTPError, ValueError) as e:
                log.warning("witness.away", witness=witness.key.name, error=str(e) or type(e).__name__)
        return note

    async def _ask_in_time(
        self, witness: WitnessAddress, note: bytes, checkpoint: Checkpoint, subtree: merkle.Subtree
    ) -> bytes:
        # The client's own limit is for each time it waits: one byte a second would never be too slow for it.
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx2.AsyncClient(timeout=TIMEOUT_S, verify=self._tls) as client,
        ):
            return await self._ask(client, witness, note, checkpoint, subtree)

    async def _ask(
        self,
        client: httpx2.AsyncClient,
        witness: WitnessAddress,
        note: bytes,
        checkpoint: Checkpoint,
        subtree: merkle.Subtree,
    ) -> bytes:
        """The signature lines to add. Raises ForkSeen, httpx2.HTTPError, ValueError."""
        old = min(self._sizes.get(witness, 0), checkpoint.size)
        proof = encode_request(old, merkle.consistency_proof(subtree, old, checkpoint.size), note)
        status, body = await _post(client, witness, proof)
        if status == 409:
            known = parse_decimal(body.decode("ascii").strip())
            if known > checkpoint.size or known == old:
                raise ForkSeen(
                    f"the witness {witness.key.name} has seen another log under this name, with {known} events "
                    f"where this one has {checkpoint.size}; was an old backup restored?"
                )
            old = known
            proof = encode_request(old, merkle.consistency_proof(subtree, old, checkpoint.size), note)
            status, body = await _post(client, witness, proof)
        if status == 422:
            raise ForkSeen(
                f"the witness {witness.key.name} has seen another log under this name: its {old} events are not the "
                f"first of this one; was an old backup restored?"
            )
        if status != 200:
            raise ValueError(f"the witness answered {status}")
        self._sizes[witness] = checkpoint.size
        kept = [line for line in body.decode().splitlines() if _is_by(witness.key, line)]
        lines = "".join(f"{line}\n" for line in kept).encode()
        if witness.key.cosigned_s(Note.parse(note + lines)) is None:
            raise NoteError("the answer holds no cosignature of the witness's key")
        return lines


def _run(asking: Coroutine[Any, Any, bytes]) -> bytes:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asking)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()  # `asyncio.run` would wait here for a name that is still being looked up


async def _post(client: httpx2.AsyncClient, witness: WitnessAddress, request: bytes) -> tuple[int, bytes]:
    async with client.stream("POST", f"{witness.url}/add-checkpoint", content=request) as response:
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > MAX_NOTE_BYTES:
                raise ValueError("the answer is too long")
        return response.status_code, bytes(data)


def _is_by(key: WitnessKey, line: str) -> bool:
    """Whether this is a signature line of that key; it need not hold. Raises NoteError when it is no such line."""
    (signature,) = Note.parse(f"\n\n{line}\n".encode()).signatures
    return signature.name == key.name and signature.key_hash == key.key_hash
