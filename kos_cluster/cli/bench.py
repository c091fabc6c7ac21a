"""`kos bench`: measure KOS and its peers on the same work; `kos bench control` the control plane, `kos bench
notebook` the notebook's side, `kos bench memory` the moving of large values, `kos bench queued` tasks that wait, `kos
bench engines` Dask on KOS's nodes."""

from __future__ import annotations

import argparse

from kos_cluster.cli.console import Console


def bench_(parsed: argparse.Namespace, console: Console) -> int:
    """Run the benchmark; it prints its own figures."""
    from kos_cluster.services.bench.main import run

    return run(parsed)


def bench_control_(parsed: argparse.Namespace, console: Console) -> int:
    """Measure the control plane; it prints its own figures."""
    from kos_cluster.services.bench.control.main import run

    return run(parsed)


def bench_notebook_(parsed: argparse.Namespace, console: Console) -> int:
    """Measure the notebook's side; it prints its own figures."""
    from kos_cluster.services.bench.notebook import run

    return run(parsed)


def bench_memory_(parsed: argparse.Namespace, console: Console) -> int:
    """Measure the moving of large values; it prints its own figures."""
    from kos_cluster.services.bench.memory import run

    return run(parsed)


def bench_queued_(parsed: argparse.Namespace, console: Console) -> int:
    """Measure the memory that queued tasks take; it prints its own figures."""
    from kos_cluster.services.bench.queued import run

    return run(parsed)


def bench_engines_(parsed: argparse.Namespace, console: Console) -> int:
    """Measure Dask on KOS's nodes; it prints its own figures."""
    from kos_cluster.services.bench.engines import run

    return run(parsed)
