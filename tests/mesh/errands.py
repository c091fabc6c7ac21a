"""What tests have done on nodes. It imports little, so that each new worker has it soon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def where(*_: object) -> str:
    """The node."""
    return os.environ["KOS_NODE"]


def stay_a_while(_: object) -> str:
    """Keep a slot long enough for the next task to be placed."""
    time.sleep(0.3)
    return where()


def hold(mark: str, go: str) -> str:
    """Say that it runs, and run until a file is there."""
    Path(mark).touch()
    while not os.path.exists(go):
        time.sleep(0.01)
    return where()


def with_gpus(lasts_s: float) -> tuple[str, float, float]:
    """The GPUs that it sees, and when it had them."""
    began = time.time()
    time.sleep(lasts_s)
    return os.environ["CUDA_VISIBLE_DEVICES"], began, time.time()


def made(size_bytes: int, byte: int = 7) -> Any:
    """An array of this byte."""
    import numpy as np

    return np.full(size_bytes, byte, dtype=np.uint8)


def made_to_stay(size_bytes: int, byte: int = 7) -> Any:
    """A block of it that stays where it is made, and that no task can make again."""
    import kos_cluster as kos

    return kos.stay(made(size_bytes, byte))


def memory_of(array: Any) -> tuple[str, int]:
    """The node, and the number of the file that is mapped where the array lies; 0 is this process's own memory."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        range_, _, _, _, inode, *_ = line.split()
        begin, end = (int(part, 16) for part in range_.split("-"))
        if begin <= address < end:
            return os.environ.get("KOS_NODE", ""), int(inode)
    raise AssertionError("it is mapped nowhere")


def last(array: Any) -> int:
    """The last byte."""
    return int(array[-1])


def total(array: Any) -> tuple[str, int]:
    """The node, and the sum of all bytes."""
    return where(), int(array.sum())
