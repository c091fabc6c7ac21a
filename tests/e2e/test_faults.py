"""Real daemons are killed, frozen and restarted: the cluster goes on deciding, and forgets nothing that it decided."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from kos_cluster import errors
from kos_cluster.net import wire
from tests.e2e.fleet import Fleet, SmallDisk, home_of, until

NODES = ("n1", "n2", "n3")
LEASE_S = 600.0  # of locks: longer than any test
SMALL_DISK_BYTES = 24 << 20


@pytest.fixture(scope="module")
def disks(machine_of: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The machines of this module, the last one with a small disk where that can be made."""
    machines = {name: machine_of() for name in NODES}
    disk, why_not = None, ""
    try:
        disk = SmallDisk(machines["n3"].home, SMALL_DISK_BYTES)
        machines["n3"].work.mkdir()
    except Exception as error:
        why_not = f"a tmpfs cannot be mounted here: {getattr(error, 'stderr', '') or error}".strip()
    yield {"machines": machines, "disk": disk, "why_not": why_not}
    if disk is not None:
        disk.unmount()


@pytest.fixture(scope="module")
def whole(disks: dict[str, Any]) -> Iterator[Fleet]:
    fleet = Fleet(disks["machines"])
    yield fleet
    fleet.end()


@pytest.fixture
def fleet(whole: Fleet) -> Iterator[Fleet]:
    """Three machines, each with a voter; whatever a test did to them is mended after it."""
    yield whole
    whole.heal()


def lock(fleet: Fleet, node: str, name: str, owner: str) -> int:
    """Take a lock through this node, or fail at once; its fencing token."""
    return fleet.ask(node, wire.LockWanted(name, owner, LEASE_S, 0.0), wire.LockState).token


def release(fleet: Fleet, node: str, name: str, owner: str) -> None:
    fleet.ask(node, wire.LockReleased(name, owner), bool)


def others(node: str) -> list[str]:
    return [name for name in NODES if name != node]


# ---- kill -9


def test_the_coordinator_is_killed_and_another_decides(fleet: Fleet) -> None:
    first = fleet.coordinator()
    term = fleet.status(first).term
    before = lock(fleet, first, "killed", "a")
    fleet.kill(first)
    second = fleet.successor(first)
    assert fleet.status(second).term > term
    with pytest.raises(errors.LockHeldError):
        lock(fleet, second, "killed", "b")
    release(fleet, second, "killed", "a")
    assert lock(fleet, others(first)[0], "killed", "b") > before
    assert fleet.cluster.mint_token("client", 60.0).startswith("KOS1.")


def test_without_a_majority_nothing_is_decided_and_that_is_said_with_the_arithmetic(fleet: Fleet) -> None:
    first = fleet.coordinator()
    held = lock(fleet, first, "kept", "a")
    fleet.kill(*others(first))
    with pytest.raises(errors.UnreachableError) as caught:
        lock(fleet, first, "kept", "b")
    assert "2 of its 3 voters must agree, and only 1 can be reached" in str(caught.value)
    assert "1 reachable, 2 needed" in fleet.machines[first].ok("cluster", "status")
    fleet.start(others(first)[0])  # one more is enough
    second = fleet.coordinator(first, others(first)[0])
    assert lock(fleet, second, "kept", "a") == held
    release(fleet, second, "kept", "a")


# ---- SIGSTOP


def test_a_coordinator_that_was_stalled_past_its_lease_decides_nothing_any_more(fleet: Fleet) -> None:
    """What it was asked meanwhile ends in the log of the new one, or is refused: no lock is granted twice."""
    first = fleet.coordinator()
    term = fleet.status(first).term
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
    assert isinstance(granted["stalled"], errors.LockHeldError), granted
    assert isinstance(granted["free"], int), granted
    assert granted["free"] > token
    assert fleet.coordinator() != first
    assert fleet.status(first).term > term
    release(fleet, second, "stalled", "a")
    assert lock(fleet, first, "stalled", "b") > granted["free"]
    for name, owner in (("stalled", "b"), ("free", "late")):
        release(fleet, second, name, owner)


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
            mapped.append(list(fleet.cluster.map(lambda x: time.sleep(0.05) or x * x, range(40), retries=9)))

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
    ids = {name: fleet.id(name) for name in NODES}
    term = fleet.status("n1").term
    fleet.kill(*NODES)
    fleet.start(*NODES)
    fleet.settled()
    assert {name: fleet.id(name) for name in NODES} == ids
    assert fleet.status("n1").term > term
    assert lock(fleet, "n2", "power", "a") == held
    with pytest.raises(errors.LockHeldError):
        lock(fleet, "n3", "power", "b")
    release(fleet, "n1", "power", "a")
    joins(fleet, machine, token)


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
        decided = lock_when_decided(fleet, "n1", "while full", "a")
        until(lambda: (said := fleet.status("n3")) and "disk" in said.trouble, "it says so")
        log = (home_of(fleet.machines["n3"]).run("n3") / "log").read_text()
        fleet.successor("n3")
        with pytest.raises(errors.LockHeldError):
            lock(fleet, "n1", "full", "b")
    finally:
        disk.make_room()
    until(lambda: (said := fleet.status("n3")) and not said.trouble and said.coordinator, "it takes part again")
    assert lock(fleet, "n3", "full", "a") == held
    assert lock(fleet, "n3", "while full", "a") == decided
    for name in ("full", "while full"):
        release(fleet, "n3", name, "a")
    assert log


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
