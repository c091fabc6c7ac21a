"""`kos kernel install`, `list` and `remove`: the kernel "Python 3 (KOS)" for Jupyter."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column
from kos_cluster.errors import NotInClusterError, UnreachableError, UsageError
from kos_cluster.home import Home
from kos_cluster.services import kernelspec
from kos_cluster.tasks.kernels import KernelSpec
from kos_cluster.tasks.options import Options

COLUMNS = (Column("KERNEL"), Column("NAME"), Column("CLUSTER"), Column("PYTHON"), Column("FOLDER"))


def kernel_install_(parsed: argparse.Namespace, console: Console) -> int:
    """Write the kernelspec."""
    prefix = kernelspec.default_prefix()
    if parsed.user:
        prefix = None
    elif parsed.sys_prefix or parsed.prefix:
        prefix = parsed.prefix or sys.prefix
    remote = _remote(parsed)
    if remote is not None:
        _check_possible(parsed.cluster, remote, console)
    kernel = kernelspec.install(Home(), parsed.cluster, prefix, remote)
    console.answer(f"The kernel '{kernel.display_name}' is installed in {kernel.folder}.")
    return 0


def _remote(parsed: argparse.Namespace) -> kernelspec.Remote | None:
    """What a kernel on a node needs; None for one on this machine. Raises UsageError."""
    if parsed.remote:
        return kernelspec.Remote(parsed.cpus or 1, parsed.memory or 0, parsed.on or "")
    if parsed.cpus or parsed.memory or parsed.on:
        raise UsageError("--cpus, --memory and --on are of a kernel on a node.", "Add --remote.")
    return None


def _check_possible(cluster: str | None, remote: kernelspec.Remote, console: Console) -> None:
    """Refuse what no node of the cluster could ever run, if a cluster answers now; a note if that cannot be told.

    Raises PlacementError, NoSuchNodeError, AuthError, and NotInClusterError for a cluster that was named.
    """
    spec = KernelSpec("", "", Options(cpus=remote.cpus, memory=remote.memory_bytes, on=remote.on))
    try:
        kos.connect(cluster).check_kernel(spec)
    except (NotInClusterError, UnreachableError) as error:
        if cluster and isinstance(error, NotInClusterError):
            raise
        console.note(f"kos: whether a node can run it is seen when it starts: {error.message}")


def kernel_list_(parsed: argparse.Namespace, console: Console) -> int:
    """List our kernelspecs."""
    kernels = [asdict(kernel) for kernel in kernelspec.installed()]
    if parsed.json:
        console.json(kernels)
    else:
        console.listing(kernels, COLUMNS, [list(kernel.values()) for kernel in kernels])
        if not kernels:
            console.note("kos: no kernel of KOS is installed for this Python's Jupyter; type 'kos kernel install'.")
    return 0


def kernel_remove_(parsed: argparse.Namespace, console: Console) -> int:
    """Remove one of our kernelspecs."""
    cluster = parsed.cluster and f"{kernelspec.NAME}-{parsed.cluster.lower()}"
    folder = kernelspec.remove(parsed.name or cluster or kernelspec.NAME)
    console.answer(f"The kernel in {folder} is removed.")
    return 0
