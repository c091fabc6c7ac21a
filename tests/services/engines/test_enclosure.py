"""What is started in an enclosure ends with whoever started it: children in other sessions, files, all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kos_cluster.services.engines.enclosure import Enclosure
from tests.mesh.conftest import until

# The grandchild leaves group and session, and its parent ends: it is nobody's but the warden's.
COMMAND = ["bash", "-c", "(setsid sleep 300 &); sleep 300 & echo said; wait"]

KEEPER = f"""
import os, sys, time
from pathlib import Path
from kos_cluster.services.engines.enclosure import Enclosure
folder = Path(sys.argv[1])
enclosure = Enclosure({COMMAND!r}, folder, os.environ)
print(enclosure.pid, flush=True)
time.sleep(300)
"""


def beneath(warden: int) -> list[psutil.Process]:
    process = psutil.Process(warden)
    until(lambda: [each.name() for each in process.children(recursive=True)].count("sleep") == 2, "both sleep")
    return [process, *process.children(recursive=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "own"
    made.mkdir()
    return made


def test_all_of_it_ends_with_a_keeper_that_is_killed(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER, str(folder)], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        processes = beneath(int(keeper.stdout.readline()))
        keeper.kill()
        until(lambda: not any(map(psutil.Process.is_running, processes)), "all have ended")
    until(lambda: not folder.exists(), "the folder is removed")


def test_all_of_it_ends_when_it_is_closed(folder: Path) -> None:
    enclosure = Enclosure(COMMAND, folder, os.environ)
    processes = beneath(enclosure.pid)
    until(lambda: enclosure.said == "said\n", "what it says is kept")
    assert not enclosure.ended
    enclosure.close()
    assert enclosure.ended
    assert not any(map(psutil.Process.is_running, processes))
    assert not folder.exists()
    assert enclosure.said == ""


def test_all_of_it_ends_with_its_command(folder: Path) -> None:
    enclosure = Enclosure(COMMAND, folder, os.environ)
    _, command, *others = beneath(enclosure.pid)
    os.kill(command.pid, signal.SIGKILL)
    until(lambda: enclosure.ended, "the warden has ended")
    assert not any(map(psutil.Process.is_running, others))
    enclosure.close()


def test_the_group_of_a_warden_that_was_killed_ends_too(folder: Path) -> None:
    """What has left its group is then its node's to end, whose fork server adopts it."""
    enclosure = Enclosure(COMMAND, folder, os.environ)
    processes = beneath(enclosure.pid)
    group = [process for process in processes if os.getpgid(process.pid) == enclosure.pid]
    os.kill(enclosure.pid, signal.SIGKILL)
    until(lambda: enclosure.ended, "the warden has ended")
    enclosure.close()
    until(lambda: not any(map(psutil.Process.is_running, group)), "its group has ended")
    assert len(group) == len(processes) - 1
    for process in set(processes) - set(group):
        process.kill()
