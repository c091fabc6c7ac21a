"""What a question of the front end is answered with: the model, the cluster, and the values that came with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, TypeVar

import msgspec

from kos_cluster.errors import UsageError
from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.tasklist import TaskList
from kos_cluster.tasks.cluster import Cluster

T = TypeVar("T")
Question = Mapping[str, Any]


class Desk(msgspec.Struct, frozen=True):
    """`lock` guards the model. `cluster()` raises KosError when none answers."""

    model: Model
    lock: RLock
    cluster: Callable[[], Cluster]
    tasks: TaskList


Answer = Callable[[Desk, Question], Any]


def asked(question: Question, kind: type[T]) -> T:
    """The question as a value of this kind. Raises UsageError for what no front end of ours asks."""
    try:
        return msgspec.convert(question, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"The monitor was asked for something that it cannot answer: {error}.") from None
