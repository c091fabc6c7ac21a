"""The submitter's own modules travel with the code that uses them.

Theory of operation. A pickle refers to functions by module and name. Modules that are neither in the standard library
nor installed are *local*: their sources are sent, with those of the local modules that they import in turn, wherever
in their code, and of the packages that they are in. The source is the file's as it is now, so that an edited (and
usually reloaded) module arrives as edited.

Rules: pure Python only; sources over MODULES_LIMIT_BYTES in all are refused, the largest named; files are read again
only when their time or size has changed; nothing is imported or run to find out.
"""

from __future__ import annotations

import ast
import functools
import heapq
import importlib.machinery
import os
import site
import sys
import sysconfig
import types
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

import msgspec

from kos_cluster.errors import LimitError

MODULES_LIMIT_BYTES = 16 << 20  # of all local modules' sources of one submission
CACHED_FILES = 4096
_LARGEST_NAMED = 5
_OWN = frozenset({"kos_cluster", "kos_kernel", "kos_gui", "__main__", "__mp_main__"})
_INSTALLED_FOLDERS = ("site-packages", "dist-packages")


class LocalModule(NamedTuple):
    """A module's part, as MessagePack; `environment.ShippedModule` reads it. `path` is such as "pkg/mod.py"."""

    path: str
    is_package: bool
    source: bytes


class Loaded(NamedTuple):
    """What this process has imported, other than the standard library and KOS."""

    local: frozenset[str]  # modules
    installed: frozenset[str]  # top-level packages


class _Read(NamedTuple):
    """A file as it was read last."""

    stamp: tuple[int, int]  # mtime_ns, size
    source: bytes
    imports: frozenset[tuple[int, str]]  # (level of a relative import, dotted name)


_cache: OrderedDict[str, _Read] = OrderedDict()


def local_modules(names: Iterable[str]) -> dict[str, bytes]:
    """The local modules among `names` and all that they need of their kind, each as its part. Raises LimitError."""
    found: dict[str, LocalModule] = {}
    waiting = list(names)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        located = _locate(name)
        if located is None:
            # `from a import b` may name a function of a; then a itself is what is needed.
            parent = name.rpartition(".")[0]
            waiting += [parent] if parent else []
            continue
        file, is_package = located
        read = _read(file) if file else _Read((0, 0), b"", frozenset())
        if read is None:
            continue
        path = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        found[name] = LocalModule(path, is_package, read.source)
        parts = name.split(".")
        waiting += [".".join(parts[:count]) for count in range(1, len(parts))]
        waiting += _absolute(read.imports, name, is_package)
        waiting += _bound(sys.modules.get(name))
    _check_size(found)
    return {name: msgspec.msgpack.encode(module) for name, module in sorted(found.items())}


def loaded() -> Loaded:
    """Looks again when modules have been imported since."""
    return _sorted_out(len(sys.modules))


@functools.lru_cache(1)
def _sorted_out(count: int) -> Loaded:
    names = [name for name in list(sys.modules) if "." not in name]
    tops = set(names) - sys.stdlib_module_names - _OWN
    local = {top for top in tops if _locate(top) is not None}
    return Loaded(
        frozenset(name for name in list(sys.modules) if name.partition(".")[0] in local), frozenset(tops - local)
    )


def installed_imports(script: str, local: Container[str]) -> tuple[str, ...]:
    """The top-level packages that a script imports, less the standard library's and those with a path in `local`."""
    read = _read(script)
    tops = {name.partition(".")[0] for level, name in read.imports if level == 0} if read else set()
    return third_party(top for top in tops if f"{top}.py" not in local and top not in local)


def third_party(names: Iterable[str]) -> tuple[str, ...]:
    """The top-level names of what is neither the standard library's nor KOS's own."""
    tops = {name.partition(".")[0] for name in names}
    return tuple(sorted(tops - sys.stdlib_module_names - _OWN))


# ---- finding


def _locate(name: str) -> tuple[str, bool] | None:
    """(file, is_package) of a local module; no file: a package without `__init__.py`. None when it is not local."""
    top = name.partition(".")[0]
    if not top or top in _OWN or top in sys.stdlib_module_names:
        return None
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) or (_found_beside(name) if module is None else None)
    if spec is None:
        # Loaded by hand, as notebooks' own loaders do.
        file = getattr(module, "__file__", None)
        return (file, hasattr(module, "__path__")) if isinstance(file, str) and _is_local_source(file) else None
    if spec.origin is None:
        folders = list(spec.submodule_search_locations or ())
        return ("", True) if folders and all(not is_installed(folder) for folder in folders) else None
    if not _is_local_source(spec.origin):
        return None
    return spec.origin, spec.submodule_search_locations is not None


def _found_beside(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module that is not loaded, without importing its parents."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        return importlib.machinery.PathFinder.find_spec(name)
    above = sys.modules.get(parent)
    if above is not None:
        path = getattr(above, "__path__", None)
    else:
        spec = _found_beside(parent)
        path = spec.submodule_search_locations if spec is not None else None
    return importlib.machinery.PathFinder.find_spec(name, list(path)) if path is not None else None


def _is_local_source(file: str) -> bool:
    return file.endswith(".py") and not is_installed(file) and os.path.isfile(file)


@functools.lru_cache(CACHED_FILES)
def is_installed(path: str) -> bool:
    """Whether a file is Python's or an installed package's, be it in an environment within the script's folder."""
    real = os.path.realpath(path)
    if any(folder in real.split(os.sep) for folder in _INSTALLED_FOLDERS):
        return True
    return real.startswith(_installed_folders())


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(os.path.realpath(folder) + os.sep for folder in [*folders, site.getusersitepackages()])


def _absolute(imports: Iterable[tuple[int, str]], name: str, is_package: bool) -> Iterator[str]:
    """The names that a module's import statements may mean, seen from it."""
    for level, target in imports:
        if level == 0:
            yield target
            continue
        parts = name.split(".")
        base = parts[: len(parts) - level + is_package]
        if base:
            yield ".".join([*base, target] if target else base)


def _bound(module: types.ModuleType | None) -> Iterator[str]:
    """The modules that a loaded module's globals come from: what import statements alone do not show."""
    for value in list(vars(module).values()) if module is not None else ():
        if isinstance(value, types.ModuleType):
            yield value.__name__
        elif isinstance(value, (type, types.FunctionType)) and isinstance(value.__module__, str):
            yield value.__module__


# ---- reading


def _read(file: str) -> _Read | None:
    """A file as it is now; None when it is gone."""
    try:
        status = os.stat(file)
        stamp = (status.st_mtime_ns, status.st_size)
        known = _cache.get(file)
        if known is not None and known.stamp == stamp:
            return known
        with open(file, "rb") as source:
            data = source.read(MODULES_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    read = _cache[file] = _Read(stamp, data, _imports(data))
    while len(_cache) > CACHED_FILES:
        _cache.popitem(last=False)
    return read


def _imports(source: bytes) -> frozenset[tuple[int, str]]:
    """What the import statements of a source name, those within functions included."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # being edited; where it is imported, Python says what is wrong with it
        return frozenset()
    found: set[tuple[int, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found.add((node.level, base))
            found.update((node.level, f"{base}.{alias.name}".lstrip(".")) for alias in node.names)
    return frozenset(found)


def _check_size(modules: dict[str, LocalModule]) -> None:
    total = sum(len(module.source) for module in modules.values())
    if total <= MODULES_LIMIT_BYTES:
        return
    largest = heapq.nlargest(_LARGEST_NAMED, modules.items(), key=lambda item: len(item[1].source))
    named = ", ".join(f"{name} ({len(module.source):,} bytes)" for name, module in largest)
    raise LimitError(
        f"The local modules that this code uses are {total:,} bytes, over the limit of {MODULES_LIMIT_BYTES:,}. "
        f"The largest: {named}.",
        "Keep data out of modules, or install them on the nodes as a package.",
    )
