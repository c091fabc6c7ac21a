"""Detached jobs on three machines: they outlive whoever submits, watches or drives them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.cli.main import run
from kos_cluster.core.records import JobSummary
from kos_cluster.core.replicated.commands import TaskResult
from kos_cluster.net.detached import DetachedJob, DetachedJobs, DetachedResults
from kos_cluster.net.identity import Credentials
from tests.e2e.test_cluster import Lab, free_port

TASKS = 20
WAITING = 1  # of them, for what a test does meanwhile: fewer than a node has slots, as what is queued stays where it is
RESULT_BYTES = 8 << 10  # of each task: together more than the replicated state keeps


def typed(*words: str) -> tuple[int, str, str]:
    """A command typed on the desk, run in this process, which is attached already: code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    code = run(words, out, err)
    assert "error in KOS itself" not in err.getvalue(), err.getvalue()
    return code, out.getvalue(), err.getvalue()


class Trio:
    """Three machines with a node each, a connection from one of them, and two whose users have none."""

    def __init__(self, make: Callable[..., Any], until: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
        self._make = make
        self.lab = Lab(make())
        self.nodes = {"desk": self.lab.founder}
        patch.setenv("KOS_HOME", str(self.desk.home))
        joining = [self._join("node", "--listen", f"127.0.0.1:{free_port()}", "--name", name) for name in ("r1", "r2")]
        joining += [self._join("client"), self._join("observer")]
        for _, typed in joining:
            assert typed.communicate(timeout=60) and typed.returncode == 0
        self.nodes["r1"], self.nodes["r2"], self.client, self.observer = [machine for machine, _ in joining]
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

    def alive(self) -> int:
        return sum(node["state"] == "alive" for node in self.cluster.nodes())

    def job(self, id_: str) -> JobSummary:
        return next(job for job in self.cluster.jobs() if job.job == id_)

    def kill(self, name: str) -> None:
        """SIGKILL a node's daemon."""
        os.kill(next(node["pid"] for node in self.cluster.nodes() if node["name"] == name), signal.SIGKILL)

    def end(self) -> None:
        self.cluster.close()
        for machine in (*self.nodes.values(), self.observer):
            machine.end()


@pytest.fixture(scope="module")
def trio(machine_of: Callable[..., Any], until: Callable[..., Any]) -> Iterator[Trio]:
    with pytest.MonkeyPatch.context() as patch:
        trio = Trio(machine_of, until, patch)
        yield trio
        trio.end()


MAP = """
import sys
import time
import kos_cluster as kos
from kos_cluster import errors

def work(i, runs=sys.argv[1], go=sys.argv[2]):
    import os, time
    fd = os.open(runs, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{i}\\n".encode())
    print("at", i, flush=True)
    while i >= TASKS - WAITING and not os.path.exists(go):
        time.sleep(0.05)
    return bytes([i]) * RESULT_BYTES

print(kos.connect().detach(work, range(TASKS)).id, flush=True)
time.sleep(600)
"""
SCRIPT = """
import sys
from concurrent.futures import ProcessPoolExecutor
from helper import triple

if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        print(sys.argv[1], list(pool.map(triple, range(4))))
    open("written.txt", "w").write("by the script")
    sys.exit(3)
"""


class Submitted(NamedTuple):
    """What a user has left behind whose machine is gone: jobs, and where the tasks of the map leave their traces."""

    map: str
    script: str
    runs: Path
    go: Path  # the last tasks of the map wait for it


@pytest.fixture(scope="module")
def submitted(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    folder, work = tmp_path_factory.mktemp("traces"), trio.client.work
    (work / "helper.py").write_text("def triple(x):\n    return 3 * x\n")
    (work / "script.py").write_text(SCRIPT)
    (work / "map.py").write_text(
        MAP.replace("TASKS", str(TASKS)).replace("WAITING", str(WAITING)).replace("RESULT_BYTES", str(RESULT_BYTES))
    )
    script = str(trio.client.ok("run", "--detach", "--distribute", "script.py", "with")).strip()
    program = trio.client.popen([sys.executable, "map.py", str(folder / "runs"), str(folder / "go")])
    map_ = program.stdout.readline().strip()
    program.kill()
    program.communicate()
    trio.client.end()  # with its disk
    return Submitted(map_, script, folder / "runs", folder / "go")


def test_a_script_runs_without_its_submitter_and_brings_its_files_to_whoever_asks(
    trio: Trio, submitted: Submitted, tmp_path: Path
) -> None:
    done = trio.nodes["r1"].kos("attach", submitted.script)
    assert (done.returncode, done.stdout) == (3, "with [0, 3, 6, 9]\n")
    assert f"'kos attach {submitted.script} --files FOLDER'" in done.stderr
    assert typed("attach", submitted.script, "--files", str(tmp_path))[:2] == (3, done.stdout)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"written.txt": "by the script"}
    assert (trio.job(submitted.script).state, trio.job(submitted.script).name) == ("failed", "script.py")
    assert typed("logs", submitted.script)[:2] == (0, done.stdout)


def test_a_map_outlives_its_submitter_and_its_driver(
    trio: Trio, submitted: Submitted, until: Callable[..., Any]
) -> None:
    job = trio.cluster.attach(submitted.map)
    until(lambda: job.state().done == TASKS - WAITING, "all results but the last are committed")
    driver = job.state().driver_name
    watcher = next(name for name in trio.nodes if name != driver)
    attached = trio.nodes[watcher].start("attach", job.id)
    assert attached.stdout.readline().startswith("at ")  # it has attached
    results = trio.cluster._mesh.request(DetachedResults(job.id), list[TaskResult])
    committed = {result.task for result in results}
    assert len(committed) == TASKS - WAITING
    ids = {row["id"]: row["name"] for row in trio.cluster.nodes()}
    kept = [{ids[id_] for id_ in result.holders} for result in results if result.inline is None]
    assert kept, "not all of them are in the replicated state"
    assert all(len(holders) == 2 and driver in holders for holders in kept), "those lie on two disks, one of them lost"
    trio.kill(driver)
    until(lambda: job.state().epoch == 2, "another node drives it", 30)
    submitted.go.touch()
    out, err = attached.communicate(timeout=60)
    assert attached.returncode == 0, err
    assert f"drives job {job.id} on" in err
    assert out.count(repr(bytes([7]) * RESULT_BYTES)) == 1  # the results stand after the output
    record = job.state()
    assert (record.state, record.done, record.failed, record.epoch) == ("done", TASKS, 0, 2)
    assert record.driver_name != driver
    counted = Counter(map(int, submitted.runs.read_text().split()))
    assert set(counted) == set(range(TASKS))
    assert {task: counted[task] for task in committed} == dict.fromkeys(committed, 1)
    assert job.results() == [bytes([i]) * RESULT_BYTES for i in range(TASKS)]
    trio.nodes[driver].ok("up")
    until(lambda: trio.alive() == 3, "three nodes are alive again")


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


def held(marks: str, go: str) -> None:
    """A task that shows where it runs, and ends when it may."""
    mark = Path(marks, f"{os.environ['KOS_NODE']} {os.getpid()} {time.time_ns()}")
    mark.touch()
    try:
        while not os.path.exists(go):
            time.sleep(0.05)
    finally:  # interrupted, its process may go on with other tasks
        mark.unlink()


def running(marks: Path) -> dict[str, str]:
    """The marks of such tasks that run, with the names of their nodes."""
    named = {mark.name: mark.name.split() for mark in marks.iterdir()}
    return {mark: node for mark, (node, pid, _) in named.items() if os.path.exists(f"/proc/{pid}")}


def test_what_a_driver_that_stands_still_runs_elsewhere_ends_when_another_drives(
    trio: Trio, until: Callable[..., Any], tmp_path: Path
) -> None:
    """A machine without power says no goodbye: its slots elsewhere are free long before the owner's lease has ended."""
    marks, go = tmp_path / "marks", tmp_path / "go"
    marks.mkdir()
    job = trio.cluster.detach(held, [str(marks)] * 6, [str(go)] * 6)
    until(lambda: set(running(marks).values()) == set(trio.nodes), "each node has some of it")
    driver = job.state().driver_name
    first = {mark for mark, node in running(marks).items() if node != driver}
    pid = next(node["pid"] for node in trio.cluster.nodes() if node["name"] == driver)
    still = [process for process in psutil.Process(pid).children() if "kos_cluster.tasks.driver" in process.cmdline()]
    still.append(psutil.Process(pid))
    assert len(still) == 2
    for process in still:
        process.suspend()
    try:
        until(lambda: job.state().epoch == 2, "another node drives it", 30)
        until(lambda: not first & set(running(marks)), "what ran elsewhere has ended")
        assert {process.status() for process in still} == {psutil.STATUS_STOPPED}
        go.touch()
        assert job.wait(60).state == "done"
    finally:
        for process in reversed(still):
            process.resume()
    until(lambda: trio.alive() == 3, "three nodes are alive again", 40)


def test_why_tasks_of_a_detached_job_wait_is_told_everywhere(
    trio: Trio, until: Callable[..., Any], tmp_path: Path
) -> None:
    marks, go = tmp_path / "marks", tmp_path / "go"
    marks.mkdir()
    job = trio.cluster.detach(held, [str(marks)] * 2, [str(go)] * 2, max_parallel=1)
    until(lambda: running(marks), "one of them runs")
    try:
        waits = "it needs 1 slot. its cap of 1 at once is reached"
        for asked in (typed("why", "--json", job.id)[1], trio.observer.ok("why", "--json", job.id)):
            assert [row["why"] for row in json.loads(asked) if row["state"] == "waiting"] == [waits]
    finally:
        go.touch()
    assert job.wait(60).state == "done"


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
    done = trio.observer.kos("attach", id_)
    assert (done.returncode, done.stdout) == (6, "seen\n")
    assert "may not take results" in done.stderr


def test_removing_a_client_ends_its_jobs_and_without_its_keepers_a_result_is_lost_with_a_sentence(
    trio: Trio, until: Callable[..., Any], machine_of: Callable[..., Any], tmp_path: Path
) -> None:
    """The last test of these machines: two of the three nodes are removed."""
    typed("cluster", "drain", "desk")  # so the others keep what a job leaves
    lost = trio.cluster.detach(bytes, [100_000])
    assert lost.wait(30).state == "done"

    guest, joining = trio._join("client")
    joining.communicate(timeout=60)
    ticks = tmp_path / "ticks"
    id_ = guest.ok("run", "--detach", "sh", "-c", f"while true; do echo tick >> {ticks}; sleep 0.1; done").strip()
    until(ticks.exists, "it runs")
    identity = guest.json("status")["identity"]
    same = [row for row in trio.cluster._mesh.request(DetachedJobs(), list[DetachedJob]) if row.id == id_]
    assert same[0].user == identity
    guest_id = Credentials.load(guest.home / "clusters" / "lab" / "client").peer.id
    assert typed("cluster", "remove", guest_id, "--yes")[0] == 0
    until(lambda: trio.job(id_).state == "cancelled", "the job of the removed client is ended")

    assert lost.results() == [bytes(100_000)]
    typed("cluster", "drain", "desk", "--undo")
    for name in ("r1", "r2"):
        typed("cluster", "drain", name)
    until(lambda: trio.cluster.status()["coordinator"] == "desk", "the one that stays coordinates", 30)
    for name in ("r1", "r2"):
        code, _, err = typed("cluster", "remove", name, "--yes")
        assert code == 0, err
        until(lambda: trio.alive() == (2 if name == "r1" else 1), f"{name} is gone", 30)  # noqa: B023
    code, _, err = typed("attach", lost.id)
    assert code == errors.TaskLostError.exit_code
    assert (
        f"kos: The result of task {lost.id}.0 cannot be had: r1 and r2, which kept it, are gone for good."
        in err.replace("r2 and r1", "r1 and r2")
    )
    assert "Submit the job again." in err
    guest.end()
