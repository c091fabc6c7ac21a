"""The tasks of one job, a window at a time: which there are of each state, and the rows of those that are in sight.

Theory of operation. Of its own jobs this process knows each task: a byte a task, which is counted and searched as an
array, and the attempts of those in the window. Of the jobs of others the nodes are asked for the stories, which they
keep of the last tasks that they ran; a task without a story has not run. Such an answer is kept for `KEPT_S`.

Limits: `WINDOW_LIMIT` rows a window; of a job of others the nodes' `node.history` limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from kos_cluster.core.jobrows import STATES
from kos_cluster.core.records import AttemptEnd, Story, TaskState
from kos_cluster.tasks.cluster import Cluster

WINDOW_LIMIT = 200  # rows asked for at once
KEPT_S = 2.0  # for which the stories of another's job are not asked for again
_CODES = {state: code for code, state in enumerate(STATES)} | {TaskState.RUNNING: STATES.index(TaskState.SENT)}


class TaskRow(msgspec.Struct, frozen=True):
    """One task. `took_s` is the time of its last attempt, or since that began; `attempts` is how many it had."""

    index: int
    state: str
    node: str
    attempts: int
    took_s: float | None
    cause: str


class Window(msgspec.Struct, frozen=True):
    """Rows `offset` and on of the `matching` tasks that were asked for. `counts`: of each state, of all tasks."""

    job: str
    offset: int
    matching: int
    counts: Mapping[str, int]
    rows: tuple[TaskRow, ...]


class TaskList:
    """Windows on the tasks of jobs."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: tuple[str, float, dict[int, Story]] = ("", 0.0, {})

    def window(
        self,
        cluster: Cluster,
        job: str,
        total: int,
        state: str = "",
        search: str = "",
        offset: int = 0,
        count: int = 50,
    ) -> Window:
        """The tasks of a job of `total` tasks in this state (any, if empty) whose index begins with `search`.

        Raises KosError when no node can be asked.
        """
        stories: dict[int, Story] | None = None
        known = cluster.states(job)
        if known:
            codes = np.frombuffer(known, dtype=np.uint8)
        else:
            stories = self._stories(cluster, job)
            codes = _codes(stories, total)
        found = matching(codes, state, search)
        shown = [int(index) for index in found[max(0, offset) : max(0, offset) + min(count, WINDOW_LIMIT)]]
        if stories is None:
            stories = {_index(story): story for story in cluster.own_stories(job, shown)}
        rows = tuple(_row(index, STATES[codes[index]], stories.get(index), self._clock()) for index in shown)
        return Window(job, offset, len(found), counts(codes), rows)

    def _stories(self, cluster: Cluster, job: str) -> dict[int, Story]:
        kept, until_s, stories = self._kept
        if kept != job or self._clock() >= until_s:
            stories = {_index(story): story for story in cluster.stories(job)}
            self._kept = job, self._clock() + KEPT_S, stories
        return stories


def counts(codes: npt.NDArray[np.uint8]) -> dict[str, int]:
    """How many tasks are in each state."""
    numbers = np.bincount(codes, minlength=len(STATES))
    return {str(state): int(number) for state, number in zip(STATES, numbers, strict=True)}


def matching(codes: npt.NDArray[np.uint8], state: str, search: str) -> npt.NDArray[np.intp]:
    """The indices of the tasks in this state (any, if empty) whose index, as it is written, begins with `search`."""
    names = [str(each) for each in STATES]
    if state in names:
        found: npt.NDArray[np.intp] = np.flatnonzero(codes == names.index(state))
    else:
        found = np.arange(len(codes))
    if not search:
        return found
    if not (search.isascii() and search.isdigit()):
        return found[:0]
    hit = np.zeros(len(found), dtype=bool)
    start, width = int(search), 1
    while start < len(codes) and (start or width == 1):
        hit |= (found >= start) & (found < start + width)
        start, width = start * 10, width * 10
    return found[hit]


def _codes(stories: Mapping[int, Story], total: int) -> npt.NDArray[np.uint8]:
    codes = np.zeros(max(total, max(stories, default=-1) + 1), dtype=np.uint8)
    for index, story in stories.items():
        codes[index] = _CODES[story.state]
    return codes


def _row(index: int, state: TaskState, story: Story | None, now: float) -> TaskRow:
    if story is None or not story.attempts:
        return TaskRow(index, str(state), "", 0, None, "")
    last = story.attempts[-1]
    began_s = last.started_s or last.sent_s
    took_s = max(0.0, (last.ended_s or now) - began_s) if last.ended_s or last.end is AttemptEnd.OPEN else None
    return TaskRow(index, str(story.state), last.node, last.number, took_s, last.cause)


def _index(story: Story) -> int:
    return int(story.task.rpartition(".")[2])
