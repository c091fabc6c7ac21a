"""A cell at its node: what the notebook submits, and what comes back.

Rules: the module is imported by name in workers, so it must not change between notebook and node (same KOS version).
A cell that fails raises `CellError` and returns nothing. Only the user's own frames are in its traceback. Running a
cell leaves the worker as it was: `__main__`, `input` and the variables are put back.
"""

from __future__ import annotations

import builtins
import contextlib
import getpass
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec

from kos_cluster.errors import RankGoneError, UsageError
from kos_kernel.magics.digest import digests
from kos_kernel.magics.names import OWN_NAMES
from kos_kernel.magics.travel import Parcel, Unpacking, pack_what_can

INLINE_BACKEND = "module://matplotlib_inline.backend_inline"
ERROR_LIMIT_BYTES = 128 << 10  # of a cell's exception when packed; a larger one travels as its text
TEXT_LIMIT = 32 << 10  # characters of a cell's traceback; of a longer one the end
VALUE = "the value"  # under which an item's last expression is packed, or a cell's error


class Answer(msgspec.Struct, frozen=True):
    """What a cell gives back. `known` are memo positions, in the parcel that was sent, of what `parcel` refers to."""

    parcel: Parcel
    known: list[int]
    left_out: dict[str, str]  # name -> why it stays on the node
    changed: list[str] = []  # of an item: shared variables that it changed in place, to no effect


class CellError(Exception):
    """The user's cell raised. Carries the formatted traceback, and the exception itself packed when it can travel."""

    def __init__(self, summary: str, text: str, where: str, answer: Answer | None) -> None:
        super().__init__(summary, text, where, answer)
        self.summary = summary
        self.text = text
        self.where = where
        self.answer = answer

    def __str__(self) -> str:
        return self.summary


class RemoteCell:
    """A cell with the variables that it reads; calling it, in a worker, runs it.

    Without arguments it is a single cell. With an index and a packed item it is one element of `--over`: then the
    variables are unpacked once a worker, and again only when an element has changed them.
    """

    def __init__(
        self, source: str, parcel: Parcel, value_back: bool = False, imports: types.CodeType | None = None
    ) -> None:
        self.source = source
        self.parcel = parcel
        self.value_back = value_back
        self.imports = imports  # never run: import statements, which tell placement what the cell needs
        self._stage: _Stage | None = None

    def __reduce__(self) -> Any:
        return RemoteCell, (self.source, self.parcel, self.value_back, self.imports)

    def __call__(self, index: int | None = None, item: Parcel | None = None) -> Answer:
        stage = self._stage or _Stage(self.parcel)
        self._stage = None  # only one that ends clean is used again
        with stage.entered():
            extra = stage.unpack_item(index, item)
            value, error = stage.run(self.source, extra, shown=not self.value_back)
            if isinstance(error, RankGoneError):  # as it is: its gang is to see that another rank has ended first
                raise error
            if error is not None:
                raise stage.failure(error) from None
            if item is None:
                return stage.assignments()
            changed = stage.changed()
            answer = stage.packed({VALUE: value} if self.value_back else {}, changed)
        if not changed:
            stage.reset()
            self._stage = stage
        return answer


class _Stage:
    """A namespace filled from a parcel, ready to run a cell in."""

    def __init__(self, parcel: Parcel) -> None:
        from kos_kernel.magics.shell import remember_source, the_shell

        self.shell = the_shell()
        self.module, self.namespace = self.shell.new_namespace()
        for name, text in parcel.sources.items():
            remember_source(name, text)
        with self.entered():
            unpacking = Unpacking(parcel, self.namespace)
            self.sent = dict(unpacking)
            self.objects = unpacking.objects()
            self.namespace.update(self.sent)
            self.digests = digests(self.namespace, self.sent)
            self.before = dict(self.namespace)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be `__main__`, without a keyboard, drawing figures inline."""
        main = sys.modules["__main__"]
        asking = builtins.input, getpass.getpass
        self.shell.enter(self.module)
        sys.modules["__main__"] = self.module
        builtins.input = getpass.getpass = _no_input
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            builtins.input, getpass.getpass = asking

    def unpack_item(self, index: int | None, item: Parcel | None) -> dict[str, Any]:
        if item is None:
            return {}
        return {"index": index, "item": dict(Unpacking(item, self.namespace))["item"]}

    def run(self, source: str, extra: Mapping[str, Any], shown: bool) -> tuple[Any, BaseException | None]:
        _draw_inline()
        self.namespace.update(extra)
        self.before.update(extra)
        value, error = self.shell.run(source, shown)
        sys.stdout.flush()
        sys.stderr.flush()
        return value, error

    def reset(self) -> None:
        """Forget the assignments of a run that changed nothing in place."""
        self.namespace.clear()
        self.namespace.update(self.before)

    def changed(self) -> list[str]:
        """The sent variables that are still bound and were changed in place."""
        bound = [name for name, value in self.sent.items() if self.namespace.get(name) is value]
        after = digests(self.namespace, bound)
        return [name for name in bound if after[name] != self.digests[name]]

    def assignments(self) -> Answer:
        """What the cell bound, and what it changed in place."""
        changed = self.changed()
        back = {name: self.namespace[name] for name in changed}
        for name, value in self.namespace.items():
            if _comes_back(name) and (name not in self.before or self.before[name] is not value):
                back[name] = value
        return self.packed(back, changed)

    def packed(self, variables: Mapping[str, Any], changed: list[str]) -> Answer:
        """Pack, referring to what was sent and is unchanged instead of sending it back."""
        known = self._unchanged_objects(changed)
        parcel, left_out = pack_what_can(self.namespace, variables, [self.objects[position] for position in known])
        return Answer(parcel, known, left_out, changed)

    def _unchanged_objects(self, changed: list[str]) -> list[int]:
        again = {id(self.sent[name]) for name in changed}
        kept = {id(value) for name, value in self.sent.items() if name not in changed}
        return [
            position
            for position, obj in self.objects.items()
            if id(obj) in kept or (_is_notebook_code(obj) and id(obj) not in again)
        ]

    def failure(self, error: BaseException) -> CellError:
        from kos_cluster.tasks import context
        from kos_cluster.tasks.failures import name_missing_package

        task = context.current()
        for link in _chain(error):
            link.__traceback__ = _users_frames(link.__traceback__)
            if task is not None and isinstance(link, ModuleNotFoundError):
                name_missing_package(link, task.node)
        text = "".join(traceback.format_exception(error)).rstrip("\n")
        where = f"task {task.task} on {task.node}, attempt {task.attempt}" if task else "this process"
        error.__traceback__ = error.__cause__ = error.__context__ = None
        answer = self.packed({VALUE: error}, self.changed())
        summary = "".join(traceback.format_exception_only(error)).strip()
        fits = not answer.left_out and len(answer.parcel.data) <= ERROR_LIMIT_BYTES
        return CellError(summary[:TEXT_LIMIT], text[-TEXT_LIMIT:], where, answer if fits else None)


def _comes_back(name: str) -> bool:
    if name in OWN_NAMES or name in ("_", "__", "___", "_i", "_ii", "_iii"):
        return False
    return not ((name[:2] == "_i" and name[2:].isdigit()) or (name[:1] == "_" and name[1:].isdigit()))


def _is_notebook_code(obj: Any) -> bool:
    return isinstance(obj, (type, types.FunctionType)) and obj.__module__ == "__main__"


def _no_input(prompt: object = "", stream: object = None) -> NoReturn:
    raise UsageError(
        "A cell that runs on the cluster cannot ask for input.",
        "Ask in a cell of its own before it, and use the variable here.",
    )


def _draw_inline() -> None:
    """Figures become displays. Only where matplotlib is loaded already; otherwise the environment sees to it."""
    os.environ["MPLBACKEND"] = INLINE_BACKEND
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is not None and "matplotlib_inline.backend_inline" not in sys.modules:
        matplotlib.use(INLINE_BACKEND)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            pending += [link.__cause__, link.__context__]
            pending += link.exceptions if isinstance(link, BaseExceptionGroup) else ()


def _users_frames(frames: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without frames of KOS and IPython."""
    kept = [frame for frame in _each(frames) if not frame.tb_frame.f_code.co_filename.startswith(_MACHINERY)]
    result = None
    for frame in reversed(kept):
        result = types.TracebackType(result, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return result


def _each(frames: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while frames is not None:
        yield frames
        frames = frames.tb_next


def _machinery() -> tuple[str, ...]:
    import IPython

    import kos_cluster

    folders = [os.path.dirname(os.path.dirname(__file__)), *IPython.__path__, *kos_cluster.__path__]
    return tuple(folder + os.sep for folder in folders)


_MACHINERY = _machinery()
