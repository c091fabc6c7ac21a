"""The kernel "Python 3 (KOS)": installed, started through Jupyter's own client, restarted and shut down."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.cli.main import run
from tests.kernel import conformance, lasting
from tests.kernel.clusters import cluster_of, kos
from tests.kernel.kernels import Cell, Kernel

READY_BEYOND_S = 1.0  # over a plain kernel
STOPPED_WITHIN_S = 5.0


@pytest.fixture(scope="module", autouse=True)
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Jupyter's folder of this user, with our kernel in it."""
    folder = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(folder))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))  # with a history of its own
        done = kos("kernel", "install", "--user", home="")  # or the kernels would be bound to that home
        assert done.returncode == 0 and "'Python 3 (KOS)' is installed in" in done.stdout, done.stderr
        yield folder


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    with cluster_of(2) as folder:
        yield folder


@pytest.fixture
def kernel(home: str) -> Iterator[Kernel]:
    started = Kernel({"KOS_HOME": home}, name="kos")
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def shared(home: str) -> Iterator[Kernel]:
    """A kernel for tests that leave it usable."""
    started = Kernel({"KOS_HOME": home}, name="kos")
    try:
        yield started
    finally:
        started.stop()


def installed(home: str) -> list[str]:
    return [kernel["name"] for kernel in json.loads(kos("kernel", "list", "--json", home=home).stdout)]


def test_the_kernelspec_names_this_python_and_our_module(jupyter: Path) -> None:
    spec = json.loads((jupyter / "kernels" / "kos" / "kernel.json").read_text())
    assert spec["argv"] == [sys.executable, "-P", "-m", "kos_kernel", "-f", "{connection_file}"]
    assert spec["display_name"] == "Python 3 (KOS)"


def test_kernels_are_listed_and_removed(home: str, jupyter: Path, tmp_path: Path) -> None:
    assert kos("kernel", "install", "--user", "--cluster", "local", home=home).returncode == 0
    assert installed(home) == ["kos", "kos-local"]
    environment = json.loads((jupyter / "kernels" / "kos-local" / "kernel.json").read_text())["env"]
    assert environment == {"KOS_CLUSTER": "local", "KOS_HOME": home}
    assert "Python 3 (KOS): local" in kos("kernel", "list", home=home).stdout
    assert kos("kernel", "remove", "--cluster", "local", home=home).returncode == 0
    assert installed(home) == ["kos"]
    done = kos("kernel", "install", "--prefix", str(tmp_path), home=home)
    assert done.returncode == 0 and (tmp_path / "share" / "jupyter" / "kernels" / "kos" / "kernel.json").exists()


@pytest.mark.parametrize(
    ("words", "venv", "folder"),
    [
        ((), False, "user"),
        (("--sys-prefix",), False, "prefix/share/jupyter"),
        (("--user",), True, "user"),
        (("--sys-prefix",), True, "prefix/share/jupyter"),
        ((), True, "prefix/share/jupyter"),
    ],
)
def test_it_goes_to_the_user_or_to_this_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], venv: bool, folder: str
) -> None:
    prefix = str(tmp_path / "prefix")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base") if venv else prefix)
    assert run(["kernel", "install", *words], io.StringIO(), io.StringIO()) == 0
    assert [path.parent for path in tmp_path.rglob("kernel.json")] == [tmp_path / folder / "kernels" / "kos"]


REFUSED = {
    "kernel remove nothing": "There is no kernel 'nothing'",
    "kernel remove python3": "'python3' is not one of KOS's",
    "kernel install --cluster nowhere": "not in a cluster named 'nowhere'",
    "kernel install --user --prefix x": "not allowed with",
    "kernel install --prefix /proc/self": "cannot be written to",
    "kernel install --cpus 4 --memory 8G": "Add --remote",
    "kernel install --remote --memory much": "much",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(line: str) -> None:
    done = kos(*line.split(), home=os.environ["KOS_HOME"])
    assert done.returncode in (2, 3) and REFUSED[line] in done.stderr and done.stderr.count("\n") == 1


def test_it_is_ready_about_as_soon_as_a_plain_kernel() -> None:
    took: dict[str, list[float]] = {"python3": [], "kos": []}
    for name in ("python3", "kos", "python3", "kos"):
        began = time.monotonic()
        started = Kernel({}, name=name)
        took[name].append(time.monotonic() - began)
        started.stop()
    assert min(took["kos"]) <= min(took["python3"]) + READY_BEYOND_S, took


def test_a_kernel_for_a_cluster_that_is_not_here_says_so() -> None:
    """As a notebook that was written where it is."""
    started = Kernel({"KOS_CLUSTER": "elsewhere"}, name="kos")
    try:
        for line in ("%kos nodes", "%%kos run --distribute\n1"):
            (sentence,) = started.run(line).error["traceback"]
            assert "not in a cluster named 'elsewhere'" in sentence and "kos cluster join elsewhere" in sentence
    finally:
        started.stop()


def begun(kernel: Kernel, path: Path, tasks: int, code: str) -> tuple[Cell, set[int]]:
    """Start tasks that would last: their cell, and the processes that they run in."""
    cell = kernel.start(lasting.code(path, code))
    kernel.wait(lambda: bool(cell.messages))
    return cell, lasting.processes(path, tasks)


BUSY = {
    "waiting for a result": "cluster.submit(work, path, fresh=True).result()",
    "waiting for a map": "list(cluster.map(work, [path] * 2, fresh=True))",
    "awaiting": "await cluster.submit(work, path, fresh=True)",
    "computing beside it": "future = cluster.submit(work, path, fresh=True)\nwhile True: pass",
    "idle": "future = cluster.submit(work, path, fresh=True)",
}


@pytest.mark.parametrize("state", BUSY)
def test_a_restart_leaves_no_task_behind(shared: Kernel, tmp_path: Path, state: str) -> None:
    _, pids = begun(shared, tmp_path / "pids", 2 if "map" in state else 1, BUSY[state])
    shared.restart()
    lasting.wait_gone(pids, STOPPED_WITHIN_S)
    assert shared.value("'cluster' in globals()") == "False"
    assert not shared.run("%kos --version").error


@pytest.mark.parametrize("state", ["computing beside it", "idle"])
def test_a_shutdown_leaves_no_task_behind(kernel: Kernel, tmp_path: Path, state: str) -> None:
    _, pids = begun(kernel, tmp_path / "pids", 1, BUSY[state])
    kernel.shut_down()
    lasting.wait_gone(pids, STOPPED_WITHIN_S)


def test_a_kernel_that_is_killed_leaves_no_task_behind(kernel: Kernel, tmp_path: Path) -> None:
    _, pids = begun(kernel, tmp_path / "pids", 1, BUSY["idle"])
    os.kill(int(kernel.value("os.getpid()")), signal.SIGKILL)
    lasting.wait_gone(pids, STOPPED_WITHIN_S)


WAITING = {state: code for state, code in BUSY.items() if "wait" in state} | {
    "gathering": "cluster.gather([cluster.submit(work, path, fresh=True) for _ in range(2)])",
    "taking what is done": "list(cluster.as_completed(cluster.submit(work, path, fresh=True) for _ in range(2)))",
}


@pytest.mark.parametrize("state", WAITING)
def test_an_interrupt_stops_what_is_waited_for(shared: Kernel, tmp_path: Path, state: str) -> None:
    cell, pids = begun(shared, tmp_path / "pids", 2 if "2" in WAITING[state] else 1, WAITING[state])
    shared.interrupt()
    lasting.wait_gone(pids, STOPPED_WITHIN_S)
    shared.wait(lambda: cell.idle)
    assert cell.error["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert shared.value("1 + 1") == "2"


class TestConformance(conformance.Conformance):
    kernel_name = "kos"
