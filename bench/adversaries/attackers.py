"""The cheats. Each does what it is named for during one evening and says which friends it earned for.

Invariant: all they send is well-formed and signed by keys they really hold, so that what stops them is a rule. They
know everything that is public, and every segment their nodes may pull.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from bench.adversaries.world import Friend, Viewing, World, at_hub, key, named
from ledger.aggregates.base import Aggregate
from ledger.application import Ledger, Unavailable
from ledger.services.delivery import DeliveryDesk

Act = Callable[[range], None]
Attack = Callable[[World], tuple[Act, list[Friend]]]
"""Given the world before the evening: what is done with every round of segments, and who is paid for it."""

DAY_S: Final = 86_400


def _fake(world: World, friend: Friend, n: int, **where: object) -> Viewing:
    return world.watch(friend, f"{friend.name} fake {n}", **where)  # type: ignore[arg-type]


def _claiming(world: World, friend: Friend, viewings: list[Viewing], *, observed: bool = True) -> Act:
    """Everything was delivered to them all, say they: the node has the bytes, and nothing is sent to anybody."""

    def act(fresh: range) -> None:
        for viewing in viewings:
            viewing.got.update(fresh)
            if viewing.plain and observed:
                world.observe(viewing, fresh)
        world.probe(friend)
        world.send(friend, [world.receipt(v) for v in viewings])

    return act


def forger(world: World) -> tuple[Act, list[Friend]]:
    """Signs for viewers whose keys it does not have, and tickets in the hub's name."""
    friend, made_up = world.join("forger"), key("made up")
    victims = [_fake(world, friend, n) for n in range(world.size.fakes)]

    def act(fresh: range) -> None:
        for viewing in victims:
            viewing.got.update(fresh)
        world.send(friend, [world.receipt(v, signer=made_up) for v in victims])
        tickets = [
            replace(v.ticket.ticket, ticket_id=named(f"forged {fresh[0]} {i}")) for i, v in enumerate(victims)
        ]
        world.send(
            friend, [world.receipt(v, ticket=t.sign(made_up)) for v, t in zip(victims, tickets, strict=True)]
        )

    return act, [friend]


def replayer(world: World) -> tuple[Act, list[Friend]]:
    """Sends the same few honest receipts again and again, alone and in ever new company, also other nodes'."""
    friend = world.join("replayer")
    viewing = _fake(world, friend, 0)
    kept: list[bytes] = []

    def act(fresh: range) -> None:
        if not kept:
            viewing.got.update(fresh)
            kept.append(world.receipt(viewing))
        theirs = [world.receipt(v) for v in world.viewings]
        for n in range(5):
            world.send(friend, kept * (n + 1) + theirs, clock_s=n)

    return act, [friend]


def inflater(world: World) -> tuple[Act, list[Friend]]:
    """One player watched a tenth; the bitmap says all of it, what is to come, and what is outside the ticket."""
    friend = world.join("inflater")
    plain, signing = _fake(world, friend, 0, plain=True), _fake(world, friend, 1)

    def act(fresh: range) -> None:
        plain.got.update(fresh)
        if fresh[0] == 0:
            world.observe(plain, fresh)
            signing.got.update(fresh)
        more = [
            world.receipt(plain),
            world.receipt(plain, range(fresh[0], fresh[0] + 300)),
            world.receipt(plain, [600]),
        ]
        # Without the viewer's key a signed receipt cannot be widened: the bits are set, the signature is the old one.
        wide = bytearray(world.receipt(signing))
        wide[45:53] = b"\xff" * 8
        world.send(friend, [*more, bytes(wide)])

    return act, [friend]


def mover(world: World) -> tuple[Act, list[Friend]]:
    """Sends in what viewers signed for other nodes' tickets."""
    friend = world.join("mover")

    def act(_: range) -> None:
        world.send(friend, [world.receipt(v) for v in world.viewings])

    return act, [friend]


def garbage(world: World) -> tuple[Act, list[Friend]]:
    """Sends its viewers noise from the second round on; a probe sees it then."""
    friend = world.join("garbage")
    viewings = [_fake(world, friend, n, plain=n % 2 == 1) for n in range(world.size.signing * 2)]

    def act(fresh: range) -> None:
        lying = fresh[0] > 0
        receipts = []
        for viewing in viewings:
            viewing.got.update(fresh)
            if viewing.plain:
                world.observe(viewing, fresh)
            receipts.append(world.receipt(viewing, garbage=lying and not viewing.plain))
        if lying and fresh[0] <= 10:
            world.probe(friend, wrong=True)
        world.send(friend, receipts)

    return act, [friend]


def silent(world: World) -> tuple[Act, list[Friend]]:
    """Serves nothing. Its players go to the hub for everything; it claims all the same."""
    friend = world.join("silent")
    viewings = [_fake(world, friend, n, plain=True) for n in range(world.size.plain * 2)]

    def act(fresh: range) -> None:
        for viewing in viewings:
            viewing.got.update(fresh)
            world.observe(
                viewing, fresh, fetched=[]
            )  # a stalled player leaves before it fetches anything pointed at
        world.send(friend, [world.receipt(v) for v in viewings])

    return act, [friend]


def colluder(world: World) -> tuple[Act, list[Friend]]:
    """A friend and an accomplice, who opens many sessions from one home and signs for all of them."""
    friend = world.join("colluder")
    viewings = [_fake(world, friend, n, at="accomplice") for n in range(world.size.fakes)]
    return _claiming(world, friend, viewings), [friend]


def colluder_plain(world: World) -> tuple[Act, list[Friend]]:
    """The same with players that cannot sign: the polls are real, the segments pointed at the hub are fetched."""
    friend = world.join("colluder plain")
    viewings = [_fake(world, friend, n, plain=True) for n in range(world.size.fakes)]
    return _claiming(world, friend, viewings), [friend]


def own_account(world: World) -> tuple[Act, list[Friend]]:
    """A friend watches through their own node from elsewhere, with their own page open."""
    friend = world.join("own account")
    viewings = [_fake(world, friend, n, account_id=friend.friend_id) for n in range(world.size.signing)]
    return _claiming(world, friend, viewings), [friend]


def own_network(world: World) -> tuple[Act, list[Friend]]:
    """Watches at home through the node at home, sends the receipts from a café."""
    friend = world.join("own network")
    viewings = [_fake(world, friend, n, at="own network") for n in range(world.size.signing)]
    claim = _claiming(world, friend, viewings)

    def act(fresh: range) -> None:
        world.see_elsewhere(friend, "café")
        claim(fresh)

    return act, [friend]


def sybil_one_network(world: World) -> tuple[Act, list[Friend]]:
    """Five nodes and all their viewers behind one /24."""
    farm = [world.join(f"farm {n}", at="farm") for n in range(5)]
    acts = [
        _claiming(world, f, [_fake(world, f, n, at="farm") for n in range(world.size.fakes // 5)])
        for f in farm
    ]
    return lambda fresh: [act(fresh) for act in acts] and None, farm


def sybil_many_networks(world: World) -> tuple[Act, list[Friend]]:
    """One node on a home line, and a rented network for every one of its viewers."""
    friend = world.join("sybil")
    viewings = [_fake(world, friend, n) for n in range(world.size.fakes * 4)]
    return _claiming(world, friend, viewings), [friend]


def sybil_idle(world: World) -> tuple[Act, list[Friend]]:
    """Many nodes, of which each delivers one segment and waits for the floor share."""
    farm = [world.join(f"idle {n}") for n in range(20)]
    viewings = [_fake(world, friend, 0) for friend in farm]

    def act(fresh: range) -> None:
        if fresh[0] == 0:
            for friend, viewing in zip(farm, viewings, strict=True):
                viewing.got.add(0)
                world.send(friend, [world.receipt(viewing)])

    return act, farm


def creator(world: World) -> tuple[Act, list[Friend]]:
    """Funds a stream of their own and carries it to viewers of their own: what comes back is their own money."""
    stream = world.add_stream("own")
    friend = world.join("creator")
    viewings = [_fake(world, friend, n, stream=stream) for n in range(world.size.fakes)]
    claim = _claiming(world, friend, viewings)

    def act(fresh: range) -> None:
        world.publish(stream[1], fresh, meanwhile=True)
        claim(fresh)

    return act, [friend]


# --- what a cap costs people who mean well


def household(world: World) -> tuple[Act, list[Friend]]:
    """All viewers of an honest node live behind one address: a family, a school, a mobile carrier."""
    friend = world.join("household")
    count = world.size.signing + world.size.plain
    viewings = [
        _fake(world, friend, n, at="one address", plain=n >= world.size.signing) for n in range(count)
    ]

    def act(fresh: range) -> None:
        _deliver(world, viewings, fresh)
        world.send(friend, [world.receipt(v) for v in viewings])

    return act, [friend]


# --- nobody's fault: all of these must earn exactly what anybody earns for the same work


def _working(world: World, name: str) -> tuple[Friend, list[Viewing]]:
    friend = world.join(name)
    count = world.size.signing + world.size.plain
    return friend, [_fake(world, friend, n, plain=n >= world.size.signing) for n in range(count)]


def _deliver(world: World, viewings: list[Viewing], fresh: range) -> None:
    for viewing in viewings:
        viewing.got.update(s for s in fresh if not (viewing.plain and at_hub(s)))
        if viewing.plain:
            world.observe(viewing, fresh)


def wrong_clock(world: World) -> tuple[Act, list[Friend]]:
    """A node, and its viewers, whose clocks are days off: back, ahead, and leaping."""
    friend, viewings = _working(world, "wrong clock")

    def act(fresh: range) -> None:
        _deliver(world, viewings, fresh)
        days = world.rng.choice([-4_000, -3, 0, 3, 4_000])
        world.send(friend, [world.receipt(v) for v in viewings], clock_s=days * DAY_S)

    return act, [friend]


def resender(world: World) -> tuple[Act, list[Friend]]:
    """Sends everything it ever had ten times over in random order."""
    friend, viewings = _working(world, "resender")
    spool: list[bytes] = []

    def act(fresh: range) -> None:
        _deliver(world, viewings, fresh)
        spool.extend(world.receipt(v) for v in viewings)
        for n in range(10):
            world.send(friend, world.rng.sample(spool, len(spool)), clock_s=n)

    return act, [friend]


def crashing_hub(world: World) -> tuple[Act, list[Friend]]:
    """The hub dies before or after each save, at every batch and at the settlement; all of it is tried again."""
    friend, viewings = _working(world, "crashing hub")

    def survive(step: Callable[[], None]) -> None:
        real = world.ledger.save
        for saved in (False, True):
            world.ledger.save = _dying(world.ledger, saved=saved)  # type: ignore[method-assign]
            try:
                step()
            except Unavailable:
                world.desk = DeliveryDesk(world.ledger, digest_of=world.digest_of)  # started again
            finally:
                world.ledger.save = real  # type: ignore[method-assign]
        step()

    def act(fresh: range) -> None:
        _deliver(world, viewings, fresh)
        receipts = [world.receipt(v) for v in viewings]
        survive(lambda: world.send(friend, receipts))

    settle = world.settle
    world.settle = lambda: survive(settle)  # type: ignore[method-assign]
    return act, [friend]


def _dying(ledger: Ledger, *, saved: bool) -> Callable[..., list[int]]:
    real = ledger.save

    def save(*aggregates: Aggregate, unchanged: Sequence[Aggregate] = ()) -> list[int]:
        if saved:
            real(*aggregates, unchanged=unchanged)
        raise Unavailable("killed")

    return save


CHEATS: Final[dict[str, Attack]] = {
    "forged receipts and tickets": forger,
    "replayed receipts": replayer,
    "inflated bitmaps": inflater,
    "moved tickets": mover,
    "node that serves garbage": garbage,
    "node that serves nothing": silent,
    "own account": own_account,
    "own network, sent from elsewhere": own_network,
    "colluding viewer, signing": colluder,
    "colluding players, plain": colluder_plain,
    "Sybils behind one /24": sybil_one_network,
    "Sybils on many networks": sybil_many_networks,
    "idle Sybils for the floor share": sybil_idle,
    "creator paying themselves": creator,
}
FAULTS: Final[dict[str, Attack]] = {
    "clocks days off": wrong_clock,
    "everything sent ten times": resender,
    "hub that crashes at every step": crashing_hub,
}
PRICES: Final[dict[str, Attack]] = {"all viewers behind one address": household}
