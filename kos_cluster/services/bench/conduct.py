"""Runs one part on one system in a process of its own, within a time limit, and clears away whatever it leaves.

Theory of operation. The process and everything it starts inherit a random mark in the environment; daemons that leave
the session or are adopted by init still carry it. When the run is over, whoever carries the mark is ended by
process id, and the run's folder, which holds all its files, is removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

from kos_cluster.services.bench.figures import Part, Sample
from kos_cluster.services.bench.measure import SAMPLES_FILE, Assignment
from kos_cluster.services.bench.plan import Plan

RUN_TIMEOUT_S = 300.0  # of one system's repeat, cluster start included
END_TIMEOUT_S = 5.0  # for processes to end after SIGTERM, and again after SIGKILL
LINGER_TIMEOUT_S = 6.0  # for processes that are ending of themselves; ipyparallel's watchers take 4
LOG_TAIL_LINES = 3
MARK = "KOS_BENCH_RUN"
_FOLDER_PREFIX = "kb-"  # short, for the sockets in it
_DROPPED = ("KOS_CLUSTER", "KOS_TOKEN", "KOS_TASK", "KOS_ATTEMPT", "KOS_NODE")


class Run(msgspec.Struct, frozen=True):
    """What one run brought. `failure` says why it ended early; `left` names processes that had to be ended."""

    samples: list[Sample]
    failure: str = ""
    left: tuple[str, ...] = ()


def run_once(system: str, part: Part, plan: Plan, timeout_s: float = RUN_TIMEOUT_S) -> Run:
    """Measure a part on `system` once in a fresh process and a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    mark = secrets.token_hex(8)
    failure = "was interrupted"
    left: tuple[str, ...] = ()
    try:
        try:
            failure = _measured(system, part, plan, folder, mark, timeout_s)
        finally:
            left = _cleared(mark, 0 if failure else LINGER_TIMEOUT_S)
        return Run(_samples(folder), failure, left)
    finally:
        shutil.rmtree(folder)


def _measured(system: str, part: Part, plan: Plan, folder: Path, mark: str, timeout_s: float) -> str:
    """Run the measuring process; the reason of its failure, or empty."""
    log = folder / "log"
    with open(log, "wb") as output:
        job = Assignment(system, part, plan, str(folder), time.monotonic())
        process = subprocess.Popen(
            [sys.executable, "-m", "kos_cluster.services.bench.measure", msgspec.json.encode(job).decode()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(folder, mark),
            cwd=folder,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout_s:.0f} s; {_tail(log)}"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return "" if status == 0 else f"ended with status {status}; {_tail(log)}"


def _environment(folder: Path, mark: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    # Parsl starts programs of its own, which lie beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    own = {MARK: mark, "PATH": path, "TMPDIR": folder, "KOS_HOME": folder / "k", "IPYTHONDIR": folder / "ipython"}
    return inherited | {key: str(value) for key, value in own.items()}


def _samples(folder: Path) -> list[Sample]:
    path = folder / SAMPLES_FILE
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Sample) for line in path.read_bytes().splitlines()]


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "its last lines: " + " / ".join(lines[-LOG_TAIL_LINES:]) if lines else "it printed nothing"


def _cleared(mark: str, linger_s: float) -> tuple[str, ...]:
    """End every process that carries the mark; the names of those that did not end of themselves within `linger_s`."""
    _, alive = psutil.wait_procs(_marked(mark), timeout=linger_s)
    alive = list({process.pid: process for process in [*alive, *_marked(mark)]}.values())
    names = tuple(_name(process) for process in alive)
    for process in alive:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(alive, timeout=END_TIMEOUT_S)
    for process in [*alive, *_marked(mark)]:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=END_TIMEOUT_S)
    return names


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def _name(process: psutil.Process) -> str:
    try:
        return f"{process.name()} ({process.pid})"
    except psutil.NoSuchProcess:
        return f"({process.pid})"


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return
