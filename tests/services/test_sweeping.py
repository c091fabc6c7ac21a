"""Finding and ending what belongs to a cluster, with real processes."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kos_cluster.home import ClusterHome, Home, Ready, private_folder
from kos_cluster.services import sweeping

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def cluster(short_folder: Path) -> ClusterHome:
    cluster = ClusterHome(Home(short_folder), "lab")
    private_folder(cluster.run("desk"))
    return cluster


@pytest.fixture
def spawned() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def spawn(spawned: list[subprocess.Popen[bytes]], run: Path | None, code: str) -> subprocess.Popen[bytes]:
    """A process of its own session that has printed a line, belonging to a run folder if one is given."""
    environ = os.environ | ({"KOS_RUN": str(run)} if run else {})
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, start_new_session=True
    )
    spawned.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def write_ready(cluster: ClusterHome, pid: int) -> None:
    ready = Ready("desk", "0" * 32, pid, "127.0.0.1", 7567)
    (cluster.run("desk") / "ready.json").write_bytes(msgspec.json.encode(ready))


def test_sweep_ends_what_belongs_and_nothing_else(cluster: ClusterHome, spawned: list[subprocess.Popen[bytes]]) -> None:
    stubborn = spawn(spawned, cluster.run("desk"), STUBBORN)
    parent = spawn(
        spawned,
        cluster.run("desk"),
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True);"
        "time.sleep(60)",
    )  # its first line is its child's
    namesake = spawn(spawned, cluster.path / "run" / "desk2", STUBBORN)
    stranger = spawn(spawned, None, STUBBORN)
    assert sweeping.sweep(cluster, ["desk"]) == 3
    assert stubborn.wait(5) == -signal.SIGKILL
    assert parent.wait(5) == -signal.SIGKILL
    assert namesake.poll() is None
    assert stranger.poll() is None
    assert not cluster.run("desk").exists()
    assert sweeping.sweep(cluster) == 1, "without names it is all the cluster's nodes"
    assert stranger.poll() is None
    assert sweeping.sweep(cluster) == 0


def test_sweep_spares_a_group_that_only_holds_what_belongs(
    cluster: ClusterHome, spawned: list[subprocess.Popen[bytes]]
) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", STUBBORN], process_group=0)
    environ = os.environ | {"KOS_RUN": str(cluster.run("desk"))}
    belonging = subprocess.Popen([sys.executable, "-c", STUBBORN], env=environ, process_group=bystander.pid)
    spawned += [bystander, belonging]
    assert sweeping.sweep(cluster) == 1
    assert belonging.wait(5) == -signal.SIGKILL
    assert bystander.poll() is None


def test_a_reused_pid_in_ready_json_is_not_taken_for_the_daemon(
    cluster: ClusterHome, spawned: list[subprocess.Popen[bytes]]
) -> None:
    stranger = spawn(spawned, None, STUBBORN)
    write_ready(cluster, stranger.pid)
    assert sweeping.alive(cluster, "desk") is None
    assert sweeping.stop(cluster, ["desk"]) == []
    assert stranger.poll() is None


def test_stop_kills_a_daemon_that_does_not_follow(
    cluster: ClusterHome, spawned: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "STOP_TIMEOUT_S", 0.1)
    stubborn = spawn(spawned, cluster.run("desk"), STUBBORN)
    write_ready(cluster, stubborn.pid)
    assert sweeping.stop(cluster, ["desk"]) == ["desk"]
    assert stubborn.wait(5) == -signal.SIGKILL


def test_nothing_waits_for_a_process_that_is_gone(cluster: ClusterHome) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    descriptor = os.pidfd_open(process.pid)
    select.select([descriptor], [], [], 10)
    os.close(descriptor)
    write_ready(cluster, process.pid)  # a zombie now
    assert sweeping.alive(cluster, "desk") is None
    process.wait()
