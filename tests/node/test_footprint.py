"""What a worker and its children hold of memory, and when a machine is too full."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.node.footprint import held_bytes
from kos_cluster.node.highwater import HIGH_WATER_PERCENT, LOW_WATER_PERCENT, HighWater

MIB = 1 << 20
HOLDS_AND_FORKS = """
import os, sys
data = bytearray(os.urandom(1 << 20) * 64)
child = os.fork()
if child == 0:
    own = bytearray(os.urandom(1 << 20) * 32)
    print("ready", flush=True)
    sys.stdin.readline()
else:
    os.waitpid(child, 0)
"""


@pytest.fixture
def holder() -> Iterator[int]:
    """A process with 64 MiB, and a child that shares them and has 32 MiB of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_AND_FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate("\n")


def test_what_is_shared_with_a_child_counts_once_and_what_the_child_has_counts_too(holder: int) -> None:
    exact = held_bytes(holder, 1 * MIB)
    assert 96 * MIB <= exact < 128 * MIB
    assert held_bytes(holder, 1 << 40) >= 160 * MIB  # far below the limit a look that counts twice is enough


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert held_bytes(4711, 0, tmp_path) == 0


def test_the_high_water_mark_is_left_well_below_it() -> None:
    mark = HighWater()
    assert not mark.measured(HIGH_WATER_PERCENT - 0.1) and mark.why == ""
    assert mark.measured(HIGH_WATER_PERCENT + 1) and "its memory is 96% full" in mark.why
    assert not mark.measured(LOW_WATER_PERCENT) and mark.why
    assert mark.measured(LOW_WATER_PERCENT - 0.1) and mark.why == ""
