"""Machines as KOS sees them: a KOS_HOME each, on which the real `kos` is typed and real daemons run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

COMMAND_TIMEOUT_S = 60
KOS = str(Path(sys.executable).with_name("kos"))

Ran = subprocess.CompletedProcess[str]


class Machine:
    """One KOS_HOME. `prefix` goes in front of each command, to run it in a network namespace."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="kos-"))
        self.home, self.work = self._folder / "home", self._folder / "work"  # beside it: KOS_HOME never travels
        for folder in (self.home, self.work):
            folder.mkdir()
        self._prefix = list(prefix)

    @property
    def environ(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("KOS_")}
        return plain | {"KOS_HOME": str(self.home)}

    def kos(self, *words: str, **environ: str) -> Ran:
        """Type a command. Whatever happens, there is never a traceback."""
        done = subprocess.run(
            [*self._prefix, KOS, *words],
            env=self.environ | environ,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert "error in KOS itself" not in done.stderr, done.stderr
        return done

    def ok(self, *words: str, **environ: str) -> str:
        """Type a command that must succeed; its stdout."""
        done = self.kos(*words, **environ)
        assert done.returncode == 0, f"kos {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Type a command that goes on."""
        return self.popen([KOS, *words])

    def popen(self, words: Sequence[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._prefix, *words],
            env=self.environ,
            cwd=self.work,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[int]:
        """Every process with this home in its environment."""
        marks = (f"KOS_HOME={self.home}".encode(), f"KOS_RUN={self.home}/".encode())
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    environ = (entry / "environ").read_bytes().split(b"\0")
                    if any(variable == marks[0] or variable.startswith(marks[1]) for variable in environ):
                        found.append(int(entry.name))
        return found

    def sockets(self) -> list[str]:
        """Socket files in this home, and sockets bound to a path in it, wherever they are."""
        files = [str(path) for path in self.home.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
        bound = [line for line in Path("/proc/net/unix").read_text().splitlines() if str(self.home) in line]
        return files + bound

    def end(self) -> None:
        """Whatever a test left behind goes."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)


def _until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Waits for a condition to become true; gives its value."""
    return _until


@pytest.fixture(scope="session")
def machine_of() -> Iterator[Callable[..., Machine]]:
    """Makes machines; they end with the session at the latest."""
    made: list[Machine] = []

    def make(*prefix: str) -> Machine:
        made.append(Machine(prefix))
        return made[-1]

    yield make
    for machine in made:
        machine.end()


@pytest.fixture
def machine(machine_of: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine of its own for one test."""
    made = machine_of()
    yield made
    made.end()


@pytest.fixture(scope="module")
def local(machine_of: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine with an embedded cluster of two nodes, shared by the tests of a module."""
    made = machine_of()
    made.ok("up", "-n", "2", "--label", "site=here", "--resource", "licence=1")
    yield made
    made.ok("down")
    made.end()
