"""The verdicts of an event, or of several of one broadcast, at once: the rules of `ledger.judge` on columns of numbers.

Invariant: `judge` says yes only where `ledger.judge.judge_signed`, receipt by receipt, would give exactly the recorded
verdicts, and then has credited the same units. It says no, and has changed nothing, to everything else, right or wrong:
what it does not decide is for the judge of single receipts. A property test holds the two together.

Receipts of one group (a viewer network, or a session without one) see each other's credits, those of different groups
do not: the first of each group are credited in columns, then the second, and so on, as long as there are many. What
follows in a group is judged one by one.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from ledger import claims as told
from ledger.audit import tickets as t
from ledger.audit.credits import Credits
from ledger.audit.facts import Broadcast, Ints, Published
from ledger.audit.fresh import Claims, Sums, Undo, find
from ledger.audit.growth import grow
from ledger.events import SegmentsServed
from ledger.judge import NodeFacts
from ledger.judged import CAP_CODES, VERDICT_CODES
from ledger.runs import Bools, Words
from ledger.served import Delivery
from ledger.settings import Settings
from ledger.ticket import MAX_SEGMENTS
from ledger.verdict import Verdict

_ACCEPTED, _CAPPED = VERDICT_CODES[Verdict.ACCEPTED.value], VERDICT_CODES[Verdict.CAPPED.value]
_WRONG_NODE, _BAD_SIGNATURE = (
    VERDICT_CODES[Verdict.WRONG_NODE.value],
    VERDICT_CODES[Verdict.BAD_SIGNATURE.value],
)
_LATE, _OUT_OF_RANGE = VERDICT_CODES[Verdict.LATE.value], VERDICT_CODES[Verdict.OUT_OF_RANGE.value]
_MISMATCH, _DUPLICATE = VERDICT_CODES[Verdict.DIGEST_MISMATCH.value], VERDICT_CODES[Verdict.DUPLICATE.value]
TOGETHER: Final = 16_384  # receipts that are judged at once
ROUND: Final = 24  # receipts of groups that were met before, from which on columns are faster
_LIMIT: Final = 1 << 62


class Served(NamedTuple):
    position: int
    event: SegmentsServed | Delivery
    node: NodeFacts
    told: told.Told
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
    if any(s.told.begin == s.told.end for s in served):
        return None
    known = _found(credits.tickets, served)
    if known is None:
        return None
    claims, places, tickets = known
    counts = [s.told.end - s.told.begin for s in served]
    numbers = credits.tickets.numbers
    each = _of_events(served, numbers)
    of = np.repeat(np.arange(len(served)), counts)
    position, published, now_s, node = np.repeat(each[:4], counts, axis=1)
    if (tickets[t.BROADCAST] != numbers.get(b"b" + broadcast.key, -2)).any() or (
        tickets[t.ISSUED] >= position
    ).any():
        return None
    recorded = claims[told.VERDICT]
    low, end = claims[told.LOW] - first, claims[told.END] - first  # in segments of the broadcast
    reach = np.minimum(tickets[t.HIGH], published)
    outside = (low < tickets[t.LOW]) | (end > reach)

    sums = Sums(broadcast.sums.tail, broadcast.sums.start)
    if sums.gone and (tickets[t.LOW] < sums.gone).any():
        return None

    # What depends on the receipt before it, or on what only one receipt in a thousand needs, is judged by itself.
    single = (recorded == _MISMATCH) | (claims[told.END] == 0)
    if int(tickets[t.BUDGET].min()) < sums.most(MAX_SEGMENTS):
        single |= sums.between(np.minimum(tickets[t.LOW], reach), reach) > tickets[t.BUDGET]

    def bitmaps(which: Ints) -> tuple[Words, Ints]:
        data = np.frombuffer(b"".join([s.event.receipts for s in served]), told.RECEIPT)[which]
        words = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(len(data), -1)
        return words.astype(np.uint64), data["base"].astype(np.int64) - (tickets[t.START] + first)[which]

    found = _Found(credits, tickets, Claims(low, end, claims[told.RUN] == 1, bitmaps), sums)
    accepted_, which = recorded == _ACCEPTED, ~outside
    left = found.grow(low, end, accepted_ & which & ~single, settings.prefix_sessions_max)
    rounds, rest = _rounds(credits.tickets, tickets[t.GROUP], left)
    single[rest] = True
    for at in rounds:
        if not found.judge(at, which, single, accepted_, settings.prefix_sessions_max):
            found.undo()
            return None

    verdicts = np.full(len(of), _ACCEPTED)
    capped = _caps(served, each, of, settings, tickets, found.units)
    for code, where in (  # the last that applies
        (_CAPPED, capped > 0),
        (_DUPLICATE, ~found.any),
        (_OUT_OF_RANGE, outside),
        (_LATE, now_s > tickets[t.SETTLE_S]),
        (_BAD_SIGNATURE, recorded == _BAD_SIGNATURE),  # verified to be one, with all other signatures
        (_WRONG_NODE, tickets[t.NODE] != node),
    ):
        verdicts[where] = code
    accepted = verdicts == _ACCEPTED
    same = (
        (verdicts == recorded)
        & (capped * (verdicts == _CAPPED) == claims[told.CAP])
        & (found.units * accepted == claims[told.UNITS])
        & (found.sizes * accepted == claims[told.SIZE])
    )
    # What was credited is taken back when a verdict is not the recorded one.
    if not (same | single).all() or (single.any() and not judge_rest(_by_event(single, of, counts))):
        found.undo()
        return None
    return Columns(places, tickets, claims, of)


class _Found:
    """What receipts claim that is new, found and credited in rounds: taking for true what was recorded of those before.
    If it is not, what follows is wrong, but so is a recorded verdict: then all of it is taken back."""

    def __init__(self, credits: Credits, tickets: Ints, claims: Claims, sums: Sums) -> None:
        self._credits, self._tickets, self._claims, self._sums = credits, tickets, claims, sums
        self._undo: list[Undo] = []
        count = tickets.shape[1]
        self.any = np.zeros(count, np.bool_)
        self.units, self.sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._blocked: Bools | None = None  # groups that have a receipt which is judged by itself

    def grow(self, low: Ints, end: Ints, usual: Bools, limit: int) -> Ints:
        """Those of viewers who just watch on, all at once. Returns the others."""
        grown = grow(self._credits, self._tickets, low, end, usual & self._claims.run, limit, self._sums)
        left = np.ones(len(usual), np.bool_)
        if grown is not None:
            at = grown.which
            self.any[at], self.units[at], self.sizes[at] = True, grown.units, grown.sizes
            self._undo.append(grown.undo)
            left[at] = False
        return np.flatnonzero(left)

    def judge(self, at: Ints | slice, which: Bools, single: Bools, accepted: Bools, limit: int) -> bool:
        """The next of each group. What comes behind one that is judged by itself becomes `single`, too."""
        tickets, claims = self._tickets, self._claims
        if not isinstance(at, slice):
            tickets = tickets.take(at, axis=1)
        alone = single[at]
        if not isinstance(at, slice):
            groups = tickets[t.GROUP]
            if self._blocked is None:
                self._blocked = np.zeros(int(self._tickets[t.GROUP].max()) + 1, np.bool_)
            alone = single[at] = alone | self._blocked[groups]
            self._blocked[groups[alone]] = True

        def bitmaps(some: Ints) -> tuple[Words, Ints]:
            return claims.bitmaps(some if isinstance(at, slice) else at[some])

        start = tickets[t.START]
        asked = Claims(claims.low[at] - start, claims.end[at] - start, claims.run[at], bitmaps)
        found = find(self._credits, tickets, asked, which[at] & ~alone, limit, self._sums)
        if found is None:
            return False
        self.any[at], self.units[at], self.sizes[at] = found.any, found.units, found.sizes
        self._undo.append(found.credit(accepted[at] & ~alone))
        return True

    def undo(self) -> None:
        for undo in reversed(self._undo):
            undo()


def _rounds(tickets: t.Tickets, groups: Ints, left: Ints) -> tuple[list[Ints | slice], Ints]:
    """Of those that are `left`, the first of each group, the second, and so on; and those that are too few for a round
    of their own."""
    rounds: list[Ints | slice] = []
    while len(left):
        firsts = tickets.firsts(groups[left])
        if rounds and np.count_nonzero(firsts) < ROUND:
            break
        rounds.append(slice(None) if len(left) == len(groups) and firsts.all() else left[firsts])
        left = left[~firsts]
    return rounds, left


def _found(tickets: t.Tickets, served: Sequence[Served]) -> tuple[Ints, Ints, Ints] | None:
    """Claims, places of their tickets, and tickets, where all are found."""
    pieces: list[told.Told] = []
    for one in served:
        claims, begin, end = one.told
        if (
            pieces and pieces[-1].claims is claims and pieces[-1].end == begin
        ):  # beside each other: nothing is copied
            begin = pieces.pop().begin
        pieces.append(told.Told(claims, begin, end))
    found = []
    for claims, begin, end in pieces:
        rows = claims.between(begin, end)
        known = tickets.find(claims, rows[told.NAME])
        if known is None:
            return None
        found.append((rows, *known))
    if len(found) == 1:
        return found[0]
    rows_, places, columns = zip(*found, strict=True)
    return np.concatenate(rows_, axis=1), np.concatenate(places), np.concatenate(columns, axis=1)


def _of_events(served: Sequence[Served], numbers: dict[bytes, int]) -> Ints:
    """A column for each event: its position, how many segments were published, the second in which it was judged; and
    numbers of its node's key, friend, and networks, -2 for what no ticket is of."""
    nodes: dict[int, tuple[int, ...]] = {}
    for s in served:
        if id(s.node) not in nodes:
            node = s.node
            nodes[id(node)] = (
                numbers.get(b"k" + node.public_key, -2),
                numbers.get(b"f" + node.friend_id.bytes, -2),
                *[numbers.get(b"w" + n, -2) for n in node.networks if n],
            )
    most = max(map(len, nodes.values()))
    padded = {key: (*of, *[-2] * (most - len(of))) for key, of in nodes.items()}
    rows = [(s.position, s.then.segments, s.event.at_us // 1_000_000, *padded[id(s.node)]) for s in served]
    return np.array(rows, np.int64).T


def _by_event(which: Bools, of: Ints, counts: list[int]) -> list[list[int]]:
    """For each event which of its receipts."""
    starts = np.cumsum([0, *counts])
    return [(np.flatnonzero(which & (of == n)) - starts[n]).tolist() for n in range(len(counts))]


def _caps(
    served: Sequence[Served], each: Ints, of: Ints, settings: Settings, tickets: Ints, units: Ints
) -> Ints:
    """The cap that holds a receipt back, were it accepted otherwise; 0 where none does. Byte budgets are not here."""
    caps: Ints = (units == 0) * CAP_CODES["prefix_sessions"]
    friends, *networks = each[4:]
    if settings.same_network_forbidden:
        for own in networks:
            caps[tickets[t.NETWORK] == own.take(of)] = CAP_CODES["same_network"]
    caps[tickets[t.ACCOUNT] == friends.take(of)] = CAP_CODES["own_account"]
    suspended = [s.node.suspended for s in served]
    if any(suspended):
        kept_out = np.array(suspended).take(of)
        if settings.suspended_signed_paid:
            kept_out = kept_out & (tickets[t.PLAIN] == 1)
        caps[kept_out] = CAP_CODES["node_suspended"]
    return caps
