"""How a task's failure travels from a worker to the owner, and how it is shown there.

Rules: user code's exception comes back as its own type, with the remote traceback as its `__cause__`, headed by node,
task and attempt; frames of KOS's own machinery are left out. An exception that cannot be pickled, or not be rebuilt,
becomes a `RemoteError` that names its type. A failure's size is bounded, whatever the exception holds. To unpickle a
`Failure` runs no user code, as its fields are plain; only `to_exception` unpickles what the user's code raised.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Iterable, Sequence

import msgspec

from kos_cluster.errors import KosError
from kos_cluster.tasks.framing import Segments

TEXT_LIMIT = 64 << 10  # characters of a failure's message, and of its traceback
PICKLE_LIMIT_BYTES = 256 << 10  # of the exception itself
CAUSE_LIMIT = 200  # characters of a failure in one line
FOLD_LIMIT = 10  # distinct failures that a summary lists
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MACHINERY = tuple(os.path.join(_ROOT, package, "") for package in ("kos_cluster", "kos_kernel"))
_PIP_NAMES = {
    "Crypto": "pycryptodome",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}


class Failure(msgspec.Struct, frozen=True):
    """One task's failure, as the outcome that a worker sends."""

    type_name: str  # "module.Type"
    message: str
    pickled: bytes  # the exception; empty when it cannot be pickled
    traceback: str
    node: str
    task: str
    attempt: int
    cancelled: bool = False
    exit_code: int | None = None  # when the task called sys.exit

    @property
    def header(self) -> str:
        return f"node {self.node}, task {self.task}, attempt {self.attempt}"

    @property
    def cause(self) -> str:
        """What was raised, in one line, for the task's story."""
        line = f"{self.type_name}: {' '.join(self.message.split())}".removesuffix(": ")
        return line if len(line) <= CAUSE_LIMIT else f"{line[: CAUSE_LIMIT - 3]}..."


class RemoteTraceback(Exception):
    """The `__cause__` of an exception from a task: where in the task it was raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class RemoteError(KosError):
    """A task raised an exception that cannot be rebuilt here. The message has its type and text."""


class TaskExitedError(KosError):
    """A task called sys.exit. `exit_code` is the code it gave."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[TaskExitedError], tuple[str, str, int]]:
        return type(self), (self.message, self.hint, self.exit_code)


def failure_of(exc: BaseException, *, node: str, task: str, attempt: int, cancelled: bool = False) -> Failure:
    """The failure of a task that raised `exc`; called in the worker, where `exc` still has its traceback."""
    kind = type(exc)
    return Failure(
        type_name=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        message=_clipped(_text_of(exc)),
        pickled=b"" if cancelled or isinstance(exc, SystemExit) else _pickled(exc),
        traceback="" if cancelled else _clipped(remote_traceback(exc)),
        node=node,
        task=task,
        attempt=attempt,
        cancelled=cancelled,
        exit_code=_exit_code(exc) if isinstance(exc, SystemExit) else None,
    )


def to_exception(failure: Failure) -> BaseException:
    """The exception to raise at the owner: of the original type, with the remote traceback as its cause."""
    exc = _rebuilt(failure)
    if isinstance(exc, ModuleNotFoundError):
        _add_own_version(exc)
    if failure.traceback:
        exc.__cause__ = RemoteTraceback(f"{failure.header}\n{failure.traceback}")
    return exc


def fold(exceptions: Iterable[BaseException]) -> str:
    """A summary of many failures: each distinct one once, the most frequent first, with its count."""
    counts: dict[str, int] = {}
    for exc in exceptions:
        line = "".join(traceback.format_exception_only(type(exc), exc)).strip()
        counts[line] = counts.get(line, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    lines = [line if count == 1 else f"{count} times: {line}" for line, count in ordered[:FOLD_LIMIT]]
    if len(ordered) > FOLD_LIMIT:
        rest = sum(count for _, count in ordered[FOLD_LIMIT:])
        lines.append(f"and {rest} more of {len(ordered) - FOLD_LIMIT} other kinds")
    return "\n".join(lines)


def note_others(error: BaseException, others: Sequence[BaseException]) -> None:
    """Add to an error what else has failed meanwhile, equal failures folded into one with a count."""
    if others and isinstance(error, Exception):
        tasks = "another task" if len(others) == 1 else f"{len(others)} other tasks"
        error.add_note(f"{tasks} had failed by then:\n{fold(others)}")


def name_missing_package(exc: ModuleNotFoundError, node: str) -> None:
    """Make the message of a failed import say which node lacks which package, and what to type there."""
    if not exc.name or " on node " in str(exc.msg):
        return
    top = exc.name.partition(".")[0]
    message = (
        f"No module named {exc.name!r} on node {node!r}. "
        f"Type there: {sys.executable} -m pip install {_PIP_NAMES.get(top, top)}"
    )
    exc.msg = message
    exc.args = (message,)


def _add_own_version(exc: ModuleNotFoundError) -> None:
    """Called at the owner, who has the package: say which version, so that the node gets the same."""
    import importlib.metadata

    head, typed, pip_name = str(exc.msg).rpartition(" -m pip install ")
    if not typed or " on node " not in head:
        return
    try:
        version = importlib.metadata.version(pip_name)
    except importlib.metadata.PackageNotFoundError:
        return
    said, where, command = head.partition(". Type there: ")
    exc.msg = f"{said}; here it is {pip_name} {version}{where}{command}{typed}{pip_name}=={version}"
    exc.args = (exc.msg,)


def remote_traceback(exc: BaseException) -> str:
    """The traceback as Python prints it, with its chain, without KOS's own frames."""
    report = traceback.TracebackException.from_exception(exc, compact=True)
    _strip(report, set())
    return "".join(report.format())


# ---- inside


def _strip(report: traceback.TracebackException, seen: set[int]) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    report.stack[:] = [frame for frame in report.stack if not frame.filename.startswith(_MACHINERY)]
    group: list[traceback.TracebackException] | None = getattr(report, "exceptions", None)
    for other in (report.__cause__, report.__context__, *(group or ())):
        if other is not None:
            _strip(other, seen)


def _pickled(exc: BaseException) -> bytes:
    from kos_cluster.tasks.serialise import dumps_result

    try:
        data = _usual_pickle(exc)
        if isinstance(data, bytes) and not _unpickles(data):
            data = dumps_result(_Bare(type(exc), exc.args, vars(exc)))
        if not isinstance(data, bytes) or len(data) > PICKLE_LIMIT_BYTES:  # then its type, with the ends of its text
            data = dumps_result(_Bare(type(exc), (_clipped(_text_of(exc)),), {}))
    except KosError:  # its type and text travel instead
        return b""
    return data if isinstance(data, bytes) and len(data) <= PICKLE_LIMIT_BYTES else b""


def _usual_pickle(exc: BaseException) -> bytes | Segments:
    """As its class says; empty when that fails, as it does for a deep traceback where tblib pickles those, too."""
    from kos_cluster.tasks.serialise import dumps_result

    try:
        return dumps_result(exc)
    except KosError:
        return b""


def _unpickles(data: bytes) -> bool:
    """Whether an exception can be rebuilt the usual way, by calling its type with its `args`; many can't."""
    try:
        return isinstance(pickle.loads(data), BaseException)
    except Exception:  # its own constructor may raise anything
        return False


class _Bare:
    """An exception to be rebuilt without calling its constructor, which wants other arguments than `args`."""

    def __init__(self, kind: type[BaseException], arguments: tuple[object, ...], state: dict[str, object]) -> None:
        self.kind, self.arguments, self.state = kind, arguments, state

    def exception(self) -> BaseException:
        exc = self.kind.__new__(self.kind, *self.arguments)
        exc.args = self.arguments
        exc.__dict__.update(self.state)
        return exc


def _rebuilt(failure: Failure) -> BaseException:
    if failure.cancelled:
        from concurrent.futures import CancelledError

        return CancelledError(f"Task {failure.task} was cancelled on node {failure.node}.")
    if failure.exit_code is not None:
        return TaskExitedError(
            f"Task {failure.task} on node {failure.node} ended itself with sys.exit({failure.message}).",
            exit_code=failure.exit_code,
        )
    if failure.pickled:
        try:
            exc = pickle.loads(failure.pickled)
            if isinstance(exc, _Bare):
                exc = exc.exception()
        except Exception as error:  # its own constructor may raise anything
            return _substitute(failure, f" (it cannot be rebuilt here: {type(error).__name__}: {error})")
        if isinstance(exc, BaseException):
            return exc
    return _substitute(failure, "")


def _substitute(failure: Failure, why: str) -> RemoteError:
    return RemoteError(f"{failure.type_name}: {failure.message}{why}")


def _exit_code(exc: SystemExit) -> int:
    """As the interpreter does: None is 0, a number itself, anything else 1. A plain number, as `_text_of` is plain."""
    if exc.code is None:
        return 0
    return int.__int__(exc.code) if isinstance(exc.code, int) else 1


def _text_of(exc: BaseException) -> str:
    """Its text, of no type of the user's: a failure is unpickled where no user code may run."""
    try:
        return str.__str__(str(exc))
    except Exception as error:  # a user's __str__ may be broken
        return f"<its text cannot be had: {type(error).__name__}>"


def _clipped(text: str) -> str:
    """Keep the start and the end of a text over the limit."""
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n... {len(text) - TEXT_LIMIT} characters left out ...\n{text[-half:]}"
