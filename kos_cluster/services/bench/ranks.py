"""What KOS's workers and MPI's processes run: light, as every rank imports it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from kos_cluster.services.bench.tasks import ones

REDUCE_RANKS = 4
ROUNDS = 5  # of an allreduce, after one that does not count


def stay(size_bytes: int) -> Any:
    """`ones`, as a result that stays where it was made."""
    import kos_cluster

    return kos_cluster.stay(ones(size_bytes))


def meet() -> int:
    """Wait for all ranks; the number of this one."""
    import kos_cluster

    comm = kos_cluster.comm()
    comm.barrier()
    return comm.rank


def reduce(size_bytes: int) -> float:
    """Sum an array over the ranks; the median seconds."""
    import kos_cluster

    comm = kos_cluster.comm()
    return rounds(size_bytes, comm.rank, comm.size, comm.barrier, comm.allreduce)


def rounds(
    size_bytes: int, rank: int, size: int, barrier: Callable[[], object], allreduce: Callable[[Any], Any]
) -> float:
    """The median seconds of an allreduce of `size_bytes` of double numbers. Raises RuntimeError when a sum is wrong."""
    import numpy as np

    array = np.full(size_bytes // 8, float(rank))
    taken = []
    for _ in range(ROUNDS + 1):
        barrier()
        began = time.perf_counter()
        total = allreduce(array)
        taken.append(time.perf_counter() - began)
        if total[-1] != sum(range(size)):
            raise RuntimeError(f"The sum of the ranks came to {total[-1]}.")
    return statistics.median(taken[1:])
