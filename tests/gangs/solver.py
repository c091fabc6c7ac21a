"""Conjugate gradients on a matrix whose rows are spread over the ranks of a gang, and what a serial solver says."""

from __future__ import annotations

from typing import Any

import numpy as np

import kos_cluster as kos


def problem(size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A symmetric positive definite system, the same everywhere."""
    rng = np.random.default_rng(7)
    random = rng.standard_normal((size, size))
    return random @ random.T + size * np.eye(size), rng.standard_normal(size)


def solve(size: int, steps: int = 200) -> np.ndarray[Any, Any]:
    """Each rank holds some rows of the matrix; all get the whole solution."""
    comm = kos.comm()
    matrix, right = problem(size)
    mine = np.array_split(np.arange(size), comm.size)[comm.rank]
    rows = matrix[mine]
    x, residual = np.zeros(len(mine)), right[mine].copy()
    direction = residual.copy()
    squared = comm.allreduce(float(residual @ residual))
    for _ in range(steps):
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
