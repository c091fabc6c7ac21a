"""The tasks of the works that are more than no-ops. Light: every system's workers import this."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

SPIN_S = 0.001  # of processor time
SLEEP_S = 0.010


def spin(item: int) -> int:
    """Use a millisecond of processor time."""
    began = time.thread_time()
    while time.thread_time() - began < SPIN_S:
        pass
    return item


def sleep(item: int) -> int:
    """Use no processor time for 10 ms."""
    time.sleep(SLEEP_S)
    return item


def leaf(item: int) -> int:
    """A leaf of the tree."""
    return item


def add(left: int, right: int) -> int:
    """An inner node of the tree."""
    return left + right


def ones(size_bytes: int) -> Any:
    """An array of ones, of a byte each."""
    import numpy as np

    return np.ones(size_bytes, dtype=np.uint8)


def last(array: Any) -> int:
    """The last element: the whole array had to come."""
    return int(array[-1])


def nap(item: int, seconds: float, folder: str) -> int:
    """Say that it has begun, by a file; then sleep."""
    (Path(folder) / f"nap{item}").touch()
    time.sleep(seconds)
    return item
