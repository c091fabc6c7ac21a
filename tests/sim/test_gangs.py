"""Gangs in a simulated cluster that fails: all ranks or none, no slot beyond its lease, no deadlock; and what is seen
when a machine is broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kos_cluster.core import twophase
from kos_cluster.core.capacity import Demand
from kos_cluster.core.gang import epochs, scheduler, slots
from kos_cluster.core.placement import Candidate
from tests.sim import gang_world
from tests.sim.gang_world import run

SEEDS = 60  # of the suite; `make sim` runs 5,000


def run_all(seeds: int = SEEDS) -> list[gang_world.World]:
    return [run(seed) for seed in range(seeds)]


def test_gangs_start_whole_hold_no_slot_beyond_the_lease_and_all_end():
    worlds = run_all()
    ends = [owner.result for world in worlds for owner in world.owners.values()]
    assert all(isinstance(end, epochs.Succeed) for end in ends), [end for end in ends if isinstance(end, epochs.Fail)]
    assert sum(owner.machine.epoch > 1 for world in worlds for owner in world.owners.values()) > SEEDS / 4
    assert any(owner.machine.gone for world in worlds for owner in world.owners.values())
    assert sum(len(world.begun) for world in worlds) > SEEDS * gang_world.GANGS  # some tries were aborted


def test_the_simulation_sees_leases_that_never_end(monkeypatch: pytest.MonkeyPatch):
    def tick(self: slots.ReservedSlots, now: float) -> list[slots.Answer]:
        over = [txn for txn, r in self._requests.items() if not r.left and now >= r.patient_until_s]
        return [answer for txn in over for answer in self.release(txn)]

    monkeypatch.setattr(slots.ReservedSlots, "tick", tick)
    with pytest.raises(AssertionError, match=r"holds \d+ for"):
        run_all()


def test_the_simulation_sees_gangs_that_wait_for_each_other(monkeypatch: pytest.MonkeyPatch):
    """Two gangs are promised the same slots, and nodes wait for the rest without losing patience."""

    def try_(self: scheduler.GangScheduler, nodes: Sequence[Candidate], taken: dict[str, int], now: float) -> object:
        return whole(self, nodes, _Forgetful(), now)

    whole = scheduler.GangScheduler._try
    monkeypatch.setattr(scheduler.GangScheduler, "_try", try_)
    monkeypatch.setattr(scheduler, "PATIENCE_S", 400.0)
    monkeypatch.setattr(scheduler, "PATIENCE_MOST_S", 400.0)
    with pytest.raises(AssertionError, match="no end after healing"):
        run_all()


class _Forgetful(dict[str, int]):
    """Promises that nobody remembers."""

    def __setitem__(self, node: str, slots: int) -> None:
        return


def test_the_simulation_sees_a_coordinator_that_commits_with_a_vote_missing(monkeypatch: pytest.MonkeyPatch):
    def carry_on(self: twophase.Coordinator, transaction: object, round_: twophase._Round, now: float) -> list[object]:
        if round_.yes:
            round_.yes |= set(round_.participants)
        return whole(self, transaction, round_, now)

    whole = twophase.Coordinator._carry_on
    monkeypatch.setattr(twophase.Coordinator, "_carry_on", carry_on)
    with pytest.raises(AssertionError, match="never held the slots"):
        run_all()


def test_the_simulation_sees_an_owner_that_takes_messages_of_an_old_epoch(monkeypatch: pytest.MonkeyPatch):
    def handle(self: epochs.Epochs, event: epochs.Event, now: float) -> list[epochs.Effect]:
        if isinstance(event, epochs.Ready):
            event = epochs.Ready(self.epoch, event.rank, event.address)
        return whole(self, event, now)

    whole = epochs.Epochs.handle
    monkeypatch.setattr(epochs.Epochs, "handle", handle)
    with pytest.raises(AssertionError, match="was told"):
        run_all()


def test_the_simulation_sees_a_gpu_that_is_given_to_two_ranks(monkeypatch: pytest.MonkeyPatch):
    def take(self: slots.ReservedSlots, gang: str, rank: Demand) -> tuple[str, ...] | None:
        gpus = whole(self, gang, rank)
        for request in self._requests.values():
            if request.wanted.gang == gang:
                request.gpus = (*(gpus or ()), *request.gpus)
        return gpus

    whole = slots.ReservedSlots.take
    monkeypatch.setattr(slots.ReservedSlots, "take", take)
    with pytest.raises(AssertionError, match=r"n\d gives \["):
        run_all()


if __name__ == "__main__":
    import sys

    for number in range(int(sys.argv[1])):
        run(number)
    print(f"{sys.argv[1]} seeds hold")
