"""What the figures were measured on: the machine and the versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil
import zmq

DISTRIBUTIONS = (
    "kos-cluster",
    "pyzmq",
    "msgspec",
    "cloudpickle",
    "numpy",
    "scikit-learn",
    "distributed",
    "ray",
    "ipyparallel",
    "loky",
    "parsl",
    "mpi4py",
    "mpich",
)


def machine() -> dict[str, str | int | list[float]]:
    """Cores, memory, kernel and processor; `load` tells whether others used the machine when the run began."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of the interpreter, ZeroMQ and the distributions that are installed."""
    found = {"python": platform.python_version(), "libzmq": zmq.zmq_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()
