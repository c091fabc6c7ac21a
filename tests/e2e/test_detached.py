"""Detached jobs on three machines: they outlive whoever submits, watches or drives them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kos_cluster as kos
from kos_cluster.cli.main import run
from kos_cluster.core.records import JobSummary
from kos_cluster.core.replicated.commands import TaskResult
from kos_cluster.net import wire
from tests.e2e.test_cluster import Lab, free_port

TASKS = 20
RESULT_BYTES = 8 << 10  # of each task: together more than the replicated state keeps


def typed(*words: str) -> tuple[int, str, str]:
    """A command typed on the desk, run in this process, which is attached already: code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    code = run(words, out, err)
    assert "error in KOS itself" not in err.getvalue(), err.getvalue()
    return code, out.getvalue(), err.getvalue()


class Trio:
    """Three machines with a node each, a connection from one of them, and further machines whose users only submit."""

    def __init__(self, make: Callable[..., Any], until: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
        self._make = make
        self.lab = Lab(make())
        self.nodes = {"desk": self.lab.founder}
        patch.setenv("KOS_HOME", str(self.desk.home))
        joining = [self._join("node", "--listen", f"127.0.0.1:{free_port()}", "--name", name) for name in ("r1", "r2")]
        for name, (machine, typed) in zip(("r1", "r2"), joining, strict=True):
            assert typed.communicate(timeout=60) and typed.returncode == 0
            self.nodes[name] = machine
        self.cluster = kos.connect("lab")
        until(lambda: self.alive() == 3, "three nodes are alive")
        until(lambda: len(self.cluster.status()["voters"]) == 3, "three nodes vote")

    @property
    def desk(self) -> Any:
        return self.nodes["desk"]

    def _join(self, role: str, *words: str) -> tuple[Any, subprocess.Popen[str]]:
        machine = self._make()
        _, token, _ = typed("cluster", "token", "--role", role)
        return machine, machine.start("cluster", "join", "lab", self.lab.address, "--token", token.strip(), *words)

    def client(self, role: str = "client") -> Any:
        """A machine without a node."""
        machine, typed = self._join(role)
        assert typed.communicate(timeout=60) and typed.returncode == 0
        return machine

    def alive(self) -> int:
        return sum(node["state"] == "alive" for node in self.cluster.nodes())

    def job(self, id_: str) -> JobSummary:
        return next(job for job in self.cluster.jobs() if job.job == id_)

    def kill(self, name: str) -> None:
        """SIGKILL a node's daemon."""
        os.kill(next(node["pid"] for node in self.cluster.nodes() if node["name"] == name), signal.SIGKILL)

    def end(self) -> None:
        self.cluster.close()
        for machine in self.nodes.values():
            machine.end()


@pytest.fixture(scope="module")
def trio(machine_of: Callable[..., Any], until: Callable[..., Any]) -> Iterator[Trio]:
    with pytest.MonkeyPatch.context() as patch:
        trio = Trio(machine_of, until, patch)
        yield trio
        trio.end()


def detached(machine: Any, *words: str) -> str:
    return str(machine.ok("run", "--detach", *words)).strip()


def test_a_map_outlives_its_submitter_and_its_driver(trio: Trio, until: Callable[..., Any], tmp_path: Path) -> None:
    submitter = trio.client()
    runs, go = tmp_path / "runs", tmp_path / "go"
    path = submitter.work / "submit.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import time
            import kos_cluster as kos

            def work(i):
                import os, time
                fd = os.open({str(runs)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(fd, f"{{i}}\\n".encode())
                print("at", i, flush=True)
                while i >= {TASKS // 2} and not os.path.exists({str(go)!r}):
                    time.sleep(0.05)
                return bytes([i]) * {RESULT_BYTES}

            print(kos.connect().detach(work, range({TASKS})).id, flush=True)
            time.sleep(600)
            """
        )
    )
    submitting = submitter.popen([sys.executable, str(path)])
    id_ = submitting.stdout.readline().strip()
    submitting.kill()
    submitting.communicate()
    submitter.end()  # its disk is gone as well
    until(lambda: trio.job(id_).driver, "a node drives it")
    until(lambda: trio.cluster.attach(id_).state().done >= 3, "some results are committed")
    driver = trio.job(id_).driver
    watcher = next(name for name in trio.nodes if name != driver)
    attached = trio.nodes[watcher].start("attach", id_)
    assert attached.stdout.readline().startswith("at ")  # it has attached
    committed = {r.task for r in trio.cluster._mesh.request(wire.DetachedResults(id_), list[TaskResult])}
    assert 3 <= len(committed) < TASKS
    trio.kill(driver)
    until(lambda: trio.cluster.attach(id_).state().epoch == 2, "another node drives it", 30)
    go.touch()
    out, err = attached.communicate(timeout=60)
    assert attached.returncode == 0, err
    assert f"drives job {id_} on" in err
    assert out.count(repr(bytes([7]) * RESULT_BYTES)) == 1  # the results stand after the output
    record = trio.cluster.attach(id_).state()
    assert (record.state, record.done, record.failed, record.epoch) == ("done", TASKS, 0, 2)
    assert record.driver_name != driver
    counted = Counter(map(int, runs.read_text().split()))
    assert set(counted) == set(range(TASKS))
    assert {task: counted[task] for task in committed} == dict.fromkeys(committed, 1)
    assert trio.cluster.attach(id_).results() == [bytes([i]) * RESULT_BYTES for i in range(TASKS)]
    trio.nodes[driver].ok("up")
    until(lambda: trio.alive() == 3, "three nodes are alive again")


def test_a_script_runs_without_its_submitter_and_brings_its_files_to_whoever_asks(trio: Trio) -> None:
    submitter = trio.client()
    (submitter.work / "helper.py").write_text("def triple(x):\n    return 3 * x\n")
    (submitter.work / "script.py").write_text(
        textwrap.dedent(
            """
            import sys
            from concurrent.futures import ProcessPoolExecutor
            from helper import triple

            if __name__ == "__main__":
                with ProcessPoolExecutor() as pool:
                    print(sys.argv[1], list(pool.map(triple, range(4))))
                open("written.txt", "w").write("by the script")
                sys.exit(3)
            """
        )
    )
    id_ = detached(submitter, "--distribute", "script.py", "with")
    submitter.end()
    other = trio.nodes["r1"]
    done = other.kos("attach", id_)
    assert (done.returncode, done.stdout) == (3, "with [0, 3, 6, 9]\n")
    assert f"'kos attach {id_} --files FOLDER'" in done.stderr
    folder = other.work / "files"
    folder.mkdir()
    assert typed("attach", id_, "--files", str(folder))[:2] == (3, done.stdout)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"written.txt": "by the script"}
    assert (trio.job(id_).state, trio.job(id_).name) == ("failed", "script.py")
    assert typed("logs", id_)[:2] == (0, done.stdout)


def test_an_interrupt_ends_the_watching_and_not_the_job(trio: Trio, until: Callable[..., Any], tmp_path: Path) -> None:
    end = tmp_path / "end"
    _, out, _ = typed(
        "run", "--detach", "sh", "-c", f"echo begun; while [ ! -e {end} ]; do sleep 0.1; done; echo ended"
    )
    id_ = out.strip()
    watching = trio.desk.start("attach", id_)
    assert watching.stdout is not None
    assert watching.stdout.readline() == "begun\n"
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"job {id_} goes on" in err
    end.touch()
    assert typed("attach", id_)[:2] == (0, "begun\nended\n")
    assert typed("logs", id_)[:2] == (0, "begun\nended\n")


def test_a_cancelled_job_stops_wherever_it_runs(trio: Trio, until: Callable[..., Any], tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    _, out, _ = typed("run", "--detach", "sh", "-c", f"while true; do echo tick >> {ticks}; sleep 0.1; done")
    id_ = out.strip()
    until(ticks.exists, "it runs")
    refused = trio.nodes["r2"].kos("cancel", id_)  # another client, who is no admin
    assert refused.returncode == 6
    assert "may only cancel its own work" in refused.stderr
    assert typed("cancel", id_)[:2] == (0, f"{id_} is cancelled.\n")
    code, _, err = typed("attach", id_)
    assert code == 130
    assert "was cancelled by" in err

    def still() -> bool:
        size = ticks.stat().st_size
        time.sleep(0.5)
        return size == ticks.stat().st_size

    until(still, "it writes no more")
    assert trio.job(id_).state == "cancelled"
    code, _, err = typed("cancel", id_)
    assert code == 16
    assert f"The job {id_} is cancelled already" in err


@pytest.mark.usefixtures("trio")
@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("attach", "nothing1"), 5, "The cluster knows no detached job 'nothing1'"),
        (("attach", "no such id"), 5, "The cluster knows no detached job 'no such id'"),
        (("attach", "nothing1", "--files", "no-folder"), 2, "There is no folder no-folder"),
        (("cancel", "nothing1"), 5, "No node knows a job or task 'nothing1'"),
        (("logs", "nothing1"), 5, "No node knows a job or task 'nothing1'"),
        (("run", "--detach"), 2, "Nothing to run was given"),
        (("run", "--detach", "--on", "nowhere", "true"), 5, "No node 'nowhere' is in cluster 'lab'"),
        (("run", "--detach", "--cpus", "4096", "true"), 12, "No node can run true"),
        (("run", "--detach", "--distribute", "missing.py"), 2, "There is no script missing.py"),
    ],
)
def test_what_cannot_be_is_said(words: tuple[str, ...], code: int, sentence: str) -> None:
    ended, out, err = typed(*words)
    assert (ended, out) == (code, "")
    assert err.startswith(f"kos: {sentence}")


def test_an_observer_sees_a_job_and_takes_no_results(trio: Trio) -> None:
    id_ = typed("run", "--detach", "echo", "seen")[1].strip()
    assert typed("attach", id_)[:2] == (0, "seen\n")
    observer = trio.client("observer")
    done = observer.kos("attach", id_)
    assert (done.returncode, done.stdout) == (6, "seen\n")
    assert "may not take results" in done.stderr
    observer.end()
