"""Conjugate gradients on a matrix whose rows are spread over the ranks of a gang, and what a serial solver says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import kos_cluster as kos


def problem(size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A symmetric positive definite system, the same everywhere."""
    rng = np.random.default_rng(7)
    random = rng.standard_normal((size, size))
    return random @ random.T + size * np.eye(size), rng.standard_normal(size)


def solve(size: int, steps: int = 200, pause: str = "", every: int = 5) -> np.ndarray[Any, Any]:
    """Each rank holds some rows of the matrix; all get the whole solution. It begins where its last checkpoint was.

    With `pause`, a folder, the first epoch stops after its second checkpoint, and each epoch notes where it began.
    """
    comm = kos.comm()
    matrix, right = problem(size)
    mine = np.array_split(np.arange(size), comm.size)[comm.rank]
    rows = matrix[mine]
    state = kos.restored()
    if state is None:
        x, residual = np.zeros(len(mine)), right[mine].copy()
        state = 0, x, residual, residual.copy(), comm.allreduce(float(residual @ residual))
    began, x, residual, direction, squared = state
    if pause:
        (Path(pause) / f"rank{comm.rank}.epoch{comm.epoch}").write_text(str(began))
    for number in range(began, steps):
        if number % every == 0 and number > began:
            kos.checkpoint((number, x, residual, direction, squared))
            if pause and comm.epoch == 1 and number == 2 * every:
                (Path(pause) / f"rank{comm.rank}.paused").touch()
                time.sleep(600)
        whole = np.concatenate(comm.allgather(direction))
        product = rows @ whole
        step = squared / comm.allreduce(float(direction @ product))
        x += step * direction
        residual -= step * product
        before, squared = squared, comm.allreduce(float(residual @ residual))
        if squared < 1e-24:
            break
        direction = residual + squared / before * direction
    return np.concatenate(comm.allgather(x))
