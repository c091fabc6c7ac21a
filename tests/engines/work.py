"""What people run on an engine through KOS: cells, executors, commands. A part of `tests.engines.conformance`.

A notebook is a real kernel, a command a process of its own, and the engine that of the module. What all of it means in
detail is shown with a stand-in for the engine, by `tests/mesh/test_on_engine.py` and `tests/kernel/test_cells_e2e.py`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import numpy
import psutil
import pytest

import kos_cluster as kos
from kos_cluster.services.engines.spec import Record
from kos_cluster.tasks.failures import RemoteTraceback
from tests.engines import calls
from tests.engines.conftest import NODES, WORKERS, EngineMesh
from tests.kernel.kernels import Cell, Kernel, ok
from tests.mesh.conftest import until

RESULT_S = 30.0  # for one call; the first one of an engine's worker starts what it runs in
START_S = 240.0  # for an engine of one worker, or for another one
PAGE_S = 60.0  # for a dashboard's first page, which the engine may load much for
ELEMENTS = 6
SIDE = 512  # of an array of 2 MiB
INTERRUPTED = 130  # exit code of a command


class Work:
    """For a class of tests whose module says which KIND, with the fixtures of `tests.engines.conftest`."""

    def test_a_cell_runs_for_each_element(self, notebook: Kernel, engine: Record, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        ok(notebook.run(f"import os, time\nxs, base, gate = list(range({ELEMENTS})), 100, {str(gate)!r}\nys = None"))
        ok(notebook.run("def shift(x): return x + base"))
        cell = notebook.start(
            f"%%kos run --distribute --engine {engine.kind} --over xs --out ys\n"
            "if item == 1: print('said by one')\n"
            f"while item == {ELEMENTS - 1} and not os.path.exists(gate): time.sleep(0.02)\n"
            "(index, shift(item), os.environ['KOS_NODE'])"
        )
        notebook.wait(lambda: f"{ELEMENTS - 1}/{ELEMENTS} done, 1 running on node" in _progress(cell))
        assert cell.text() == "said by one\n"
        gate.touch()
        notebook.wait(lambda: cell.idle)
        assert f"kos: {ELEMENTS} tasks on node" in _progress(ok(cell))
        assert notebook.value("[y[:2] for y in ys]") == str([(x, x + 100) for x in range(ELEMENTS)])
        assert set(notebook.value("*{y[2] for y in ys}").split()) <= _names()

    def test_a_single_cell_brings_its_variables_back(self, notebook: Kernel, engine: Record) -> None:
        ok(notebook.run("import numpy as np\nfactor, grown, array = 3, [1], np.zeros(1 << 17)"))
        cell = notebook.run(
            f"%%kos run --distribute --engine {engine.kind}\nimport os, sys\nprint('said')\n"
            "print('told', file=sys.stderr)\nfactor = factor + 2\n"
            "grown.append(2)\narray[7] = 1\ndef late(): return factor\npid = os.getpid()\n"
            "'shown'"
        )
        assert ok(cell).text() == "said\n"
        assert "told\n" in cell.text("stderr")
        assert "[execute_result] 'shown'" in cell.shown()
        assert notebook.value("factor, grown, array.sum(), late(), pid != os.getpid()") == "5 [1, 2] 1.0 5 True"

    def test_a_cell_that_fails_shows_its_own_error_and_assigns_nothing(self, notebook: Kernel, engine: Record) -> None:
        ok(notebook.run("kept, ys, xs = 1, 'before', [2, 1, 0]"))
        cell = notebook.run(
            f"%%kos run --distribute --engine {engine.kind}\nkept = 2\nprint('so far')\n{{}}['nothing of that name']"
        )
        assert (cell.error["ename"], cell.error["evalue"]) == ("KeyError", "'nothing of that name'")
        shown = "\n".join(cell.error["traceback"])
        assert re.search(r"On the cluster \(task \S+ on node\d, attempt 1\)", shown), shown
        assert 'File "<kos cell>"' in shown and "kos_cluster" not in shown and "distributed" not in shown
        assert cell.text() == "so far\n"
        over = notebook.run(f"%%kos run --distribute --engine {engine.kind} --over xs --out ys\n1 / item")
        assert (over.error["ename"], over.error["evalue"]) == ("ZeroDivisionError", "division by zero")
        assert notebook.value("kept, ys") == "1 before"

    def test_an_interrupt_stops_a_cell_there(
        self, notebook: Kernel, mesh: EngineMesh, engine: Record, tmp_path: Path
    ) -> None:
        ok(notebook.run(f"folder, two = {str(tmp_path)!r}, [0, 1]"))
        cell = notebook.start(
            f"%%kos run --distribute --engine {engine.kind} --over two\nimport os, time\n"
            "open(f'{folder}/{os.getpid()}', 'w').close()\nwhile True: time.sleep(0.01)"
        )
        until(lambda: len(os.listdir(tmp_path)) == 2, "both elements run")
        pids = list(map(int, os.listdir(tmp_path)))
        assert all(map(mesh.rank_of, pids))  # raises for a process that is not beneath the engine's
        notebook.interrupt()
        notebook.wait(lambda: cell.idle)
        assert cell.error["ename"] == "KeyboardInterrupt"
        assert len(cell.error["traceback"]) == 1
        until(lambda: not any(map(_runs, pids)), "what ran there has ended")
        assert notebook.value("1 + 1") == "2"

    def test_an_executor(self, mesh: EngineMesh, engine: Record, capsys: pytest.CaptureFixture[str]) -> None:
        with kos.Executor(engine=engine.kind) as executor:
            assert list(executor.map(pow, range(4), [2] * 4)) == [0, 1, 4, 9]
            told = executor.submit(calls.says, "a word")
            node, pid, word = told.result(RESULT_S)
            assert (node in _names(), pid != os.getpid(), word) == (True, True, "a word")
            assert capsys.readouterr().out == "a word\n"
            assert [attempt.node for attempt in told.story().attempts] == [node]
            failing = executor.submit(calls.fails, "nothing of that name")
            with pytest.raises(KeyError, match=r"^'nothing of that name'$") as caught:
                failing.result(RESULT_S)
            assert isinstance(caught.value.__cause__, RemoteTraceback)
            assert "in fails" in str(caught.value.__cause__)

    def test_a_call_of_an_executor_that_runs_is_cancelled(
        self, mesh: EngineMesh, engine: Record, tmp_path: Path
    ) -> None:
        executor = kos.Executor(max_workers=1, engine=engine.kind)
        running, waiting = (executor.submit(calls.lasts, str(tmp_path / name)) for name in ("first", "second"))
        try:
            until((tmp_path / "first").exists, "the first call runs")
            assert mesh.rank_of(int((tmp_path / "first").read_text()))
            assert waiting.cancel() and running.cancel()
            with pytest.raises(CancelledError):
                running.result(RESULT_S)
            until(lambda: not _runs(int((tmp_path / "first").read_text())), "it has ended there")
            assert executor.submit(abs, -1).result(RESULT_S) == 1
            assert not (tmp_path / "second").exists()
        finally:
            for call in (waiting, running):
                call.cancel()
            executor.shutdown(cancel_futures=True)

    def test_references_cross_both_ways(self, mesh: EngineMesh, engine: Record) -> None:
        """A block is read where it lies, by any worker of its machine; what a call lays there is the client's."""
        put = mesh.cluster.put(numpy.arange(SIDE * SIDE))
        with kos.Executor(engine=engine.kind) as executor:
            assert executor.submit(calls.seen, put).result(RESULT_S)[1:] == (False, True)
            assert executor.submit(calls.seen_inside, [put]).result(RESULT_S)[1:] == (False, True)
            assert executor.submit(numpy.sum, put).result(RESULT_S) == SIDE * SIDE * (SIDE * SIDE - 1) // 2
            laid = list(executor.map(calls.stays, [SIDE] * 8 * WORKERS))  # more than one by each worker
        assert {ref.get().sum() for ref in laid} == {SIDE}
        back = laid.pop()
        assert mesh.cluster.submit(calls.seen, back).result(RESULT_S)[1:] == (False, True)
        there = back.node_name
        before = mesh.cluster.memory()[there].blocks
        del back
        until(lambda: mesh.cluster.memory()[there].blocks < before, "it is dropped with its last reference")

    def test_the_dashboard_command_leads_to_its_page_until_it_is_interrupted(
        self, mesh: EngineMesh, engine: Record
    ) -> None:
        words = [sys.executable, "-m", "kos_cluster.cli.main", "engine", "dashboard", engine.kind]
        command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert command.stdout is not None
            address = command.stdout.readline().strip()
            shown = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/\S*)?", address)
            assert shown, address
            with urllib.request.urlopen(address, timeout=PAGE_S) as page:
                assert f"<title>{engine.kind}" in page.read().decode().lower()
            command.send_signal(signal.SIGINT)
            _, told = command.communicate(timeout=RESULT_S)
        finally:
            command.kill()
            command.communicate()
        assert command.returncode == INTERRUPTED
        assert f"leads to the dashboard of engine '{engine.name}' on {engine.node}; Ctrl-C ends it." in told
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(shown[1])), timeout=10)

    def test_a_notebook_starts_scales_and_stops_one(
        self, notebook: Kernel, mesh: EngineMesh, engine: Record, request: pytest.FixtureRequest
    ) -> None:
        words = " ".join(request.module.WORDS)
        start = notebook.run(f"%kos engine start {engine.kind} --name second --workers 1 {words}", START_S)
        assert ok(start).text().startswith("Engine second serves with 1 worker; its head is on node")
        ok(notebook.run("engines = %kos engine list"))
        rows = "[(row['name'], row['kind'], row['state'], row['workers']) for row in engines]"
        assert str(("second", engine.kind, "serving", 1)) in notebook.value(rows)
        assert re.search(
            rf"^second +{engine.kind} +serving +1/1 ", ok(notebook.run("engines")).shown()[0], re.MULTILINE
        )
        assert ok(notebook.run("%kos engine scale second 2", START_S)).text() == "Engine second has 2 workers.\n"
        ok(notebook.run("status = %kos engine status second"))
        assert notebook.value("status['state'], status['wanted'], status['workers']") == "serving 2 2"
        told = ok(notebook.run("status")).shown()[0]
        assert f"Engine second ({engine.kind}) is serving" in told and "Workers: 2 of 2" in told
        assert ok(notebook.run("%kos engine stop second")).text() == "Engine second is stopped.\n"
        gone = notebook.run("%kos engine status second")
        assert "There is no engine 'second'" in gone.error["evalue"]


def _names() -> set[str]:
    return {f"node{number + 1}" for number in range(NODES)}


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _progress(cell: Cell) -> str:
    """What the progress of a cell's work has shown."""
    return "\n".join(content["data"]["text/plain"] for _, content in cell.progress())
