"""The IPython shell that runs cells in a worker: no kernel, no terminal, no history.

Rules: what the cell displays leaves as values through `kos_cluster.tasks.context.display`, after everything that it
has printed; nothing is printed here. A failing cell shows nothing: the error is in the execution's result. There is
one shell a process; each cell, or each set of variables, gets a namespace of its own by `new_namespace`.
"""

from __future__ import annotations

import atexit
import base64
import builtins
import json
import linecache
import sys
from types import ModuleType
from typing import Any, cast

from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from kos_cluster.errors import LimitError

CELL_FILE = "<kos cell>"


def send(content: dict[str, Any]) -> None:
    """Send a display to the owner, behind all that was printed before it. One over the limit becomes a sentence."""
    from kos_cluster.tasks import context

    sys.stdout.flush()
    sys.stderr.flush()
    try:
        context.display(json.loads(json.dumps(content, default=_as_json)))
    except LimitError as error:
        print(f"kos: {error}", file=sys.stderr, flush=True)


def _as_json(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    return repr(value)


class CellDisplayPublisher(DisplayPublisher):
    """What `display()` and figures go through."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: Any = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        kind = "update_display_data" if update else "display_data"
        send({"kind": kind, "data": data, "metadata": metadata or {}, "transient": transient or {}})

    def clear_output(self, wait: bool = False) -> None:
        send({"kind": "clear_output", "wait": wait})


class CellDisplayHook(DisplayHook):
    """What the value of the cell's last expression goes through."""

    shown = True  # whether the value is displayed, besides being kept
    silenced = False  # whether the cell ends in a semicolon
    value: Any = None

    def __call__(self, result: Any = None) -> None:
        self.value = result
        if result is None or self.silenced or not self.shown:
            return
        data, metadata = self.compute_format_data(result)
        if data:
            send({"kind": "execute_result", "data": data, "metadata": metadata or {}})


class _CellCompiler(CachingCompiler):
    """Gives every cell one recognisable file name in tracebacks."""

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        return CELL_FILE

    def format_code_name(self, name: str) -> None:
        return None


class CellShell(InteractiveShell):
    """An InteractiveShell whose outputs leave as values and whose errors stay in the result."""

    displayhook_class = CellDisplayHook
    display_pub_class = CellDisplayPublisher
    compiler_class = _CellCompiler

    # A worker neither reads nor makes the account's ~/.ipython.
    def init_ipython_dir(self, ipython_dir: Any) -> None:
        pass

    def init_profile_dir(self, profile_dir: Any) -> None:
        pass

    # A `!command` writes to the worker's own stdout, which is streamed already.
    def system(self, cmd: str) -> None:
        sys.stdout.flush()
        self.system_raw(cmd)

    def showtraceback(self, *args: Any, running_compiled_code: bool = False, **kwargs: Any) -> None:
        # Shown is what fails beside the cell: a broken `_repr_html_`, a figure that cannot be drawn.
        if not running_compiled_code:
            super().showtraceback(*args, **kwargs)

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None:
        pass

    def showindentationerror(self) -> None:
        pass

    def new_namespace(self) -> tuple[ModuleType, dict[str, Any]]:
        """Turn to a new, empty user module; returns it with the namespace that cells run in."""
        module = ModuleType("__main__")
        self.init_create_namespaces(module, None)
        self.init_user_ns()
        return module, self.user_ns

    def enter(self, module: ModuleType) -> None:
        """Turn back to a module made earlier."""
        self.user_module, self.user_ns = module, module.__dict__

    def run(self, source: str, shown: bool) -> tuple[Any, BaseException | None]:
        """Run a cell; returns the value of its last expression, and its error. `shown`: display that value."""
        hook = cast(CellDisplayHook, self.displayhook)
        hook.value, hook.shown = None, shown
        hook.silenced = hook.semicolon_at_end_of_expression(source)
        result = self.run_cell(source, store_history=False)
        return hook.value, result.error_before_exec or result.error_in_exec


def the_shell() -> CellShell:
    """This process's shell, made when it is first asked for. IPython's own `get_ipython()` finds it too."""
    if CellShell.initialized():
        return CellShell.instance()
    if _kept:
        return _kept.pop().brought_back()
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.CellShell.warn_venv = False
    saved_main = sys.modules["__main__"]
    try:
        return CellShell.instance(config=config, user_module=ModuleType("__main__"))
    finally:
        sys.modules["__main__"] = saved_main


class _Kept:
    """A shell that nobody finds, with the names that it had put into `builtins` and `sys`."""

    def __init__(self) -> None:
        before = [dict(vars(place)) for place in _PLACES]
        self._shell = the_shell()
        self._shell.new_namespace()
        self._shell.run("None", shown=False)  # loads what only a first cell loads
        self._added = [_taken_back(place, names) for place, names in zip(_PLACES, before, strict=True)]
        CellShell.clear_instance()
        atexit.unregister(self._shell.atexit_operations)

    def brought_back(self) -> CellShell:
        for place, names in zip(_PLACES, self._added, strict=True):
            vars(place).update(names)
        for kind in CellShell._walk_mro():
            kind._instance = self._shell  # type: ignore[assignment]
        atexit.register(self._shell.atexit_operations)
        return self._shell


def _taken_back(place: ModuleType, before: dict[str, Any]) -> dict[str, Any]:
    """Remove the names that a module did not have before; what they were."""
    added = {name: value for name, value in vars(place).items() if name not in before}
    for name in added:
        delattr(place, name)
    return added


_PLACES = (builtins, sys)
_kept: list[_Kept] = []


def keep_one() -> None:
    """Make the shell ahead of time, and hide it: nothing takes this process for one that runs IPython until
    `the_shell` is asked for. Starts no thread, so the process can be forked."""
    _kept.append(_Kept())


def remember_source(name: str, text: str) -> None:
    """Let tracebacks show the lines of a file that exists only in the notebook."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
