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

from ledger import claims as told
from ledger.audit import tickets as t
from ledger.audit.cells import CELL_BITS
from ledger.audit.credits import Credits
from ledger.audit.facts import Broadcast, Ints, Published
from ledger.audit.fresh import Claims, Sums, find
from ledger.events import SegmentsServed
from ledger.judge import NodeFacts
from ledger.judged import CAP_CODES, VERDICT_CODES
from ledger.runs import Bools, Words
from ledger.served import Delivery
from ledger.settings import Settings
from ledger.verdict import Verdict

_ACCEPTED, _CAPPED = VERDICT_CODES[Verdict.ACCEPTED.value], VERDICT_CODES[Verdict.CAPPED.value]
_WRONG_NODE, _BAD_SIGNATURE = (
    VERDICT_CODES[Verdict.WRONG_NODE.value],
    VERDICT_CODES[Verdict.BAD_SIGNATURE.value],
)
_LATE, _OUT_OF_RANGE = VERDICT_CODES[Verdict.LATE.value], VERDICT_CODES[Verdict.OUT_OF_RANGE.value]
_MISMATCH, _DUPLICATE = VERDICT_CODES[Verdict.DIGEST_MISMATCH.value], VERDICT_CODES[Verdict.DUPLICATE.value]
TOGETHER: Final = 4_096  # receipts that are judged at once
_LIMIT: Final = 1 << 62


class Served(NamedTuple):
    position: int
    event: SegmentsServed | Delivery
    node: NodeFacts
    claims: Ints  # ledger.claims, without columns where it does not go into numbers
    then: Published  # of its broadcast


JudgeRest = Callable[[list[list[int]]], bool]
"""Judges these receipts of each event one by one, in order. Credits them when all verdicts are the recorded ones."""


class Columns(NamedTuple):
    """What the dues and the signatures need of events whose verdicts hold: one value a receipt."""

    places: Ints  # of the tickets
    tickets: Ints  # ledger.audit.tickets
    claims: Ints  # ledger.claims
    of: Ints  # which event the receipt is of


def judge(
    credits: Credits,
    broadcast: Broadcast,
    served: Sequence[Served],
    settings: Settings,
    judge_rest: JudgeRest,
) -> Columns | None:
    """The columns of all events when every verdict is the recorded one; None, and nothing changed, when that is not
    known. `settings` are in force for all, and no node changed in between; the broadcast may have gone on."""
    first = broadcast.manifest.first
    if any(s.event.first_sequence != first for s in served):
        return None
    if not 0 <= first < _LIMIT or broadcast.sums[-1] >= _LIMIT:
        return None
    parts = [s.claims for s in served]
    if not all(part.shape[1] for part in parts):
        return None
    claims = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    found_tickets = credits.tickets.find(claims[told.HASH : told.NETWORKS + 1])
    if found_tickets is None:
        return None
    places, tickets = found_tickets
    counts = [part.shape[1] for part in parts]
    of = np.repeat(np.arange(len(parts)), counts)
    published = np.array([s.then.segments for s in served]).take(of)
    numbers = credits.tickets.numbers
    if (tickets[t.BROADCAST] != numbers.get(b"b" + broadcast.key, -2)).any() or (
        tickets[t.ISSUED] >= np.array([s.position for s in served]).take(of)
    ).any():
        return None
    recorded = claims[told.VERDICT]
    start = tickets[t.CHUNK] * CELL_BITS  # of the ticket's first cell, in segments of the broadcast
    nothing = claims[told.END] == 0
    lowest, end = claims[told.LOW] - (start + first), claims[told.END] - (start + first)
    outside = (lowest < tickets[t.LO]) | (end > np.minimum(tickets[t.HI], published - start))

    sums = Sums(broadcast.sums.tail, broadcast.sums.start)
    low, high = start + tickets[t.LO], np.minimum(start + tickets[t.HI], published)
    if sums.gone and (low < sums.gone).any():
        return None
    covered = sums.between(np.minimum(low, high), high)

    # What depends on the receipt before it, or on what only one receipt in a thousand needs, is judged by itself.
    single = (covered > tickets[t.BUDGET]) | (recorded == _MISMATCH) | nothing
    single |= ~credits.tickets.firsts(tickets[t.GROUP])

    def bitmaps(which: Ints) -> tuple[Words, Ints]:
        data = np.frombuffer(b"".join([s.event.receipts for s in served]), told.RECEIPT)[which]
        words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(len(which), -1)
        return words.astype(np.uint64), data["base"].astype(np.int64) - (start + first)[which]

    asked = Claims(lowest, end, claims[told.RUN] == 1, bitmaps)
    found = find(credits, tickets, asked, ~(outside | single), settings.prefix_sessions_max, sums)
    if found is None:
        return None

    verdicts = np.full(len(of), _ACCEPTED)
    capped = _caps(credits, [s.node for s in served], of, settings, tickets, found.units)
    now_s = np.array([s.event.at_us // 1_000_000 for s in served]).take(of)
    nodes = np.array([numbers.get(b"k" + s.node.public_key, -1) for s in served]).take(of)
    for code, where in (  # the last that applies
        (_CAPPED, capped > 0),
        (_DUPLICATE, ~found.any),
        (_OUT_OF_RANGE, outside),
        (_LATE, now_s > tickets[t.SETTLE_S]),
        (_BAD_SIGNATURE, recorded == _BAD_SIGNATURE),  # verified to be one, with all other signatures
        (_WRONG_NODE, tickets[t.NODE] != nodes),
    ):
        verdicts[where] = code
    accepted = verdicts == _ACCEPTED
    same = (
        (verdicts == recorded)
        & (capped * (verdicts == _CAPPED) == claims[told.CAP])
        & (found.units * accepted == claims[told.UNITS])
        & (found.sizes * accepted == claims[told.SIZE])
    )
    if not (same | single).all():
        return None

    # Credited; taken back when one of the rest is not as recorded.
    undo = found.credit(accepted & ~single)
    if single.any() and not judge_rest(_by_event(single, of, counts)):
        undo()
        return None
    return Columns(places, tickets, claims, of)


def _by_event(which: Bools, of: Ints, counts: list[int]) -> list[list[int]]:
    """For each event which of its receipts."""
    starts = np.cumsum([0, *counts])
    return [(np.flatnonzero(which & (of == n)) - starts[n]).tolist() for n in range(len(counts))]


def _caps(
    credits: Credits, nodes: list[NodeFacts], of: Ints, settings: Settings, tickets: Ints, units: Ints
) -> Ints:
    """The cap that holds a receipt back, were it accepted otherwise; 0 where none does. Byte budgets are not here."""
    numbers = credits.tickets.numbers
    caps: Ints = (units == 0) * CAP_CODES["prefix_sessions"]
    if settings.same_network_forbidden:
        own = [[numbers.get(b"w" + network, -1) for network in node.networks - {b""}] for node in nodes]
        for n in range(max(map(len, own))):
            networks = np.array([known[n] if n < len(known) else -1 for known in own])
            caps[tickets[t.NETWORK] == networks.take(of)] = CAP_CODES["same_network"]
    friends = np.array([numbers.get(b"f" + node.friend_id.bytes, -2) for node in nodes])
    caps[tickets[t.ACCOUNT] == friends.take(of)] = CAP_CODES["own_account"]
    suspended = [node.suspended for node in nodes]
    if any(suspended):
        kept_out = np.array(suspended).take(of)
        if settings.suspended_signed_paid:
            kept_out = kept_out & (tickets[t.PLAIN] == 1)
        caps[kept_out] = CAP_CODES["node_suspended"]
    return caps
