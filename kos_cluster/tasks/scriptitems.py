"""In the workers of a script's pools: what runs around each task, and what sets such a worker up.

Theory of operation. `set_up` is the worker's initializer: it gives the script's globals the values that they had where
the pool was made, as a child of `fork` has them, then runs the pool's own initializer. `run_item` wraps each task: with
its outcome it reports the files that it wrote in the worker's copy of the script's folder.

Rules: what a worker writes while it is being set up stays with it; otherwise all of them would bring the same files.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kos_cluster.tasks import context, failures, sharedobjects
from kos_cluster.tasks.changes import Tracker, describe
from kos_cluster.tasks.workspace import workspace_around

_tracker: Tracker | None = None
_tracked = False


class ItemReport(NamedTuple):
    """What `run_item` returns: the value or the failure, and the files that the task wrote."""

    value: Any
    failure: failures.Failure | None = None
    changes: bytes | None = None


def set_up(
    variables: Mapping[str, bytes], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """Set this worker up for a pool. `variables` are globals of the script, and attributes of these, as
    `scriptglobals` names and pickles them."""
    main = sys.modules["__main__"]
    for path, data in variables.items():
        owner, _, name = path.rpartition(".")
        if not owner:
            _bind(main, name, data)
        elif hasattr(main, owner):
            with contextlib.suppress(AttributeError, TypeError):  # there are classes that refuse, as loading made them
                _bind(getattr(main, owner), name, data)
    if initializer is not None:
        initializer(*initargs)


def _bind(owner: object, name: str, data: bytes) -> None:
    """Unless it is bound to an equal value, which others here may have taken already, as their defaults, say."""
    try:
        unchanged = sharedobjects.dumps(getattr(owner, name)) == data
    except Exception:  # it has no such name, or a value that cannot be compared so
        unchanged = False
    if not unchanged:
        setattr(owner, name, pickle.loads(data))


def run_item(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ItemReport:
    """Run one task, and report the files that it wrote in the worker's copy of the folder."""
    tracker = _tracker_here()
    try:
        value = fn(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        changes = _written(tracker)
        here = context.current()
        if changes is None or here is None:
            raise
        failure = failures.failure_of(error, node=here.node, task=here.task, attempt=here.attempt)
        return ItemReport(None, failure, changes)
    return ItemReport(value, None, _written(tracker))


def _tracker_here() -> Tracker | None:
    """The tracker of this worker's folder, made before its first task."""
    global _tracker, _tracked
    if not _tracked:
        _tracked = True
        folder = workspace_around(Path.cwd())
        if folder is not None:
            _tracker = Tracker(folder)
            _tracker.take()  # what setting up has written stays here
    return _tracker


def _written(tracker: Tracker | None) -> bytes | None:
    if tracker is None:
        return None
    taken = tracker.take()
    if taken.left_out:
        print(f"kos: not everything that was written came back: {describe(taken.left_out)}", file=sys.stderr)
    return taken.archive
