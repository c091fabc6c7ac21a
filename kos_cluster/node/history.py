"""What this node remembers of the tasks it ran: attempts for `kos story`, the last output for `kos logs`.

Limits: `BATCHES_LIMIT` batches, `LOGS_LIMIT` tasks' output of `LOG_TAIL_BYTES` each, what `TAKERS_LIMIT` tasks take,
and what `CAUSES_LIMIT` tasks raised; the oldest go first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from kos_cluster.core.records import (
    INPUTS_TOLD_LIMIT,
    Attempt,
    AttemptEnd,
    Runs,
    Story,
    TaskState,
    count_of,
    indices_of,
)

BATCHES_LIMIT = 8192
LOGS_LIMIT = 2048
TAKERS_LIMIT = 20_000  # tasks of which it is remembered whose results they take
CAUSES_LIMIT = 2048  # failed tasks of which it is remembered what they raised
CHOSEN_LIMIT_CHARACTERS = 240  # of what an owner tells of a batch
LOG_TAIL_BYTES = 16 << 10
STORIES_LIMIT = 10_000  # told in one answer


@dataclass(slots=True)
class BatchRecord:
    """One batch that was here. Times are Unix seconds."""

    job: str
    name: str
    runs: Runs
    attempt: int
    arrived_s: float
    started_s: float | None = None
    ended_s: float | None = None
    ends: dict[int, AttemptEnd] = field(default_factory=dict)  # of tasks that did not end DONE
    done: bool = False
    cause: str = ""
    received_bytes: int = 0
    returned_bytes: int = 0
    peak_memory_bytes: int = 0  # of its worker's process
    earlier: dict[int, list[Attempt]] = field(default_factory=dict)  # attempts on other nodes, told by the owner
    waits: str = ""  # for what, while it runs
    chosen: str = ""  # what spoke for this node, as the owner told

    def attempt_of(self, index: int, node: str) -> Attempt:
        end = self.ends.get(index, AttemptEnd.DONE if self.done else AttemptEnd.OPEN)
        failed = end not in (AttemptEnd.DONE, AttemptEnd.OPEN)
        count = count_of(self.runs)
        return Attempt(
            number=self.attempt,
            node=node,
            sent_s=self.arrived_s,
            started_s=self.started_s,
            ended_s=self.ended_s,
            end=end,
            cause=self.cause if failed else self.waits if end is AttemptEnd.OPEN else "",
            received_bytes=self.received_bytes // count,
            returned_bytes=self.returned_bytes // count,
            peak_memory_bytes=self.peak_memory_bytes,
            chosen=self.chosen,
        )


_STATE_OF_END = {
    AttemptEnd.OPEN: TaskState.SENT,
    AttemptEnd.DONE: TaskState.DONE,
    AttemptEnd.CANCELLED: TaskState.CANCELLED,
    AttemptEnd.RETURNED: TaskState.WAITING,
}


class History:
    """The memory of the node named `node`."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._batches: deque[BatchRecord] = deque(maxlen=BATCHES_LIMIT)
        self._logs: OrderedDict[str, bytearray] = OrderedDict()
        self._inputs: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # task -> those whose results it takes
        self._causes: OrderedDict[str, str] = OrderedDict()  # task -> what it raised

    def arrived(self, record: BatchRecord, inputs: Mapping[int, tuple[str, ...]] | None = None) -> None:
        """A batch came; `inputs`: the tasks whose results its tasks take, of those that take any."""
        self._batches.append(record)
        for index, taken in (inputs or {}).items():
            self._inputs[f"{record.job}.{index}"] = taken[:INPUTS_TOLD_LIMIT]
        while len(self._inputs) > TAKERS_LIMIT:
            self._inputs.popitem(last=False)

    def wrote(self, task: str, data: bytes) -> None:
        tail = self._logs.get(task)
        if tail is None:
            tail = self._logs[task] = bytearray()
            if len(self._logs) > LOGS_LIMIT:
                self._logs.popitem(last=False)
        tail += data
        if len(tail) > LOG_TAIL_BYTES:
            del tail[:-LOG_TAIL_BYTES]

    def raised(self, job: str, causes: Mapping[int, str]) -> None:
        """What tasks have raised, in a line each."""
        for index, cause in causes.items():
            self._causes[f"{job}.{index}"] = cause
        while len(self._causes) > CAUSES_LIMIT:
            self._causes.popitem(last=False)

    def tail(self, task: str, lines: int) -> str:
        """The last lines that a task wrote."""
        text = self._logs.get(task, b"").decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def logs(self, wanted: str) -> list[tuple[str, bytes]]:
        """The kept output of a task, or of every task of a job."""
        return [(task, bytes(data)) for task, data in self._logs.items() if _asked(wanted, task)]

    def jobs(self) -> list[str]:
        """The ids of the jobs whose stories can be told, the newest last."""
        return list(dict.fromkeys(record.job for record in reversed(self._batches)))[::-1]

    def stories(self, wanted: str) -> list[Story]:
        """What is known here of a task, or of every task of a job (the last `STORIES_LIMIT`)."""
        job, _, index_text = wanted.partition(".")
        only = int(index_text) if index_text.isascii() and index_text.isdigit() else None
        attempts: dict[int, list[Attempt]] = {}
        names: dict[int, str] = {}
        for record in self._batches:
            if record.job != job:
                continue
            for index in indices_of(record.runs):
                if only is None or index == only:
                    row = attempts.setdefault(index, [])
                    row.extend(a for a in record.earlier.get(index, ()) if a not in row)
                    row.append(record.attempt_of(index, self._node))
                    names[index] = record.name
        told = sorted(attempts)[-STORIES_LIMIT:]
        return [self._story(f"{job}.{index}", names[index], attempts[index]) for index in told]

    def _story(self, task: str, name: str, attempts: list[Attempt]) -> Story:
        attempts.sort(key=lambda a: (a.sent_s, a.number))
        last = attempts[-1]
        if last.end is AttemptEnd.FAILED and not last.cause:
            attempts[-1] = msgspec.structs.replace(last, cause=self._causes.get(task, ""))
        state = _STATE_OF_END.get(last.end, TaskState.FAILED)
        if last.end is AttemptEnd.OPEN and last.started_s is not None:
            state = TaskState.RUNNING
        return Story(task, name, state, tuple(attempts), self._inputs.get(task, ()))


def _asked(wanted: str, task: str) -> bool:
    return task == wanted or task.partition(".")[0] == wanted
