"""One job's tasks and batches, as rows of the owner's table.

Rules: a task's state is one byte; waiting tasks stand in intervals, in the order in which they will be sent. A batch
that is over stays in the history for the stories, the last `HISTORY_LIMIT` of each job.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from kos_cluster.core.batching import Durations
from kos_cluster.core.ownerevents import JobSpec
from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import Attempt, AttemptEnd, Runs, TaskState, indices_of, runs_of

HISTORY_LIMIT = 4096  # batches remembered per job

WAITING, SENT, DONE, FAILED, CANCELLED = range(5)
STATES = (TaskState.WAITING, TaskState.SENT, TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED)


@dataclass(slots=True)
class BatchRow:
    """Tasks that were sent together. Times are the owner's clock."""

    number: int
    job: JobRow
    node: str
    runs: Runs  # as sent
    left: set[int]  # without an outcome yet
    attempt: int
    sent_s: float
    heard_s: float  # when it was sent, or its newest outcome came
    chosen: str = ""  # what spoke for its node
    asked_s: float = -math.inf  # when its node was asked for what has not begun
    started_s: float | None = None
    ended_s: float | None = None
    waits: bool = False  # it lends its slots
    ends: dict[int, AttemptEnd] = field(default_factory=dict)  # of tasks that did not end DONE
    cause: str = ""

    def owes(self, runs: Runs) -> Runs:
        """Those of `runs` that this batch still owes and that are not final."""
        state, left = self.job.state, self.left
        if len(runs) == 1 and runs[0][1] == 1:  # a lone task, as of a lone submit
            return list(runs) if runs[0][0] in left and state[runs[0][0]] == SENT else []
        if all(state.count(SENT, start, start + count) == count for start, count in runs):
            wanted = set(indices_of(runs))
            if wanted <= left:
                return list(runs)
        return runs_of(index for index in indices_of(runs) if index in left and state[index] == SENT)

    def gives_back(self, runs: Runs) -> None:
        """These were never begun there, and it is no attempt at them."""
        back = set(indices_of(runs))
        self.left -= back
        self.runs = runs_of(index for index in indices_of(self.runs) if index not in back)

    def ended_as(self, runs: Runs, end: AttemptEnd) -> None:
        """Note how the attempt ended for these tasks."""
        self.ends.update(dict.fromkeys(indices_of(runs), end))

    def hold_again(self, index: int, cause: str) -> bool:
        """A task of this batch did not begin for want of its input: it waits, held. False when it is not owed."""
        if not self.owes([(index, 1)]):
            return False
        self.left.discard(index)
        self.ends[index] = AttemptEnd.INPUT_LOST
        self.cause = self.cause or cause
        job = self.job
        job.mark([(index, 1)], WAITING)
        job.held.add(index)
        job.held_attempt[index] = job.next_attempt(index, self.attempt)
        job.sent -= 1
        job.waiting += 1
        job.reruns += 1
        return True

    def attempt_of(self, index: int, node: str) -> Attempt:
        """This batch as one attempt of a task, with the node's name."""
        end = self.ends.get(index, AttemptEnd.OPEN if index in self.left else AttemptEnd.DONE)
        started = self.started_s if end is not AttemptEnd.RETURNED else None
        cause = self.cause if end not in (AttemptEnd.DONE, AttemptEnd.OPEN) else ""
        return Attempt(self.attempt, node, self.sent_s, started, self.ended_s, end, cause, chosen=self.chosen)


@dataclass(slots=True)
class JobRow:
    """A job: its tasks' states, the waiting ones in turn, its batches, its counts."""

    spec: JobSpec
    since_s: float
    state: bytearray = field(default_factory=bytearray)
    pending: deque[tuple[int, int, int]] = field(default_factory=deque)  # (start, stop, attempt)
    held: set[int] = field(default_factory=set)  # waiting tasks that are not pending yet
    held_attempt: dict[int, int] = field(default_factory=dict)  # of those that were sent before: the next one's number
    reads: dict[int, Inputs] = field(default_factory=dict)  # by tasks that are not final, beside what all of them read
    batches: dict[int, BatchRow] = field(default_factory=dict)
    history: deque[BatchRow] = field(default_factory=lambda: deque(maxlen=HISTORY_LIMIT))
    durations: Durations = field(default_factory=Durations)
    lost_to_memory: dict[int, int] = field(default_factory=dict)
    size_bytes: int = 0  # of all payloads so far
    waiting: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    reruns: int = 0  # tasks that were sent again because an attempt was lost
    nodes: set[str] = field(default_factory=set)  # where any of it ever ran
    at: dict[str, int] = field(default_factory=dict)  # id of a node -> batches of it there now
    waits_for: str = ""  # of a gang: why its ranks have no slots yet
    last_node: str = ""  # id of the node that took the newest batch
    held_since_s: float | None = None  # it waits for the node of its inputs
    unplaced_since_s: float | None = None  # no node could take its next batch

    @property
    def next_reads(self) -> Inputs | None:
        """What the next waiting task reads by itself."""
        return self.reads.get(self.pending[0][0]) if self.reads and self.pending else None

    @property
    def idle(self) -> bool:
        return self.waiting == 0 and self.sent == 0

    def sent_to(self, node: str) -> None:
        """One more of its batches is at this node."""
        self.last_node = node
        self.nodes.add(node)
        self.at[node] = self.at.get(node, 0) + 1

    def gone_from(self, node: str) -> None:
        """One batch fewer is there."""
        self.at[node] -= 1
        if not self.at[node]:
            del self.at[node]

    def add(self, count: int, size_bytes: int, *, held: bool = False) -> None:
        """Append `count` waiting tasks."""
        start = len(self.state)
        self.size_bytes += size_bytes
        self.state.extend(bytes(count))
        self.waiting += count
        if held:
            self.held.update(range(start, start + count))
        else:
            self._append(start, start + count)

    def release(self, runs: Runs, size_bytes: int, reads: Inputs | None) -> None:
        """Those of these tasks that are held may be sent; each reads this."""
        self.size_bytes += size_bytes
        for index in [index for index in indices_of(runs) if index in self.held_attempt]:
            self.held.discard(index)
            self.pending.appendleft((index, index + 1, self.held_attempt.pop(index)))
        for start, count in runs_of(index for index in indices_of(runs) if index in self.held):
            self.held.difference_update(range(start, start + count))
            if reads is not None:
                self.reads.update(dict.fromkeys(range(start, start + count), reads))
            self._append(start, start + count)

    def fail_held(self, index: int) -> None:
        """A held task fails without having been sent."""
        if index in self.held:
            self.held.discard(index)
            self.held_attempt.pop(index, None)
            self.state[index] = FAILED
            self.waiting -= 1
            self.failed += 1

    def _append(self, start: int, stop: int) -> None:
        """Waiting tasks go to the end of the line."""
        if self.pending and self.pending[-1][1] == start and self.pending[-1][2] == 1:
            start = self.pending.pop()[0]
        self.pending.append((start, stop, 1))

    def take(self, size: int) -> tuple[Runs, int]:
        """Cut up to `size` waiting tasks of one attempt number from the front; they count as sent."""
        attempt = self.pending[0][2]
        runs: list[tuple[int, int]] = []
        taken = 0
        while taken < size and self.pending and self.pending[0][2] == attempt:
            start, stop, _ = self.pending.popleft()
            count = min(size - taken, stop - start)
            runs.append((start, count))
            taken += count
            if start + count < stop:
                self.pending.appendleft((start + count, stop, attempt))
        self.mark(runs, SENT)
        self.waiting -= taken
        self.sent += taken
        return sorted(runs), attempt

    def put_back(self, runs: Runs, attempt: int) -> None:
        """Sent tasks wait again, in front: they have waited longest."""
        count = 0
        for start, length in reversed(runs):
            self.pending.appendleft((start, start + length, attempt))
            count += length
        self.mark(runs, WAITING)
        self.waiting += count
        self.sent -= count

    def may_run_again(self, index: int) -> bool:
        """Whether a task is done and has tries left."""
        done = 0 <= index < len(self.state) and self.state[index] == DONE
        return done and not self.spec.gang and self._last_attempt(index) <= self.spec.retries

    def run_again(self, index: int, cause: str) -> bool:
        """A task that is done waits again, as its result is lost for this cause. False when it has no tries left."""
        if not self.may_run_again(index):
            return False
        attempt = self._last_attempt(index)
        for batch in self.all_batches():
            if holds(batch.runs, index) and index not in batch.left | batch.ends.keys():
                batch.ends[index] = AttemptEnd.RESULT_LOST
                batch.cause = batch.cause or cause
        self.done -= 1
        self.waiting += 1
        self.reruns += 1
        self.state[index] = WAITING
        self.pending.appendleft((index, index + 1, attempt + 1))
        return True

    def next_attempt(self, index: int, after: int) -> int:
        """The number for another attempt at a task, after this one; a second copy of it has had a higher one."""
        return 1 + (self._last_attempt(index) if self.spec.speculate else after)

    def _last_attempt(self, index: int) -> int:
        """The number of a task's newest attempt, as far as batches are remembered."""
        return max((batch.attempt for batch in self.all_batches() if holds(batch.runs, index)), default=1)

    def settle(self, runs: Runs, state: int) -> int:
        """Sent tasks become final; gives how many."""
        count = self.mark(runs, state)
        self.sent -= count
        return count

    def skip(self, runs: Runs) -> None:
        """Waiting tasks have their results already."""
        if runs:
            count = self.mark(runs, DONE)
            self.waiting -= count
            self.done += count
            self._unqueue(set(indices_of(runs)))

    def drop(self, runs: Runs) -> int:
        """Waiting or sent tasks are cancelled; gives how many."""
        dropped = set(indices_of(runs))
        for index in dropped:
            if self.state[index] == WAITING:
                self.waiting -= 1
            else:
                self.sent -= 1
            self.state[index] = CANCELLED
            self.reads.pop(index, None)
            self.held_attempt.pop(index, None)
        self.cancelled += len(dropped)
        self.held -= dropped
        if dropped:
            self._unqueue(dropped)
        return len(dropped)

    def mark(self, runs: Runs, state: int) -> int:
        """Set the state of these tasks; gives how many they are."""
        total = 0
        for start, count in runs:
            self.state[start : start + count] = bytes((state,)) * count
            total += count
            for index in range(start, start + count) if self.reads and state > SENT else ():
                self.reads.pop(index, None)
        return total

    def all_batches(self) -> Iterable[BatchRow]:
        """Those that are over, as far as they are remembered, then those that are not."""
        return (*self.history, *self.batches.values())

    def attempts_of(self, indices: Collection[int], name: Callable[[str], str]) -> dict[int, list[Attempt]]:
        """Each of these tasks' attempts in order, as far as batches are remembered; `name` names a node by its id."""
        found: dict[int, list[Attempt]] = {index: [] for index in indices}
        wanted = sorted(found)
        for batch in self.all_batches():
            for start, count in batch.runs:
                for index in wanted[bisect_left(wanted, start) : bisect_left(wanted, start + count)]:
                    found[index].append(batch.attempt_of(index, name(batch.node)))
        for attempts in found.values():
            attempts.sort(key=lambda a: (a.sent_s, a.number))
        return found

    def _unqueue(self, dropped: set[int]) -> None:
        kept: deque[tuple[int, int, int]] = deque()
        for start, stop, attempt in self.pending:
            if dropped.isdisjoint(range(start, stop)):
                kept.append((start, stop, attempt))
            else:
                left = runs_of(index for index in range(start, stop) if index not in dropped)
                kept.extend((first, first + count, attempt) for first, count in left)
        self.pending = kept


def holds(runs: Iterable[tuple[int, int]], index: int) -> bool:
    """Whether an index is in a run list."""
    return any(start <= index < start + count for start, count in runs)
