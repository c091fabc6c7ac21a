"""How programs share real nodes: turns, priorities, work taken back from busy nodes."""

from __future__ import annotations

import time

import pytest

from kos_cluster.errors import UsageError
from kos_cluster.tasks.mapresult import MapResult
from tests.mesh.conftest import Mesh, until

FLOOD = 4_000  # tasks of `FLOOD_TASK_S` each: minutes of all slots
FLOOD_TASK_S = 0.05


def done(mesh: Mesh, result: MapResult) -> int:
    return next(job.done for job in mesh.cluster.own_jobs() if job.job == result.job)


def test_a_single_task_of_another_program_waits_for_no_flood(mesh: Mesh):
    flood = mesh.cluster.map(time.sleep, [FLOOD_TASK_S] * FLOOD)
    first = iter(flood)
    next(first)
    program = mesh.program("import kos_cluster as kos; print(kos.connect().submit(pow, 2, 10).result(60))")
    out, err = program.communicate(timeout=60)
    assert out == "1024\n", err
    assert done(mesh, flood) < FLOOD / 2
    flood.cancel()


def test_a_higher_priority_has_the_larger_share(mesh: Mesh):
    jobs = [mesh.cluster.map(time.sleep, [0.02] * FLOOD, priority=priority) for priority in (0, 3)]
    next(iter(jobs[1]))
    until(lambda: done(mesh, jobs[1]) >= 160, "160 tasks of the higher priority", 60)
    low, high = (done(mesh, job) for job in jobs)
    for job in jobs:
        job.cancel()
    assert 0 < low < high / 2


@pytest.mark.parametrize("priority", [11, -11, 1.5, "high", True])
def test_a_priority_that_is_none_is_refused(mesh: Mesh, priority: object):
    with pytest.raises(UsageError, match="is not a whole number from -10 to 10"):
        mesh.cluster.submit(abs, -1, priority=priority)
