"""The globals of a script that its pools' processes would inherit from it.

Theory of operation. A child of `fork` has the script's globals as they were when it was forked. A worker loads the
script instead, which gives it functions, classes, and what the top of the script makes; what was assigned since, under
the `__main__` guard or by a function, has to be sent. That is the data that functions of the script name: their code
tells the names, so what only the script itself uses does not travel.

Rules. Each global is pickled by itself, at the moment of `taken`. One that cannot be pickled (an open file, a thread's
lock) stays as loading the script makes it. What only processes of one machine can share, and more than
`GLOBALS_LIMIT_BYTES` together, keep the pool on its machine (`obstacle`).
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kos_cluster.tasks import sharedobjects

GLOBALS_LIMIT_BYTES = 256 << 20  # of a script's globals, pickled, that travel with a pool

_LOADED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)  # a worker has them by loading


@dataclass(frozen=True)
class ForkedGlobals:
    """What a child of `fork` would find."""

    pickled: dict[str, bytes]
    obstacle: str = ""  # why it has to be such a child, as a clause; empty: a worker will do


NONE = ForkedGlobals({})  # of a pool whose processes are not forked: they load the script, as workers do


def taken(script: str, folder: Path) -> ForkedGlobals:
    """Of the running `__main__`, whose file is `script`, and of the modules in `folder`."""
    pickled: dict[str, bytes] = {}
    for name, value in _data(script).items():
        try:
            data = _pickled(value)
        except sharedobjects.SharedObjectError as found:
            return ForkedGlobals({}, f"its processes share the {found} in {name!r}")
        if data is not None:
            pickled[name] = data
    return ForkedGlobals(pickled, _shared_in_modules(folder) or _too_large(pickled))


def _pickled(value: object) -> bytes | None:
    try:
        return sharedobjects.dumps(value)
    except sharedobjects.SharedObjectError:
        raise
    except Exception:  # whatever pickling raises: it cannot travel, and is what loading the script makes it
        return None


def _data(script: str) -> dict[str, Any]:
    """The globals of the script that its functions name, but for what loading the script defines."""
    main = vars(sys.modules["__main__"])
    names = _named_in(compile(Path(script).read_bytes(), script, "exec", dont_inherit=True))
    found = {name: main[name] for name in names if name in main and not name.startswith("__")}
    return {name: value for name, value in found.items() if not isinstance(value, _LOADED)}


def _named_in(code: types.CodeType) -> set[str]:
    """What the functions and classes in `code` name; of `code` itself nothing."""
    names: set[str] = set()
    waiting = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    while waiting:
        inner = waiting.pop()
        names.update(inner.co_names)
        waiting += [const for const in inner.co_consts if isinstance(const, types.CodeType)]
    return names


def _shared_in_modules(folder: Path) -> str:
    """An obstacle among what the script's own modules hold."""
    for module_name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if module_name in ("__main__", "__mp_main__") or not file or not Path(file).is_relative_to(folder):
            continue
        for name, value in list(vars(module).items()):
            kind = sharedobjects.kind_of(value)
            if kind is not None:
                return f"its processes share the {kind} in '{module_name}.{name}'"
    return ""


def _too_large(pickled: dict[str, bytes]) -> str:
    size_bytes = sum(map(len, pickled.values()))
    if size_bytes <= GLOBALS_LIMIT_BYTES:
        return ""
    largest = max(pickled, key=lambda name: len(pickled[name]))
    return (
        f"the globals that its functions name take {size_bytes >> 20:,} MiB, of which {largest!r} takes "
        f"{len(pickled[largest]) >> 20:,}; {GLOBALS_LIMIT_BYTES >> 20} may travel"
    )
