"""Windows on the tasks of a job: of one's own, and of somebody else's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kos_cluster.core.jobrows import DONE, FAILED, SENT, WAITING
from kos_cluster.core.records import Attempt, AttemptEnd, Story, TaskState
from kos_cluster.services.monitor.tasklist import WINDOW_LIMIT, TaskList, counts, matching

CODES = np.array([DONE, DONE, FAILED, SENT, WAITING] * 30, dtype=np.uint8)


def story(index: int, state: TaskState = TaskState.DONE) -> Story:
    attempt = Attempt(1, "node1", 1.0, 2.0, 5.0, AttemptEnd.DONE)
    return Story(f"j.{index}", "f", state, (attempt,))


class Cluster:
    """What a task list asks of a cluster."""

    def __init__(self, states: bytes = b"", stories: tuple[Story, ...] = ()) -> None:
        self._states, self._stories = states, stories
        self.asked = 0

    def states(self, job: str) -> bytes:
        return self._states

    def own_stories(self, job: str, indices: Any) -> list[Story]:
        self.indices = list(indices)
        return [story(index) for index in indices]

    def stories(self, job: str) -> list[Story]:
        self.asked += 1
        return list(self._stories)


def window(cluster: Cluster, **asked: Any) -> Any:
    return TaskList(clock=lambda: 10.0).window(cluster, "j", 150, **asked)  # type: ignore[arg-type]


def test_tasks_are_counted_by_state() -> None:
    assert counts(CODES) == {"waiting": 30, "sent": 30, "done": 60, "failed": 30, "cancelled": 0}


@pytest.mark.parametrize(
    ("search", "found"),
    [("", 150), ("0", 1), ("1", 61), ("14", 11), ("149", 1), ("150", 0), ("x", 0), ("²", 0), ("-1", 0)],
)
def test_a_search_is_for_the_beginning_of_a_number(search: str, found: int) -> None:
    indices = matching(CODES, "", search)
    assert len(indices) == found
    assert all(str(index).startswith(search) for index in indices)


def test_a_window_of_ones_own_job_asks_nobody_and_tells_only_its_rows() -> None:
    cluster = Cluster(CODES.tobytes())
    shown = window(cluster, state="failed", offset=10, count=3)
    assert [row.index for row in shown.rows] == cluster.indices == [52, 57, 62]
    assert (shown.matching, shown.offset, cluster.asked) == (30, 10, 0)
    assert (shown.rows[0].node, shown.rows[0].took_s) == ("node1", 3.0)


@pytest.mark.parametrize("asked", [{"offset": 10_000}, {"offset": 149, "count": 10}, {"state": "cancelled"}])
def test_beyond_the_end_there_is_nothing(asked: dict[str, Any]) -> None:
    assert len(window(Cluster(CODES.tobytes()), **asked).rows) <= 1


def test_a_window_is_bounded() -> None:
    assert len(window(Cluster(bytes(100_000)), count=100_000).rows) == WINDOW_LIMIT


def test_of_anothers_job_the_nodes_tell_and_are_not_asked_each_time() -> None:
    cluster = Cluster(stories=(story(3), story(7, TaskState.RUNNING)))
    tasks = TaskList(clock=lambda: 10.0)
    for _ in range(3):
        shown = tasks.window(cluster, "j", 20)  # type: ignore[arg-type]
    assert cluster.asked == 1
    assert shown.counts == {"waiting": 18, "sent": 1, "done": 1, "failed": 0, "cancelled": 0}
    assert [row.state for row in shown.rows[:8]] == ["waiting"] * 3 + ["done"] + ["waiting"] * 3 + ["running"]
