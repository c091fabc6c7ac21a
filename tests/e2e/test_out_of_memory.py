"""A worker that the kernel kills for want of memory: told by the kernel's own counters, tried once more, no more."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

LIMIT_BYTES = 384 << 20  # of the node with all of its processes
TASKS = """
import os, sys
import kos_cluster as kos
from kos_cluster.errors import TaskLostError

def grow(marks):
    open(marks, "a").write("x")
    held = []
    while True:
        held.append(os.urandom(1 << 20))

def killed(marks):
    open(marks, "a").write("x")
    os.kill(os.getpid(), 9)

cluster = kos.connect()
for work, options in ((grow, {}), (killed, {"retries": 0})):
    marks = f"{sys.argv[1]}-{work.__name__}"
    future = cluster.submit(work, marks, **options)
    try:
        future.result()
    except TaskLostError as error:
        print(str(error).replace("\\n", " "))
    print(os.path.getsize(marks))
    print([str(attempt.end) for attempt in future.story().attempts])
"""


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory cgroup of this test's own, with a limit; version 1 or 2, as the machine has it."""
    name = f"kos-test-{random.randrange(16**8):08x}"
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(root) / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / limit).exists():
                (folder / limit).write_text(str(LIMIT_BYTES))
                with suppress(OSError):  # without swap there is nothing to forbid
                    (folder / "memory.swap.max").write_text("0")
                yield folder
                return
        finally:
            with suppress(OSError):
                folder.rmdir()
    pytest.skip("no memory cgroup can be made here")


def test_out_of_memory_is_told_and_tried_once_more(
    limited: Path, machine_of: Callable[..., Any], tmp_path: Path, until: Callable[..., Any]
) -> None:
    inside = machine_of("sh", "-c", f'echo $$ > {limited}/cgroup.procs && exec "$@"', "sh")
    inside.ok("up", "-n", "1")
    try:
        (inside.home / "tasks.py").write_text(TASKS)
        program = subprocess.run(  # not in the cgroup: it is the node that has too little
            [sys.executable, str(inside.home / "tasks.py"), str(tmp_path / "marks")],
            env=inside.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert program.returncode == 0, program.stderr
        eaten, runs, ends, killed, killed_runs, killed_ends = program.stdout.splitlines()
        assert "ran out of memory on node1: the kernel killed its worker (2 attempts" in eaten
        assert (runs, ends) == ("2", "['out-of-memory', 'out-of-memory']")
        assert "SIGKILL, cause unknown" in killed
        assert "memory" not in killed
        assert (killed_runs, killed_ends) == ("1", "['worker-lost']")
        assert inside.ok("run", "echo", "well") == "well\n"
    finally:
        inside.ok("down")
        inside.end()
    until(lambda: not (limited / "cgroup.procs").read_text().split(), "nothing is left in the cgroup")
