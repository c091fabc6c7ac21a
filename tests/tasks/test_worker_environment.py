"""What a worker finds when its task begins: modules, variables, folders, set-up, random numbers."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kos_cluster.net import local
from kos_cluster.tasks import serialise, workspace
from tests.tasks.fork_daemon import ForkDaemon, TestedWorker, until


class TestRandomness:
    def draw(self) -> Any:
        def fn(_: int) -> Any:
            import random

            import numpy

            return random.random(), float(numpy.random.rand()), float(numpy.random.default_rng().random())

        return fn

    def test_workers_of_one_warm_server_draw_different_numbers(self, daemon: ForkDaemon) -> None:
        daemon.preload("numpy", "numpy.random")
        drawn = [daemon.worker().value(self.draw(), 0) for _ in range(2)]
        for one, other in zip(*drawn, strict=True):
            assert one != other

    def test_with_a_seed_numbers_depend_on_the_item_only(self, daemon: ForkDaemon) -> None:
        first, second = daemon.worker(), daemon.worker()
        whole = first.run(self.draw(), [(0,)] * 4, seed=7).values
        tail = second.run(self.draw(), [(0,)] * 2, seed=7, runs=[(2, 2)]).values
        assert {n: whole[n][:2] for n in (2, 3)} == {n: tail[n][:2] for n in (2, 3)}
        assert len({whole[n][:2] for n in range(4)}) == 4
        assert second.run(self.draw(), [(0,)], seed=8).values[0][:2] != whole[0][:2]


class TestEnvironment:
    def test_an_edited_module_is_the_new_one_in_a_new_worker(self, daemon: ForkDaemon) -> None:
        def use() -> Any:
            import mod

            return mod.version(), mod.__file__

        def environment(worker: TestedWorker, version: int) -> str:
            source = f"def version():\n    return {version}\n".encode()
            return worker.environment(modules={"mod": worker.part(msgspec.msgpack.encode(["mod.py", False, source]))})

        first, second = daemon.worker(), daemon.worker()
        assert first.value(use, env=environment(first, 1)) == (1, "mod.py")
        assert second.value(use, env=environment(second, 2)) == (2, "mod.py")

    def test_packages_and_tracebacks_with_their_source(self, worker: TestedWorker) -> None:
        def use() -> Any:
            import pkg.deep

            return pkg.deep.fail()

        shipped = {
            "pkg": ["pkg/__init__.py", True, b"NAME = 'pkg'\n"],
            "pkg.deep": [
                "pkg/deep.py",
                False,
                b"from . import NAME\ndef fail():\n    raise ValueError(NAME)  # here\n",
            ],
        }
        env = worker.environment(modules={k: worker.part(msgspec.msgpack.encode(v)) for k, v in shipped.items()})
        failure = worker.run(use, [()], env=env).failures[0]
        assert failure.message == "pkg"
        assert 'File "pkg/deep.py", line 3, in fail' in failure.traceback
        assert "raise ValueError(NAME)  # here" in failure.traceback

    def test_a_script_is_loaded_once_as_mp_main(self, daemon: ForkDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        class Kind:
            """Stands for the submitter's own."""

        ours = types.ModuleType("__mp_main__")
        ours.Kind = Kind  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "__mp_main__", ours)
        worker = daemon.worker()
        (daemon.folder / "beside.py").write_text("VALUE = 5\n")
        (daemon.folder / "script.py").write_text(
            "import sys, beside\nprint('loaded', __name__, sys.argv[0].endswith('script.py'))\nstate = []\n"
            "class Kind: pass\n"
            "def f(x):\n    state.append(x)\n    return len(state), beside.VALUE, Kind\n"
            "if __name__ == '__main__': raise SystemExit('must not run')\n"
        )
        by_reference = b"\x80\x05c__main__\nf\n."
        env = worker.environment(main="script.py", cwd=str(daemon.folder))
        assert [worker.run(by_reference, [(1,)], env=env).values[0] for _ in range(2)] == [(1, 5, Kind), (2, 5, Kind)]
        assert worker.out == "loaded __mp_main__ True\n"

    def test_a_workspace_is_unpacked_and_worked_in(self, daemon: ForkDaemon, tmp_path: Path) -> None:
        (tmp_path / "data.txt").write_text("from the submitter")
        (tmp_path / "main.py").write_text("def f():\n    return open('data.txt').read()\n")
        worker = daemon.worker()
        archive = workspace.pack(workspace.snapshot(tmp_path))
        env = worker.environment(workspace=worker.part(archive), main="main.py")
        assert worker.run(b"\x80\x05c__main__\nf\n.", [()], env=env).values == {0: "from the submitter"}
        unpacked = Path(worker.value(os.getcwd, env=env))
        assert unpacked.parent == daemon.folder / "workspaces"
        worker.send(local.Stop())
        daemon.exited(worker)
        until(lambda: not any(unpacked.parent.iterdir()))

    def test_variables_threads_and_folders(self, worker: TestedWorker) -> None:
        def look() -> Any:
            import sys

            return os.environ["OMP_NUM_THREADS"], os.environ["MINE"], os.getcwd(), sys.path[0]

        folder = worker.daemon.folder / "work"
        folder.mkdir(exist_ok=True)
        env = worker.environment(environ={"MINE": "1"}, threads=3, cwd=str(folder), sys_path=["/extra"])
        assert worker.value(look, env=env) == ("3", "1", str(folder), "/extra")

    def test_an_initializer_runs_once(self, worker: TestedWorker) -> None:
        def initialize(value: int) -> None:
            import builtins

            builtins.started = [*getattr(builtins, "started", []), value]  # type: ignore[attr-defined]

        def look() -> Any:
            import builtins

            return builtins.started  # type: ignore[attr-defined]

        part = worker.part(serialise.dumps_callable((initialize, (5,))))  # type: ignore[arg-type]
        env = worker.environment(initializer=part)
        assert worker.value(look, env=env) == [5]
        assert worker.value(look, env=env) == [5]

    def test_a_failing_set_up_fails_all_tasks_and_retires_the_worker(self, worker: TestedWorker) -> None:
        def initialize() -> None:
            raise RuntimeError("no database")

        part = worker.part(serialise.dumps_callable((initialize, ())))  # type: ignore[arg-type]
        batch = worker.run(lambda: 1, [()] * 3, env=worker.environment(initializer=part))
        assert sorted(batch.failures) == [0, 1, 2] and batch.retire
        failure = batch.failures[2]
        assert failure.type_name == "kos_cluster.errors.SetUpError"
        assert (
            "node node-a could not be set up: running the initializer raised RuntimeError: no database"
            in failure.message
        )
        assert "in initialize" in failure.traceback

    def test_a_second_environment_is_refused(self, worker: TestedWorker) -> None:
        worker.value(lambda: 1, env=worker.environment(token="one"))
        batch = worker.run(lambda: 1, [()], env=worker.environment(token="two"))
        assert "second environment" in batch.failures[0].message and batch.retire

    def test_a_worker_retires_after_the_tasks_that_it_serves(self, worker: TestedWorker) -> None:
        environment = worker.environment(serves=3)
        assert [worker.run(lambda: 1, [()], env=environment).retire for _ in range(3)] == [False, False, True]

    def test_a_fresh_worker_retires_after_one_batch(self, worker: TestedWorker) -> None:
        assert worker.run(lambda: 1, [()], env=worker.environment(fresh=True)).retire
