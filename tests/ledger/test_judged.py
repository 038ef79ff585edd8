"""Verdicts in columns: what goes in comes out, one way to write it, and nothing that does not fit together."""

from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.event_codec import UnknownEventError, decode, encode
from ledger.events import SegmentsServed, SegmentsServedV1
from ledger.judged import Judged, pack
from ledger.verdict import CAPS, VERDICTS, Cap, Verdict

ids = st.integers(0, 3).map(lambda n: UUID(int=n + 2**100))
networks = st.sampled_from([b"", b"one network.....", b"another network."])
verdicts = st.builds(
    Judged,
    st.sampled_from([v.value for v in Verdict]),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**64 - 1),
    st.sampled_from([c.value for c in Cap]),
)
receipts = st.lists(
    st.tuples(st.binary(min_size=205, max_size=205), ids, networks, verdicts), min_size=1, max_size=12
)
COMMON: dict[str, Any] = {
    "originator_id": UUID(int=1),
    "originator_version": 1,
    "at_us": 5,
    "node_id": UUID(int=2),
    "batch_header": b"h" * 147,
    "first_sequence": 3,
    "network_limit": 2,
}


def test_every_verdict_and_cap_has_its_code() -> None:
    assert set(VERDICTS) == set(Verdict)
    assert set(CAPS) == set(Cap)


@given(receipts)
def test_the_columns_say_of_each_receipt_what_was_put_in(
    drawn: list[tuple[bytes, UUID, bytes, Judged]],
) -> None:
    data, sessions, nets, judged = zip(*drawn, strict=True)
    old = SegmentsServedV1(
        **COMMON,
        indices=tuple(range(len(drawn))),
        receipts=b"".join(data),
        sessions=sessions,
        networks=nets,
        judged=judged,
    )
    event = decode(encode(old))
    assert isinstance(event, SegmentsServed)
    assert event == decode(encode(event))
    assert (event.session_ids, event.viewer_networks, event.judged) == (sessions, nets, judged)
    assert (tuple(event.indices), event.receipts) == (old.indices, old.receipts)
    assert len(event.sessions) == 16 * len(set(sessions))
    assert len(event.networks) == len(set(nets))
    assert all(getattr(event, name) == value for name, value in COMMON.items())


def test_a_verdict_that_no_hub_ever_gave_is_not_read() -> None:
    good = {
        "indices": (0,),
        "receipts": bytes(205),
        "sessions": (UUID(int=1),),
        "networks": (b"",),
        "judged": (Judged("accepted", 1, 1),),
    }
    for change in (
        {"judged": (Judged("generous", 1, 1),)},
        {"judged": (Judged("accepted", -1, 1),)},
        {"indices": (256,)},
        {"receipts": bytes(204)},
        {"sessions": ()},
    ):
        with pytest.raises(UnknownEventError):
            decode(encode(SegmentsServedV1(**COMMON, **{**good, **change})))  # type: ignore[arg-type]


def test_columns_that_do_not_fit_together_are_no_event() -> None:
    event = SegmentsServed(
        **COMMON,
        receipts=bytes(410),
        **pack([0, 1], [UUID(int=1), UUID(int=2)], [b"", b""], [Judged("duplicate")] * 2),
    )
    for change in (
        {"receipts": bytes(205)},
        {"indices": b"\x00"},
        {"sessions": event.sessions[:16]},
        {"sessions": event.sessions[:-1]},
        {"session_of": b"\x00\x02"},
        {"networks": ()},
        {"verdicts": b"\x00\x0a"},
        {"caps": b"\x00\x06"},
        {"units": bytes(3)},
        {"credited_bytes": bytes(8)},
    ):
        with pytest.raises(ValueError, match="do not fit"):
            msgspec.structs.replace(event, **change)
        fields = msgspec.msgpack.decode(encode(event)) | change
        with pytest.raises(UnknownEventError):
            decode(msgspec.msgpack.encode(fields))
