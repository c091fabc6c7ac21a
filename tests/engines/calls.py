"""What tests have an engine run: in a module of its own, which a worker loads fast."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy

from kos_cluster.tasks.blocks import BlockRef, stay

Seen = tuple[str, bool, bool]  # the node, whether it can be written to, whether it lies in a mapped block


def seen(array: numpy.ndarray) -> Seen:
    """Where an array is that a process has."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return os.environ.get("KOS_NODE", ""), array.flags.writeable, "memfd:kos-block" in line
    raise AssertionError("it is nowhere")


def seen_inside(refs: list[BlockRef]) -> Seen:
    """Likewise, of a reference that is not an argument itself."""
    return seen(refs[0].get())


def stays(count: int) -> BlockRef:
    return stay(numpy.ones(count))


def says(word: str) -> tuple[str, int, str]:
    print(word)
    return os.environ["KOS_NODE"], os.getpid(), word


def fails(text: str) -> None:
    raise KeyError(text)


def lasts(path: str) -> None:
    """Write down which process runs, and do not end."""
    Path(f"{path}.new").write_text(str(os.getpid()))
    os.rename(f"{path}.new", path)
    while True:
        time.sleep(0.01)
