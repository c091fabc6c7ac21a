"""After `kos down` nothing is left, whatever was killed before and in which order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

CLIENT = """
import subprocess, sys, time
import kos_cluster as kos

def work(marks, number):
    # A child in a session of its own, as user code may start one.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    open(f"{marks}/{number}", "w").write(str(child.pid))
    time.sleep(300)

kos.connect().gather([kos.connect().submit(work, sys.argv[1], number) for number in range(2)])
"""
ORDERS = [
    ("client", "worker", "fork server", "daemon"),
    ("daemon", "fork server", "worker", "client"),
    ("fork server", "client", "daemon", "worker"),
    ("worker", "daemon", "client", "fork server"),
    (),
]


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def kinds(machine: Any, client: int) -> dict[str, list[int]]:
    pids = machine.processes()
    daemons = [pid for pid in pids if "-m kos_cluster.node " in command_line(pid)]
    servers = [pid for pid in pids if parent(pid) in daemons]
    workers = [pid for pid in pids if parent(pid) in servers]
    return {"client": [client], "daemon": daemons, "fork server": servers, "worker": workers}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: ", ".join(order) or "nothing killed")
def test_nothing_is_left_after_down(order: tuple[str, ...], machine: Any, until: Callable[..., Any]) -> None:
    before = shared_memory()
    machine.ok("up", "-n", "2")
    marks = machine.home / "marks"
    marks.mkdir()
    script = machine.home / "client.py"
    script.write_text(CLIENT)
    client = machine.popen([sys.executable, str(script), str(marks)])
    until(lambda: len([mark for mark in marks.iterdir() if mark.stat().st_size]) == 2, "both tasks run")
    found = kinds(machine, client.pid)
    assert all(found.values()), found
    for kind in order:
        for pid in found[kind]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    assert machine.kos("down").returncode == 0
    client.kill()  # which is the user's own process, and not KOS's to end
    client.communicate()
    assert [(pid, command_line(pid)) for pid in machine.processes()] == []
    assert machine.sockets() == []
    new = shared_memory() - before  # also of other programs, which remove theirs
    until(lambda: not new & shared_memory(), f"nothing is left in shared memory of {sorted(new)}")
    assert not (machine.home / "clusters" / "local").exists()
    assert machine.kos("down").returncode == 0, "and typing it again is no error"


def test_an_up_that_was_killed_half_way_leaves_nothing_after_down(machine: Any, until: Callable[..., Any]) -> None:
    up = machine.start("up", "-n", "2")
    until(lambda: kinds(machine, 0)["daemon"], "a daemon is being started")
    up.kill()
    up.communicate()
    machine.ok("down")
    assert machine.processes() == []
    assert not (machine.home / "clusters" / "local").exists()
