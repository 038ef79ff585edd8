"""The verdicts of an event, or of several of one broadcast, at once: the rules of `ledger.judge` on columns of numbers.

Invariant: `judge` says yes only where `ledger.judge.judge_signed`, receipt by receipt, would give exactly the recorded
verdicts, and then has credited the same units. It says no, and has changed nothing, to everything else, right or wrong:
what it does not decide is for the judge of single receipts. A property test holds the two together.

Receipts of one group (a viewer network, or a session without one) see each other's credits, those of different groups
do not: the first of each group are judged in columns, what follows in a group is judged one by one.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ledger.audit import credits as c
from ledger.audit.credits import CELL_BITS, CELL_WORDS, Credits, Words
from ledger.audit.facts import Broadcast, Ints
from ledger.events import SegmentsServed
from ledger.judge import NodeFacts
from ledger.judged import CAP_CODES, SESSION_BYTES, VERDICT_CODES
from ledger.receipt import BITMAP_BITS, MAX_BASE_SEQUENCE, SIGNED_BYTES, VERSION
from ledger.settings import Settings
from ledger.verdict import Verdict

# ledger.receipt: version, ticket hash, counter, base sequence, bitmap, digest; then the signature. Big-endian.
RECEIPT: Final = np.dtype(
    [
        ("version", "u1"),
        ("ticket", "V32"),
        ("counter", ">u4"),
        ("base", ">u8"),
        ("bitmap", "V64"),
        ("digest", "V32"),
        ("signature", "V64"),
    ]
)
assert RECEIPT.itemsize == SIGNED_BYTES
_ACCEPTED, _CAPPED = VERDICT_CODES[Verdict.ACCEPTED.value], VERDICT_CODES[Verdict.CAPPED.value]
_WRONG_NODE, _BAD_SIGNATURE = (
    VERDICT_CODES[Verdict.WRONG_NODE.value],
    VERDICT_CODES[Verdict.BAD_SIGNATURE.value],
)
_LATE, _OUT_OF_RANGE = VERDICT_CODES[Verdict.LATE.value], VERDICT_CODES[Verdict.OUT_OF_RANGE.value]
_MISMATCH, _DUPLICATE = VERDICT_CODES[Verdict.DIGEST_MISMATCH.value], VERDICT_CODES[Verdict.DUPLICATE.value]
# Words of a receipt's bitmap as it is laid over the two cells of its ticket, with room for one bitmap on either side.
_MARGIN: Final = BITMAP_BITS // 64
_WIDTH: Final = 2 * CELL_WORDS
_SPREAD: Final = _MARGIN + _WIDTH + _MARGIN + 1
_NEXT: Final = np.arange(_MARGIN + 1)
TOGETHER: Final = 2_048  # receipts that are judged at once
_ROWS: Final = np.arange(TOGETHER + 256)
_SMEAR: Final = tuple(np.uint64(by) for by in (1, 2, 4, 8, 16, 32))
_ONE: Final = np.uint64(1)
_LIMIT: Final = 1 << 62

Bools = npt.NDArray[np.bool_]


class Served(NamedTuple):
    position: int
    event: SegmentsServed
    node: NodeFacts


JudgeRest = Callable[[list[list[int]]], bool]
"""Judges these receipts of each event one by one, in order. Credits them when all verdicts are the recorded ones."""


class Columns(NamedTuple):
    """What the dues and the signatures need of events whose verdicts hold: one value a receipt."""

    tickets: npt.NDArray[np.int64]  # ledger.audit.credits
    viewer_keys: npt.NDArray[np.uint8]
    verdicts: npt.NDArray[np.uint8]
    newest: Ints  # sequence of the last segment that is claimed, where one is


def judge(
    credits: Credits,
    broadcast: Broadcast,
    served: Sequence[Served],
    settings: Settings,
    judge_rest: JudgeRest,
) -> Columns | None:
    """The columns of all events when every verdict is the recorded one; None, and nothing changed, when that is not
    known. `settings` are in force for all, and no node changed in between."""
    first, published = broadcast.manifest.first, len(broadcast.sums) - 1
    events = [s.event for s in served]
    if any(e.first_sequence != first for e in events):
        return None
    if not 0 <= first < _LIMIT or broadcast.sums[-1] >= _LIMIT:
        return None
    data = np.frombuffer(_joined(events, "receipts"), RECEIPT)
    base = data["base"].astype(np.uint64)
    if (data["version"] != VERSION).any() or base.max() > MAX_BASE_SEQUENCE:
        return None
    count = len(data)
    places = credits.places(np.ascontiguousarray(data["ticket"]).view(np.uint64).reshape(count, c.HASH_WORDS))
    if places is None:
        return None
    tickets = credits.tickets.take(places, axis=1)
    counts = [len(e.indices) for e in events]
    of = np.repeat(np.arange(len(events)), counts)  # which event each receipt is of
    if (
        not tickets[c.IN_COLUMNS].all()
        or (tickets[c.ISSUED] >= np.array([s.position for s in served])[of]).any()
    ):
        return None
    if not _of_these_events(credits, broadcast, events, of, places, tickets):
        return None
    recorded = np.frombuffer(_joined(events, "verdicts"), np.uint8)
    start = tickets[c.CHUNK] * CELL_BITS  # of the ticket's first cell, in segments of the broadcast

    claimed, reaches = _claimed(data, base.astype(np.int64) - first - start)
    nothing, lowest, end = _ends(claimed)
    outside = (lowest < tickets[c.LO]) | (end > np.minimum(tickets[c.HI], published - start)) | ~reaches
    at = [tickets[field] for field in (c.SESSION_0, c.SESSION_1, c.NETWORK_0, c.NETWORK_1)]
    have = [credits.sessions.rows[at[0]], credits.sessions.rows[at[1]]]
    network = [credits.networks.rows[at[2]], credits.networks.rows[at[3]]]
    fresh = claimed & ~np.concatenate(have, axis=1)
    levels = [
        np.concatenate([cell[:, word : word + CELL_WORDS] for cell in network], axis=1)
        for word in range(0, c.LEVELS * CELL_WORDS, CELL_WORDS)
    ]
    limit = settings.prefix_sessions_max
    payable = fresh & ~levels[limit - 1] if limit <= c.LEVELS else fresh.copy()
    if outside.any():
        payable[outside] = 0
    units = np.bitwise_count(payable).sum(axis=1, dtype=np.int64)

    # Sums of sizes; what is from long ago is not in memory.
    tail, gone = broadcast.sums.tail, broadcast.sums.start
    low, high = start + tickets[c.LO], np.minimum(start + tickets[c.HI], published)
    if gone and (low < gone).any():
        return None
    covered = tail[high - gone] - tail[np.minimum(low, high) - gone]
    sizes = _sizes(payable, units, start - gone, tail)

    # What depends on the receipt before it, or on what only one receipt in a thousand needs, is judged by itself.
    single = (covered > tickets[c.BUDGET]) | (recorded == _MISMATCH) | nothing
    if len(set(tickets[c.GROUP].tolist())) < count:
        later = np.ones(count, np.bool_)
        later[np.unique(tickets[c.GROUP], return_index=True)[1]] = False
        single |= later

    verdicts = np.full(count, _ACCEPTED, np.uint8)
    capped = np.concatenate(
        [
            _caps(credits, s.node, settings, tickets[:, end - n : end], units[end - n : end])
            for s, n, end in zip(served, counts, np.cumsum(counts).tolist(), strict=True)
        ]
    )
    now_s = np.array([e.at_us // 1_000_000 for e in events])[of]
    nodes = np.array([credits.numbers.get(b"k" + s.node.public_key, -1) for s in served])[of]
    for code, where in (  # the last that applies
        (_CAPPED, capped > 0),
        (_DUPLICATE, ~fresh.any(axis=1)),
        (_OUT_OF_RANGE, outside),
        (_LATE, now_s > tickets[c.SETTLE_S]),
        (_BAD_SIGNATURE, recorded == _BAD_SIGNATURE),  # verified to be one, with all other signatures
        (_WRONG_NODE, tickets[c.NODE] != nodes),
    ):
        verdicts[where] = code
    accepted = verdicts == _ACCEPTED
    same = (
        (verdicts == recorded)
        & (np.where(verdicts == _CAPPED, capped, 0) == np.frombuffer(_joined(events, "caps"), np.uint8))
        & (units * accepted == np.frombuffer(_joined(events, "units"), ">u2"))
        & ((sizes * accepted).astype(np.uint64) == np.frombuffer(_joined(events, "credited_bytes"), ">u8"))
    )
    rest = bool(single.any())
    if not (same | single if rest else same).all():
        return None

    # Credited; taken back when one of the rest is not as recorded.
    if rest or not accepted.all():
        payable[~accepted | single] = 0
    carried = levels[0] & payable
    if limit > c.LEVELS and ((carried & levels[1]).any() or credits.crowded(tickets[c.NETWORK_0 :][:2])):
        return None
    for half in (0, 1):
        words = slice(half * CELL_WORDS, (half + 1) * CELL_WORDS)
        if payable[:, words].any():
            both = np.concatenate([payable[:, words], carried[:, words]], axis=1)
            which = slice(None) if not rest else ~single  # others of a group have the same cells
            credits.sessions.put(at[half][which], (have[half] | payable[:, words])[which])
            credits.networks.put(at[2 + half][which], (network[half] | both)[which])
    if rest and not judge_rest(_by_event(single, of, counts)):
        for half in (0, 1):
            credits.sessions.put(at[half], have[half])
            credits.networks.put(at[2 + half], network[half])
        return None
    return Columns(tickets, credits.viewer_keys[places], recorded, first + start + end - 1)


def _ends(words: Words) -> tuple[Bools, Ints, Ints]:
    """For each row whether it is empty, and if it is not its lowest bit and the one after its highest."""
    some = words != 0
    rows = _ROWS[: len(words)]
    first, last = some.argmax(axis=1), _WIDTH - 1 - some[:, ::-1].argmax(axis=1)
    low, high = words[rows, first], words[rows, last]
    lowest = first * 64 + np.bitwise_count((low & -low) - _ONE)
    for by in _SMEAR:  # every bit below the highest
        high = high | high >> by
    return high == 0, lowest, last * 64 + np.bitwise_count(high)


def _joined(events: Sequence[SegmentsServed], column: str) -> bytes:
    return b"".join([getattr(e, column) for e in events]) if len(events) > 1 else getattr(events[0], column)


def _by_event(which: Bools, of: Ints, counts: list[int]) -> list[list[int]]:
    """For each event which of its receipts."""
    starts = np.cumsum([0, *counts])
    return [(np.flatnonzero(which & (of == n)) - starts[n]).tolist() for n in range(len(counts))]


def _of_these_events(
    credits: Credits,
    broadcast: Broadcast,
    events: Sequence[SegmentsServed],
    of: Ints,
    places: Ints,
    tickets: Ints,
) -> bool:
    """Whether the tickets are of the broadcast, and sessions and networks are theirs."""
    if (tickets[c.BROADCAST] != credits.numbers.get(b"b" + broadcast.key, -1)).any():
        return False
    known = np.frombuffer(_joined(events, "sessions"), np.uint64).reshape(-1, c.ID_WORDS)
    before = np.cumsum([0] + [len(e.sessions) // SESSION_BYTES for e in events])
    if (known[_index(_joined(events, "session_of")) + before[of]] != credits.session_ids[places]).any():
        return False
    networks = [network for e in events for network in e.networks]
    which = _index(_joined(events, "network_of")) + np.cumsum([0] + [len(e.networks) for e in events])[of]
    if all(len(n) == c.NETWORK_BYTES for n in networks) and tickets[c.NETWORK_WHOLE].all():
        known = np.frombuffer(b"".join(networks), np.uint64).reshape(-1, c.ID_WORDS)
        return bool((known[which] == credits.network_ids[places]).all())
    numbers = [credits.numbers.get(b"w" + network, -1) for network in networks]
    return bool((tickets[c.NETWORK] == np.array(numbers)[which]).all())


def _index(column: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(column, np.uint8)


def _claimed(data: npt.NDArray[np.void], offset: Ints) -> tuple[Words, Bools]:
    """Each bitmap, which begins `offset` segments after the first cell of its ticket, laid over its two cells;
    and whether nothing of it lies beyond them."""
    count = len(data)
    bits = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(count, _MARGIN)
    near = (offset > -BITMAP_BITS) & (offset < 2 * CELL_BITS)
    at = np.where(near, offset, 0) + BITMAP_BITS
    shift = (at & 63).astype(np.uint64)[:, None]
    wide = np.zeros((count, _MARGIN + 1), np.uint64)
    wide[:, :_MARGIN] = bits << shift
    wide[:, 1:] |= (bits >> _ONE) >> (np.uint64(63) - shift)
    spread = np.zeros((count, _SPREAD), np.uint64)
    spread.reshape(-1)[(_ROWS[:count] * _SPREAD + (at >> 6))[:, None] + _NEXT] = wide
    beyond = spread[:, :_MARGIN].any(axis=1) | spread[:, _MARGIN + _WIDTH :].any(axis=1)
    return spread[:, _MARGIN : _MARGIN + _WIDTH], near & ~beyond


def _sizes(payable: Words, units: Ints, start: Ints, sums: Ints) -> Ints:
    """Bytes of the segments in each row, most of which are one run."""
    nothing, low, end = _ends(payable)
    low[nothing] = end[nothing] = 0
    start = np.where(nothing, 0, start)
    sizes: Ints = sums[start + end] - sums[start + low]
    for i in np.flatnonzero(end - low != units).tolist():  # with gaps
        bits = np.unpackbits(payable[i].astype("<u8").view(np.uint8), bitorder="little").astype(np.int8)
        edges = np.diff(bits, prepend=0, append=0)
        at = start[i]
        sizes[i] = sums[at + np.flatnonzero(edges < 0)].sum() - sums[at + np.flatnonzero(edges > 0)].sum()
    return sizes


def _caps(
    credits: Credits, node: NodeFacts, settings: Settings, tickets: Ints, units: Ints
) -> npt.NDArray[np.uint8]:
    """The cap that holds a receipt back, were it accepted otherwise; 0 where none does. Byte budgets are not here."""
    caps = np.zeros(len(units), np.uint8)
    caps[units == 0] = CAP_CODES["prefix_sessions"]
    if settings.same_network_forbidden:
        for network in node.networks - {b""}:
            caps[tickets[c.NETWORK] == credits.numbers.get(b"w" + network, -1)] = CAP_CODES["same_network"]
    friend = credits.numbers.get(b"f" + node.friend_id.bytes, -2)
    caps[tickets[c.ACCOUNT] == friend] = CAP_CODES["own_account"]
    if node.suspended:
        kept_out = (tickets[c.PLAIN] == 1) if settings.suspended_signed_paid else np.full(len(units), True)
        caps[kept_out] = CAP_CODES["node_suspended"]
    return caps
