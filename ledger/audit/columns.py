"""The verdicts of a whole event at once: the rules of `ledger.judge` on columns of numbers.

Invariant: `judge` says yes only where `ledger.judge.judge_signed`, receipt by receipt, would give exactly the recorded
verdicts, and then has credited the same units. It says no, and has changed nothing, to everything else, right or wrong:
what it does not decide is for the judge of single receipts. A property test holds the two together.

Receipts of one group (a viewer network, or a session without one) see each other's credits, those of different groups
do not: the first of each group are judged in columns, what follows in a group is judged one by one.
"""

from collections.abc import Callable
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
_BELOW: Final = np.array([(1 << n) - 1 for n in range(65)], np.uint64)  # [n]: the lowest n bits
_STARTS: Final = np.arange(_WIDTH, dtype=np.int64) * 64
_NEXT: Final = np.arange(_MARGIN, dtype=np.int64)
_ONE: Final = np.uint64(1)
_LIMIT: Final = 1 << 62

Bools = npt.NDArray[np.bool_]
JudgeRest = Callable[[list[int]], bool]
"""Judges these receipts of the event one by one, in order. Credits them when all verdicts are the recorded ones."""


class Columns(NamedTuple):
    """What the dues and the signatures need of an event whose verdicts hold: one value a receipt."""

    tickets: npt.NDArray[np.int64]  # ledger.audit.credits
    viewer_keys: npt.NDArray[np.uint8]
    verdicts: npt.NDArray[np.uint8]
    claimed: Words  # relative to the first cell of the ticket


def judge(
    credits: Credits,
    broadcast: Broadcast,
    event: SegmentsServed,
    node: NodeFacts,
    settings: Settings,
    judge_rest: JudgeRest,
) -> Columns | None:
    """The event's columns when every verdict is the recorded one; None, and nothing changed, when that is not known."""
    first, published = broadcast.manifest.first, len(broadcast.sums) - 1
    if event.first_sequence != first or not 0 <= first < _LIMIT or broadcast.sums[-1] >= _LIMIT:
        return None
    data = np.frombuffer(event.receipts, RECEIPT)
    base = data["base"].astype(np.uint64)
    if (data["version"] != VERSION).any() or (base > MAX_BASE_SEQUENCE).any():
        return None
    places = _places(credits, event.receipts)
    if places is None:
        return None
    tickets = credits.tickets.take(places, axis=1)
    if not tickets[c.IN_COLUMNS].all() or not _of_this_event(credits, broadcast, event, tickets):
        return None
    recorded = np.frombuffer(event.verdicts, np.uint8)
    start = tickets[c.CHUNK] * CELL_BITS  # of the ticket's first cell, in segments of the broadcast

    claimed, reaches = _claimed(data, base.astype(np.int64) - first - start)
    allowed = _between(tickets[c.LO], np.minimum(tickets[c.HI], published - start))
    outside = ~reaches | (claimed & ~allowed).any(axis=1)
    old_0, old_1 = credits.sessions.rows[tickets[c.SESSION_0]], credits.sessions.rows[tickets[c.SESSION_1]]
    fresh = claimed & ~np.concatenate([old_0, old_1], axis=1)
    net_0, net_1 = credits.networks.rows[tickets[c.NETWORK_0]], credits.networks.rows[tickets[c.NETWORK_1]]
    levels = [
        np.concatenate([net_0[:, at : at + CELL_WORDS], net_1[:, at : at + CELL_WORDS]], axis=1)
        for at in range(0, c.LEVELS * CELL_WORDS, CELL_WORDS)
    ]
    limit = settings.prefix_sessions_max
    payable = fresh & ~levels[limit - 1] if limit <= c.LEVELS else fresh.copy()
    payable[outside] = 0
    units = np.bitwise_count(payable).sum(axis=1, dtype=np.int64)

    # Sums of sizes; what is from long ago is not in memory.
    tail, gone = broadcast.sums.tail, broadcast.sums.start
    low, high = start + tickets[c.LO], np.minimum(start + tickets[c.HI], published)
    if gone and (low < gone).any():
        return None
    covered = tail[high - gone] - tail[np.minimum(low, high) - gone]
    sizes = _sizes(payable, start - gone, tail)

    # What depends on the receipt before it, or on what only one receipt in a thousand needs, is judged by itself.
    single = (covered > tickets[c.BUDGET]) | (recorded == _MISMATCH) | ~claimed.any(axis=1)
    groups, firsts = np.unique(tickets[c.GROUP], return_index=True)
    if len(groups) < len(places):
        later = np.ones(len(places), np.bool_)
        later[firsts] = False
        single |= later

    duplicate, capped = ~fresh.any(axis=1), _caps(credits, event, node, settings, tickets, units)
    verdicts = np.select(
        [
            tickets[c.NODE] != credits.numbers.get(b"k" + node.public_key, -1),
            recorded == _BAD_SIGNATURE,  # verified to be one, with all other signatures
            event.at_us // 1_000_000 > tickets[c.SETTLE_S],
            outside,
            duplicate,
            capped > 0,
        ],
        [_WRONG_NODE, _BAD_SIGNATURE, _LATE, _OUT_OF_RANGE, _DUPLICATE, _CAPPED],
        _ACCEPTED,
    )
    accepted = verdicts == _ACCEPTED
    same = (
        (verdicts == recorded)
        & (np.where(verdicts == _CAPPED, capped, 0) == np.frombuffer(event.caps, np.uint8))
        & (np.where(accepted, units, 0) == np.frombuffer(event.units, ">u2"))
        & (np.where(accepted, sizes, 0).astype(np.uint64) == np.frombuffer(event.credited_bytes, ">u8"))
    )
    paid = accepted & ~single
    carried = levels[0] & payable
    crowded = limit > c.LEVELS and (
        (carried & levels[1])[paid].any() or credits.crowded(tickets[c.NETWORK_0 : c.NETWORK_1 + 1])
    )
    if not (same | single).all() or crowded:
        return None

    # Credited; taken back when one of the rest is not as recorded.
    rows = payable if paid.all() else payable[paid]
    carried = carried if paid.all() else carried[paid]
    mine = tickets if paid.all() else tickets[:, paid]
    for half, field in enumerate((c.SESSION_0, c.SESSION_1)):
        words = slice(half * CELL_WORDS, (half + 1) * CELL_WORDS)
        credits.sessions.merge(mine[field], rows[:, words])
        both = np.concatenate([rows[:, words], carried[:, words]], axis=1)
        both[mine[c.NETWORK_0 + half] == 0] = 0
        credits.networks.merge(mine[c.NETWORK_0 + half], both)
    if single.any() and not judge_rest(np.flatnonzero(single).tolist()):
        credits.sessions.rows[tickets[c.SESSION_0]], credits.sessions.rows[tickets[c.SESSION_1]] = (
            old_0,
            old_1,
        )
        credits.networks.rows[tickets[c.NETWORK_0]], credits.networks.rows[tickets[c.NETWORK_1]] = (
            net_0,
            net_1,
        )
        return None
    return Columns(tickets, credits.viewer_keys[places], recorded, claimed)


def newest(columns: Columns, which: Bools, first: int) -> Ints:
    """Sequence of the newest segment that each of `which` claims; each claims one at least."""
    words = columns.claimed[which]
    last = _WIDTH - 1 - (words[:, ::-1] != 0).argmax(axis=1)
    word = words[np.arange(len(words)), last]
    for by in (1, 2, 4, 8, 16, 32):  # every bit below the highest
        word = word | word >> np.uint64(by)
    bits = np.bitwise_count(word).astype(np.int64)
    sequences: Ints = first + columns.tickets[c.CHUNK][which] * CELL_BITS + last * 64 + bits - 1
    return sequences


def _places(credits: Credits, receipts: bytes) -> Ints | None:
    """The columns of the receipts' tickets; None when one was never issued."""
    slots = credits.slots
    hashes = [receipts[i : i + 32] for i in range(1, len(receipts), SIGNED_BYTES)]
    try:
        return np.array([slots[h] for h in hashes], np.int64)
    except KeyError:
        found = [credits.load(h) for h in hashes]
        return None if None in found else np.array(found, np.int64)


def _of_this_event(
    credits: Credits, broadcast: Broadcast, event: SegmentsServed, tickets: npt.NDArray[np.int64]
) -> bool:
    """Whether the tickets are of the broadcast, and sessions and networks are theirs."""
    number = credits.numbers.get
    sessions = [
        number(b"s" + event.sessions[i : i + SESSION_BYTES], -1)
        for i in range(0, len(event.sessions), SESSION_BYTES)
    ]
    networks = [number(b"w" + network, -1) for network in event.networks]
    return bool(
        (tickets[c.BROADCAST] == number(b"b" + broadcast.key, -1)).all()
        and (tickets[c.SESSION] == np.array(sessions)[_index(event.session_of)]).all()
        and (tickets[c.NETWORK] == np.array(networks)[_index(event.network_of)]).all()
    )


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
    spread = np.zeros((count, _SPREAD), np.uint64)
    places = (np.arange(count) * _SPREAD + (at >> 6))[:, None] + _NEXT
    flat = spread.reshape(-1)
    flat[places] = bits << shift
    flat[places + 1] |= (bits >> _ONE) >> (np.uint64(63) - shift)
    cells = spread[:, _MARGIN : _MARGIN + _WIDTH]
    beyond = spread[:, :_MARGIN].any(axis=1) | spread[:, _MARGIN + _WIDTH :].any(axis=1)
    return cells, near & ~beyond


def _between(low: Ints, high: Ints) -> Words:
    """The bits [low, high) of two cells."""
    below_high = _BELOW[np.clip(high[:, None] - _STARTS, 0, 64)]
    words: Words = below_high & ~_BELOW[np.clip(low[:, None] - _STARTS, 0, 64)]
    return words


def _sizes(payable: Words, start: Ints, sums: Ints) -> Ints:
    """Bytes of the segments in each row: the sums at the ends of its runs, less those at their beginnings."""
    count = len(payable)
    edges = np.zeros((count, _WIDTH + 1), np.uint64)
    edges[:, :_WIDTH] = payable ^ (payable << _ONE)
    edges[:, 1:] ^= payable >> np.uint64(63)
    row, word = np.nonzero(edges)  # few of them are not empty
    bits = np.unpackbits(
        edges[row, word].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
    )
    which, bit = np.nonzero(bits)
    row = row[which]
    at = sums[start[row] + word[which] * 64 + bit]
    sizes = np.zeros(count, np.int64)
    np.add.at(sizes, row[1::2], at[1::2] - at[::2])  # beginnings and ends take turns, row by row
    return sizes


def _caps(
    credits: Credits,
    event: SegmentsServed,
    node: NodeFacts,
    settings: Settings,
    tickets: npt.NDArray[np.int64],
    units: Ints,
) -> npt.NDArray[np.int64]:
    """The cap that holds a receipt back, were it accepted otherwise; 0 where none does. Byte budgets are not here."""
    suspended = node.suspended & ((tickets[c.PLAIN] == 1) | (not settings.suspended_signed_paid))
    own = tickets[c.ACCOUNT] == credits.numbers.get(b"f" + node.friend_id.bytes, -2)
    near = [bool(w) and settings.same_network_forbidden == 1 and w in node.networks for w in event.networks]
    return np.select(
        [suspended, own, np.array(near)[_index(event.network_of)], units == 0],
        [CAP_CODES[cap] for cap in ("node_suspended", "own_account", "same_network", "prefix_sessions")],
        0,
    )
