"""The errors for tasks that were given up without an outcome of their own."""

from __future__ import annotations

from kos_cluster.core.records import AttemptEnd
from kos_cluster.errors import KosError, TaskLostError, TaskTimeoutError


def loss_error(task: str, end: AttemptEnd, node: str, attempts: int, detail: str) -> KosError:
    """What to raise for a task whose last attempt ended so. `detail` names the cause as the node told it."""
    tries = f"{attempts} attempt{'s' if attempts != 1 else ''}"
    look = f"Type 'kos story {task}' for its attempts."
    detail = detail.rstrip(".")  # it stands within a sentence
    match end:
        case AttemptEnd.TIMEOUT:
            return TaskTimeoutError(f"Task {task} ran longer than its timeout on {node} and was stopped.", look)
        case AttemptEnd.OUT_OF_MEMORY:
            return TaskLostError(
                f"Task {task} ran out of memory on {node}: the kernel killed its worker ({tries}; {detail}).",
                f"Run it with memory= or on a larger node. {look}",
            )
        case AttemptEnd.MEMORY_LIMIT:
            return TaskLostError(
                f"Task {task} was stopped on {node}, because its worker took too much memory: {detail} ({tries}).",
                f"Run it with a larger memory=. {look}",
            )
        case AttemptEnd.NODE_LOST:
            return TaskLostError(f"Task {task} was lost with node {node} ({tries}; {detail}).", look)
        case AttemptEnd.RETURNED:
            return TaskLostError(f"Node {node} did not take {task}: {detail}.", look)
        case AttemptEnd.FAILED:
            return TaskLostError(f"Task {task} could not be set up on {node}: {detail}.", look)
        case _:
            cause = f"{detail}, cause unknown" if detail.startswith("SIGKILL") else detail
            return TaskLostError(f"The worker of task {task} on {node} died ({tries}; {cause}).", look)
