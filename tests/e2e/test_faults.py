"""Real daemons are killed, frozen and restarted: the cluster goes on deciding, and forgets nothing that it decided."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kos_cluster import errors
from kos_cluster.core.gang import scheduler
from kos_cluster.net import wire
from kos_cluster.net.locks import LockAsked, LockReleased, LockState, LockWanted
from kos_cluster.sim.linearizability import Operation, Outcome, check
from kos_cluster.sim.sequential import CompareAndSet, Read, Register, Write
from tests.e2e.contest import Acquire, Contest, Lock, Release
from tests.e2e.fleet import LEASE_S, Fleet, SmallDisk, home_of, side_by_side, until
from tests.e2e.flood import Flood
from tests.e2e.network import Network, network_of

NODES = ("n1", "n2", "n3")
FLOOD_DECISIONS = 10
FLOOD_CONNECTIONS = 40  # that are on before the first of them, and more before the last
CONTEST_GRANTS = 30  # at least, for a history to say something
SMALL_DISK_BYTES = 24 << 20
LET_GO_S = scheduler.PATIENCE_MOST_S + scheduler.DECIDE_S + scheduler.ARRIVE_S  # the longest lease of reserved slots
ANSWER_S = 60.0  # for an answer of a node that stands still meanwhile


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with network_of(NODES) as made:
        yield made


@pytest.fixture(scope="module")
def disks(network: Network, machine_of: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The machines of this module, the last one with a small disk where that can be made."""
    machines = {name: machine_of(*network.prefix(name)) for name in NODES}
    disk, why_not = None, ""
    try:
        disk = SmallDisk(machines["n3"].home, SMALL_DISK_BYTES)
    except Exception as error:
        why_not = f"a tmpfs cannot be mounted here: {getattr(error, 'stderr', '') or error}".strip()
    yield {"machines": machines, "disk": disk, "why_not": why_not}
    if disk is not None:
        disk.unmount()


@pytest.fixture(scope="module")
def whole(network: Network, disks: dict[str, Any]) -> Iterator[Fleet]:
    fleet = Fleet(disks["machines"], network)
    yield fleet
    fleet.end()


@pytest.fixture
def fleet(whole: Fleet) -> Iterator[Fleet]:
    """Three machines, each with a voter; whatever a test did to them is mended after it."""
    yield whole
    whole.heal()


def lock(fleet: Fleet, node: str, name: str, owner: str) -> int:
    """Take a lock through this node, or fail at once; its fencing token."""
    return fleet.ask(node, LockWanted(name, owner, LEASE_S, 0.0), LockState).token


def release(fleet: Fleet, node: str, name: str, owner: str) -> None:
    fleet.ask(node, LockReleased(name, owner), bool)


def others(node: str) -> list[str]:
    return [name for name in NODES if name != node]


# ---- kill -9


def test_the_coordinator_is_killed_and_another_decides(fleet: Fleet) -> None:
    first, term = fleet.agreed()
    before = lock(fleet, first, "killed", "a")
    fleet.kill(first)
    second = fleet.successor(first)
    assert fleet.status(second).term > term
    with pytest.raises(errors.LockHeldError):
        lock(fleet, second, "killed", "b")
    release(fleet, second, "killed", "a")
    assert lock(fleet, others(first)[0], "killed", "b") > before
    assert fleet.cluster.mint_token("client", 60.0).startswith("KOS1.")


def test_a_minority_is_killed_and_nothing_waits_for_it(fleet: Fleet) -> None:
    first = fleet.coordinator()
    fleet.kill(others(first)[0])
    token = lock(fleet, first, "minority", "a")
    assert lock(fleet, others(first)[1], "minority", "a") == token
    release(fleet, first, "minority", "a")
    user = fleet.machines[first]
    until(lambda: "the loss of one more voter stops agreement" in user.ok("cluster", "status"), "that is said")


# ---- SIGSTOP


def test_a_coordinator_that_was_stalled_past_its_lease_decides_nothing_any_more(fleet: Fleet) -> None:
    """What it was asked meanwhile ends in the log of the new one, or is refused: no lock is granted twice."""
    first, term = fleet.agreed()
    granted: dict[str, int | Exception] = {}

    def late(name: str, owner: str) -> None:
        try:
            granted[name] = lock(fleet, first, name, owner)
        except Exception as error:
            granted[name] = error

    fleet.freeze(first)
    try:
        second = fleet.successor(first)
        token = lock(fleet, second, "stalled", "a")
        asking = [threading.Thread(target=late, args=(name, "late")) for name in ("stalled", "free")]
        for thread in asking:
            thread.start()
    finally:
        fleet.thaw(first)
    for thread in asking:
        thread.join()
    # Who asks may hold the stalled node to be lost before it answers.
    assert isinstance(granted["stalled"], errors.LockHeldError | errors.UnreachableError), granted
    assert isinstance(granted["free"], int | errors.UnreachableError), granted
    fleet.coordinator()
    free = lock(fleet, second, "free", "late")  # the same one, if it was granted
    assert free == granted["free"] or not isinstance(granted["free"], int)
    assert free > token
    assert fleet.status(first).term > term
    release(fleet, second, "stalled", "a")
    assert lock(fleet, first, "stalled", "b") > free
    for name, owner in (("stalled", "b"), ("free", "late")):
        release(fleet, second, name, owner)


def address_of(fleet: Fleet, node: str) -> str:
    ready = home_of(fleet.machines[node]).ready(node)
    assert ready is not None
    return f"{ready.host}:{ready.port}"


class Asked:
    """A lock that is asked for from a node, in a thread of its own; `answer` is its token or what was raised."""

    def __init__(self, fleet: Fleet, node: str, name: str, owner: str) -> None:
        self.answer: int | Exception | None = None
        self._fleet, self._node, self._question = fleet, node, LockWanted(name, owner, LEASE_S, 0.0)
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.answer = self._fleet.ask(self._node, self._question, LockState, ANSWER_S).token
        except Exception as error:
            self.answer = error

    def wait(self) -> int | Exception | None:
        self._thread.join()
        return self.answer


def stalled_with_a_proposal(fleet: Fleet) -> tuple[str, str, Asked] | None:
    """Stall a coordinator that has written a proposal into its log, and all others before it; which, and for what lock.

    None when it stepped down before it took the proposal, as it had heard nothing of the others for too long.
    """
    first = fleet.coordinator()
    name = f"taken-{secrets.token_hex(8)}"
    lock(fleet, first, "before", "early")  # so that its session is open
    release(fleet, first, "before", "early")
    log = home_of(fleet.machines[first]).node(first) / "raft.sqlite"
    side_by_side(fleet.freeze, others(first))
    early = Asked(fleet, first, name, "early")
    taken = partial(holds, log, name)
    until(lambda: taken() or has_stepped_down(fleet, first), "it takes it, or steps down", ANSWER_S)
    fleet.freeze(first)
    if taken() and early.answer is None:
        return first, name, early
    fleet.heal()
    early.wait()
    return None


def has_stepped_down(fleet: Fleet, node: str) -> bool:
    status = fleet.status(node)
    return status is not None and status.coordinator != fleet.id(node)


def holds(log: Path, name: str) -> bool:
    """A log holds this name on the disk, in its database or beside it."""
    return any(name.encode() in path.read_bytes() for path in log.parent.glob(f"{log.name}*"))


def test_what_a_stalled_coordinator_had_taken_never_takes_effect_once_others_have_decided(
    fleet: Fleet, machine: Any, machine_of: Callable[..., Any]
) -> None:
    """The proposal is in its log alone, of the old term. The others know nothing of it, and decide otherwise.

    Nor can both let somebody in with the same join token.
    """
    join_token = fleet.cluster.mint_token("client", 600.0)
    first, name, early = until(lambda: stalled_with_a_proposal(fleet), "a proposal was taken", 60.0)
    try:
        assert early.answer is None, "it was not decided"
        fleet.kill(*others(first))  # with them goes what was sent to them
        fleet.start(*others(first))
        second = fleet.successor(first)
        never = lock(fleet, second, name, "late")  # the token that the proposal would have had
        release(fleet, second, name, "late")
        token = lock(fleet, second, name, "late")
        joining = machine_of().start("cluster", "join", "lab", address_of(fleet, first), "--token", join_token)
        machine.ok("cluster", "join", "lab", address_of(fleet, second), "--token", join_token)
    finally:
        fleet.thaw(first)
    _, refusal = joining.communicate(timeout=ANSWER_S)
    assert joining.returncode in (errors.JoinError.exit_code, errors.UnreachableError.exit_code), refusal
    assert isinstance(early.wait(), errors.LockHeldError | errors.UnreachableError), early.answer
    fleet.coordinator()
    assert {node: fleet.ask(node, LockAsked(name), LockState).token for node in NODES} == dict.fromkeys(NODES, token)
    assert token > never
    release(fleet, second, name, "late")


# ---- a gang's reservation


def slots_in_use(fleet: Fleet, node: str) -> int:
    return next(row["running"] for row in fleet.cluster.nodes() if row["name"] == node)


def rank() -> int:
    import kos_cluster as kos

    return kos.comm().rank


def test_a_coordinator_that_dies_while_it_reserves_leaves_no_slot_reserved(fleet: Fleet) -> None:
    """In the first phase: one node has voted and holds its slots, the other stands still and has not."""
    coordinator = fleet.coordinator()
    stalled, voted = others(coordinator)
    slots = {row["name"]: row["slots"] for row in fleet.cluster.nodes()}
    fleet.freeze(stalled)
    whole = fleet.cluster.gang(rank, sum(slots.values()))
    until(lambda: slots_in_use(fleet, voted) == slots[voted], f"{voted} holds its slots for it")
    fleet.kill(coordinator)
    fleet.thaw(stalled)
    try:
        successor = fleet.successor(coordinator)
        until(lambda: slots_in_use(fleet, voted) + slots_in_use(fleet, stalled) == 0, "they let go", LET_GO_S)
        until(lambda: {stalled, voted} <= fleet.alive(successor), "the one that stood still is back")
    finally:
        whole.cancel()
    ranks = slots[stalled] + slots[voted]
    assert fleet.cluster.gang(rank, ranks).result(ANSWER_S) == list(range(ranks))


def test_a_gang_whose_commit_has_reached_one_node_runs_whole_when_the_coordinator_dies(fleet: Fleet) -> None:
    """In the second phase: both nodes have voted, one of them stands still before it hears of the decision."""
    coordinator = fleet.coordinator()
    heard, stalled = others(coordinator)
    slots = {row["name"]: row["slots"] for row in fleet.cluster.nodes()}
    fleet.freeze(heard)  # so that the other one has voted, and stands still, before this one does
    gang = fleet.cluster.gang(rank, slots[heard] + slots[stalled], away_from=coordinator, restarts=2)
    until(lambda: slots_in_use(fleet, stalled) == slots[stalled], f"{stalled} has voted")
    fleet.freeze(stalled)
    fleet.thaw(heard)
    until(lambda: len(gang.nodes) == slots[heard] + slots[stalled], "it is decided, and its owner knows")
    fleet.kill(coordinator)
    fleet.thaw(stalled)
    fleet.successor(coordinator)
    assert (gang.result(ANSWER_S), gang.epoch) == (list(range(slots[heard] + slots[stalled])), 1)
    until(lambda: not any(slots_in_use(fleet, node) for node in (heard, stalled)), "nothing is held", LET_GO_S)


def test_a_coordinator_that_dies_at_any_moment_of_a_gangs_start_neither_loses_nor_halves_it(fleet: Fleet) -> None:
    """In whatever phase: the gang runs whole, at once or in its next epoch, and holds nothing afterwards."""
    rng = random.Random(secrets.randbits(32))
    coordinator = fleet.coordinator()
    rest = others(coordinator)
    ranks = sum(row["slots"] for row in fleet.cluster.nodes() if row["name"] in rest)
    gang = fleet.cluster.gang(rank, ranks, restarts=2)
    time.sleep(rng.uniform(0.0, 0.05))  # the moment is what is tried
    fleet.kill(coordinator)
    assert gang.result(ANSWER_S) == list(range(ranks))
    until(lambda: not any(slots_in_use(fleet, node) for node in rest), "nothing is reserved", scheduler.ARRIVE_S)


# ---- restarts


def test_all_nodes_are_stopped_and_started_one_after_the_other(fleet: Fleet, machine: Any) -> None:
    """An upgrade, say. A map goes on meanwhile; what was decided is kept."""
    token = fleet.cluster.mint_token("client", 600.0)
    held = lock(fleet, fleet.coordinator(), "rolling", "a")
    ids = {name: fleet.id(name) for name in NODES}
    stop = threading.Event()
    mapped: list[list[int]] = []

    def map_on() -> None:
        while not stop.is_set():
            mapped.append(list(fleet.cluster.map(lambda x: time.sleep(0.05) or x * x, range(40))))

    working = threading.Thread(target=map_on)
    working.start()
    try:
        for name in NODES:
            fleet.stop(name)
            fleet.successor(name)
            fleet.start(name)
            until(lambda: fleet.alive(name) == set(NODES), "it is back", 30.0)  # noqa: B023
    finally:
        stop.set()
        working.join()
    assert mapped
    assert all(results == [x * x for x in range(40)] for results in mapped)
    assert {name: fleet.id(name) for name in NODES} == ids
    assert lock(fleet, "n1", "rolling", "a") == held
    release(fleet, "n1", "rolling", "a")
    joins(fleet, machine, token)


def test_all_nodes_lose_their_power_at_once_and_come_back_from_their_disks(fleet: Fleet, machine: Any) -> None:
    token = fleet.cluster.mint_token("client", 600.0)
    held = lock(fleet, fleet.coordinator(), "power", "a")
    fleet.cluster.drain_node("n2")
    until(lambda: drained(fleet) == {"n2"}, "it says so")
    ids = {name: fleet.id(name) for name in NODES}
    _, term = fleet.agreed()
    fleet.kill(*NODES)
    fleet.start(*NODES)
    fleet.settled()
    assert {name: fleet.id(name) for name in NODES} == ids
    assert fleet.agreed()[1] > term
    assert lock(fleet, "n2", "power", "a") == held
    with pytest.raises(errors.LockHeldError):
        lock(fleet, "n3", "power", "b")
    until(lambda: drained(fleet) == {"n2"}, "it says so again")
    fleet.cluster.drain_node("n2", undo=True)
    until(lambda: not drained(fleet), "it takes work again")
    release(fleet, "n1", "power", "a")
    joins(fleet, machine, token)


def drained(fleet: Fleet) -> set[str]:
    return {row["name"] for row in fleet.cluster.nodes() if row["drained"]}


def joins(fleet: Fleet, machine: Any, token: str) -> None:
    """A token that was made before is still good."""
    machine.ok("cluster", "join", "lab", fleet.address, "--token", token)


# ---- a full disk


def test_a_voter_whose_disk_is_full_steps_down_says_so_and_comes_back(fleet: Fleet, disks: dict[str, Any]) -> None:
    disk = disks["disk"]
    if disk is None:
        pytest.skip(disks["why_not"])
    held = lock(fleet, "n3", "full", "a")
    if fleet.coordinator() != "n3":
        until(lambda: leads(fleet, "n3"), "the one with the small disk coordinates", 60.0)
    disk.fill()
    try:
        decided = lock_when_decided(fleet, "n1", "while-full", "a")
        until(lambda: (said := fleet.status("n3")) and "disk" in said.trouble, "it says so")
        fleet.successor("n3")
        with pytest.raises(errors.LockHeldError):
            lock(fleet, "n1", "full", "b")
    finally:
        disk.make_room()
    until(lambda: (said := fleet.status("n3")) and not said.trouble and said.coordinator, "it takes part again")
    fleet.kill(next(name for name in others("n3") if name != fleet.coordinator()))  # now it is needed
    assert lock(fleet, "n3", "full", "a") == held
    assert lock(fleet, "n3", "while-full", "a") == decided
    for name in ("full", "while-full"):
        release(fleet, "n3", name, "a")


def leads(fleet: Fleet, node: str) -> bool:
    """Whether it coordinates; another that does is stalled until somebody else does."""
    now = fleet.coordinator()
    if now != node:
        fleet.freeze(now)
        try:
            fleet.successor(now)
        finally:
            fleet.thaw(now)
    return fleet.coordinator() == node


def lock_when_decided(fleet: Fleet, node: str, name: str, owner: str) -> int:
    tokens: list[int] = []

    def decided() -> bool:
        with suppress(errors.UnreachableError):
            tokens.append(lock(fleet, node, name, owner))
        return bool(tokens)

    until(decided, "it is decided", 30.0)
    return tokens[0]


# ---- a flood


def test_a_flood_on_its_ports_does_not_keep_the_coordinator_from_deciding(fleet: Fleet) -> None:
    first = fleet.coordinator()
    ready = home_of(fleet.machines[first]).ready(first)
    before = fleet.ask(first, wire.Nodes(), wire.SyncData).loads[ready.id][0].dropped_frames
    flood = Flood(ready.host, ready.port)
    try:
        until(lambda: flood.sent > FLOOD_CONNECTIONS, "the flood is on")
        for number in range(FLOOD_DECISIONS):
            node = NODES[number % len(NODES)]
            lock_when_decided(fleet, node, "flood", f"{number}")
            fleet.cluster._mesh.ask(lambda: of_largest_size(fleet, first))
            release(fleet, node, "flood", f"{number}")
        assert flood.sent > 2 * FLOOD_CONNECTIONS, "it went on meanwhile"
    finally:
        flood.end()
    until(lambda: fleet.ask(first, wire.Nodes(), wire.SyncData).loads[ready.id][0].dropped_frames > before, "counted")
    assert all(fleet.alive(node) == set(NODES) for node in NODES), "nobody was held to be dead for it"


def of_largest_size(fleet: Fleet, node: str) -> None:
    """A message as large as may be, of a client who may send it, with a part that is not what it is called."""
    link = fleet.cluster._mesh._attachment.choose(node)
    message = wire.PutPart("0" * 64)
    assert link.send(message, bytes(wire.MESSAGE_LIMIT_BYTES - len(wire.encode(message))))


# ---- what clients see, as a whole


def test_what_clients_of_a_lock_and_a_register_see_under_faults_is_linearizable(fleet: Fleet) -> None:
    seed = random.randrange(1 << 32)
    contest = Contest(fleet, random.Random(seed))
    lock_history, history = contest.histories()
    granted = [o for o in lock_history if isinstance(o.input, Acquire) and o.output]
    assert len(granted) >= CONTEST_GRANTS, seed
    verdict = check(lock_history, Lock())
    assert verdict.outcome is Outcome.LINEARIZABLE, f"the lock, seed {seed}: {verdict}"

    verdict = check(history, Register())
    assert verdict.outcome is Outcome.LINEARIZABLE, f"the register, seed {seed}: {verdict}"
    before = until_then(history, contest.calm_s)  # short enough to be searched in full
    assert check(before, Register()).outcome is Outcome.LINEARIZABLE
    for broken in (with_a_stale_read, with_a_second_winner):
        assert check(broken(before), Register()).outcome is Outcome.NOT_LINEARIZABLE, f"{broken.__name__}, seed {seed}"


def until_then(history: list[Operation], at: float) -> list[Operation]:
    """What was known of it then."""
    called = [o for o in history if o.called <= at]
    return [o if o.returned is not None and o.returned <= at else replace(o, returned=None) for o in called]


def with_a_stale_read(history: list[Operation]) -> list[Operation]:
    """The same, but for the last read: it answers with what the first write wrote."""
    old = min((o for o in history if isinstance(o.input, Write) and o.returned is not None), key=lambda o: o.called)
    last = max((o for o in history if isinstance(o.input, Read) and o.returned is not None), key=lambda o: o.called)
    assert isinstance(old.input, Write)
    return [o for o in history if o is not last] + [replace(last, output=old.input.value)]


def with_a_second_winner(history: list[Operation]) -> list[Operation]:
    """The same, but for another client, of which each swap succeeds that another made with success."""
    won = next(o for o in history if isinstance(o.input, CompareAndSet) and o.output is True)
    return [*history, replace(won, process="another")]


@pytest.mark.parametrize(
    "outputs",
    [(1, 2), (2, True, 1), (1, True, False)],
    ids=["granted twice", "a token that does not grow", "refused while free"],
)
def test_a_wrong_history_of_a_lock_is_caught(outputs: tuple[object, ...]) -> None:
    inputs = (Acquire("a"), Acquire("b")) if len(outputs) == 2 else (Acquire("a"), Release("a"), Acquire("b"))
    history = [
        Operation(0, at, at + 0.5, wanted, out) for at, (wanted, out) in enumerate(zip(inputs, outputs, strict=True))
    ]
    assert check(history, Lock()).outcome is Outcome.NOT_LINEARIZABLE
