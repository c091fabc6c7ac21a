"""MPI: each gang is a job of `mpiexec`, of which each process imports mpi4py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.ranks import REDUCE_RANKS
from kos_cluster.services.bench.systems import Gangs, program

JOB_TIMEOUT_S = 120
MEET = """
from mpi4py import MPI
comm = MPI.COMM_WORLD
comm.Barrier()
ranks = comm.gather(comm.rank)
if comm.rank == 0:
    print(*ranks)
"""
REDUCE = """
import sys
import numpy as np
from mpi4py import MPI
from kos_cluster.services.bench.ranks import rounds
comm = MPI.COMM_WORLD
def allreduce(array):
    total = np.empty_like(array)
    comm.Allreduce(array, total)
    return total
seconds = rounds(int(sys.argv[1]), comm.rank, comm.size, comm.Barrier, allreduce)
if comm.rank == 0:
    print(seconds)
"""
# MPICH: two cliques are what it takes for two nodes, between which it talks TCP.
OVER_TCP = {"MPIR_CVAR_NUM_CLIQUES": "2", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}


class MpiJobs:
    """Nothing runs between two jobs."""

    def start(self, folder: Path) -> None:
        self._mpiexec = program("mpiexec") or "mpiexec"
        self._folder = folder

    def gang(self, ranks: int) -> list[Any]:
        return [int(number) for number in self._job(ranks, MEET).split()]

    def allreduce(self, size_bytes: int) -> float:
        return float(self._job(REDUCE_RANKS, REDUCE, str(size_bytes), **OVER_TCP))

    def stop(self) -> None:
        """Nothing to end."""

    def _job(self, ranks: int, source: str, *arguments: str, **environ: str) -> str:
        done = subprocess.run(
            [self._mpiexec, "-n", str(ranks), sys.executable, "-c", source, *arguments],
            env=os.environ | environ,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"mpiexec ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout


open_gangs: type[Gangs] = MpiJobs
