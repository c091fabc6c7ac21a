"""Set a worker up for the one `net.local.Environment` that it serves.

Rules: applied once, before the worker's first task, in the order of `apply`. Whatever fails is reported as a SetUpError
that says which step failed, with the original exception as its cause. Local modules that the submitter shipped are
served from memory by `ShippedModules`, also when the node has a file of that name, and their source lines appear in
tracebacks.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kos_cluster.errors import SetUpError
from kos_cluster.net.local import Environment
from kos_cluster.tasks import serialise

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)
Parts = Callable[[str], "bytes | memoryview"]  # by hash


class ShippedModule(NamedTuple):
    """One local module as it travels: its part is this, as MessagePack."""

    path: str  # relative, such as "pkg/mod.py"
    is_package: bool
    source: bytes


def apply(environment: Environment, parts: Parts, *, node: str, key: str, workspaces: Path) -> None:
    """Set this process up. `key` is the environment's hash; `workspaces` is where an archive is unpacked.

    Raises SetUpError, which names the step that failed.
    """
    with _step("setting its variables", node):
        _set_variables(environment)
    with _step("limiting its threads", node):
        _limit_threads(environment.threads)
    folder: Path | None = None
    if environment.workspace:
        with _step("unpacking the workspace", node):
            folder = _unpack(parts(environment.workspace), workspaces / f"{key[:16]}-{os.getpid()}")
    elif environment.cwd and os.path.isdir(environment.cwd):
        with _step(f"changing to {environment.cwd}", node):
            os.chdir(environment.cwd)
    sys.path[:0] = environment.sys_path
    if environment.modules:
        with _step("taking the local modules", node):
            serve_modules({name: _module(parts(part)) for name, part in environment.modules.items()}, folder)
    if environment.main:
        with _step(f"loading the script {environment.main}", node):
            load_main((folder or Path.cwd()) / environment.main, environment.argv)
    if environment.initializer:
        with _step("running the initializer", node):
            initializer, args = serialise.loads(parts(environment.initializer))
            initializer(*args)


@contextmanager
def _step(doing: str, node: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise SetUpError(
            f"A worker on node {node} could not be set up: {doing} raised {type(error).__name__}: {error}.",
            "The tasks that need it have not run.",
        ) from error


# ---- variables and threads


def _set_variables(environment: Environment) -> None:
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(environment.threads)))
    os.environ.update(environment.environ)


def _limit_threads(threads: int) -> None:
    """Libraries that the fork server has loaded took their limit of 1 then; the variables no longer reach them."""
    if threads != 1 and "numpy" in sys.modules:
        import threadpoolctl

        threadpoolctl.threadpool_limits(threads)


# ---- files


def _unpack(archive: bytes | memoryview, folder: Path) -> Path:
    from kos_cluster.tasks import workspace

    folder.mkdir(mode=0o700, parents=True)
    workspace.unpack(bytes(archive), folder)
    os.chdir(folder)
    return folder


# ---- local modules


class ShippedModules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Serves modules by name from their shipped sources."""

    def __init__(self, modules: dict[str, ShippedModule], folder: Path | None) -> None:
        self._modules = modules
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        shipped = self._modules.get(fullname)
        if shipped is None:
            return None
        origin = self._file_name(shipped)
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=origin, is_package=shipped.is_package)
        spec.has_location = True  # gives the module a __file__
        if shipped.is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        shipped = self._modules[module.__name__]
        name = self._file_name(shipped)
        text = self.get_source(module.__name__)
        # Without a time linecache never looks for a newer file, so tracebacks show the lines that ran.
        linecache.cache[name] = (len(shipped.source), None, text.splitlines(keepends=True), name)
        exec(compile(shipped.source, name, "exec", dont_inherit=True), vars(module))

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._modules[fullname].source)

    def is_package(self, fullname: str) -> bool:
        return self._modules[fullname].is_package

    def _file_name(self, shipped: ShippedModule) -> str:
        """Where the file lies in the workspace, if it does, so that the module finds what lies beside it."""
        if self._folder is not None and (self._folder / shipped.path).is_file():
            return str(self._folder / shipped.path)
        return shipped.path


def serve_modules(modules: dict[str, ShippedModule], folder: Path | None = None) -> None:
    """Make these importable ahead of everything else; other modules of these names are forgotten."""
    for name in modules:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, ShippedModules(modules, folder))


def _module(data: bytes | memoryview) -> ShippedModule:
    return msgspec.msgpack.decode(data, type=ShippedModule)


# ---- the script


def load_main(path: Path, arguments: Sequence[str]) -> None:
    """Run a script once as `__mp_main__` and let it stand for `__main__`, as multiprocessing does in its children."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    module = types.ModuleType("__mp_main__")
    module.__file__ = str(path)
    stand_for_main(module)
    with _no_pools(path.name):
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(module))


@contextmanager
def _no_pools(script: str) -> Iterator[None]:
    """A script that starts a process pool as it is loaded would start one in each worker, and those again."""
    import concurrent.futures.process
    import multiprocessing.pool

    kinds: tuple[Any, ...] = (concurrent.futures.process.ProcessPoolExecutor, multiprocessing.pool.Pool)
    made = [kind.__init__ for kind in kinds]

    def refuse(self: object, *args: Any, **kwargs: Any) -> None:
        if isinstance(self, multiprocessing.pool.ThreadPool):
            made[-1](self, *args, **kwargs)
            return
        raise RuntimeError(
            f"{script} starts a process pool when it is loaded; workers load it too. "
            "Put what starts the work under: if __name__ == '__main__':"
        )

    for kind in kinds:
        kind.__init__ = refuse
    try:
        yield
    finally:
        for kind, init in zip(kinds, made, strict=True):
            kind.__init__ = init


def stand_for_main(module: types.ModuleType) -> None:
    """What is pickled as `__main__.x` or `__mp_main__.x` is looked up in `module` from now on."""
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
