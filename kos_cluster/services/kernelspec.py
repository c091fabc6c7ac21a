"""The kernel "Python 3 (KOS)" as Jupyter knows it: kernelspecs that start `python -m kos_kernel`.

Theory of operation. Jupyter looks for kernels in the folders of its data path, a folder each; the earlier ones hide the
later. A kernelspec of ours starts the Python that runs this, and has the cluster that it attaches to in its metadata
and, as KOS_CLUSTER, in its environment. The kernel's module is only named here, since the command does not need it.
One for a remote kernel names our provisioner instead, which has the kernel run on a node; see `kos_kernel.provisioner`.

Rules: only what has our mark in its metadata is listed and removed. A kernel for a cluster that this machine is not in
is refused.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import make_ipkernel_cmd, write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from kos_cluster.core.capacity import gib
from kos_cluster.errors import StateError, UsageError
from kos_cluster.home import Home

NAME = "kos"
DISPLAY_NAME = "Python 3 (KOS)"
MODULE = "kos_kernel"
REMOTE = "remote"
PROVISIONER = "kos-provisioner"  # as our package's entry point calls it
MARK = "kos"  # the key of our metadata


@dataclass(frozen=True)
class Kernel:
    """A kernelspec of ours."""

    name: str  # as Jupyter calls it
    display_name: str
    cluster: str  # empty: the current one
    python: str
    folder: str


@dataclass(frozen=True)
class Remote:
    """What a kernel that runs on a node needs there."""

    cpus: int = 1
    memory_bytes: int = 0
    on: str = ""  # a node's name; empty: any

    def __str__(self) -> str:
        parts = [f"{self.cpus} {'core' if self.cpus == 1 else 'cores'}"]
        if self.memory_bytes:
            parts.append(gib(self.memory_bytes))
        return f"{', '.join(parts)} on {self.on or 'a node'}"


def install(home: Home, cluster: str | None, prefix: str | None, remote: Remote | None = None) -> Kernel:
    """Write the kernelspec beneath `prefix`, or for the user when that is None. An older one of ours is replaced.

    Raises NotInClusterError when this machine is not in the cluster, UsageError when it cannot be written there.
    """
    if cluster:
        home.cluster(cluster).read()
    name = "-".join([NAME, *([REMOTE] if remote else []), *([cluster.lower()] if cluster else [])])
    display_name = f"{DISPLAY_NAME}: {cluster}" if cluster else DISPLAY_NAME
    if remote is not None:
        display_name += f", {remote}"
    with tempfile.TemporaryDirectory(prefix="kos-") as folder:
        source = write_kernel_spec(Path(folder) / name, _overrides(display_name, cluster or "", remote))
        try:
            written = KernelSpecManager().install_kernel_spec(source, name, user=prefix is None, prefix=prefix)
        except OSError as error:
            raise UsageError(
                f"The kernel cannot be written to {error.filename or prefix} ({error.strerror or error}).",
                "Choose another place: --user, --sys-prefix or --prefix.",
            ) from None
    return Kernel(name, display_name, cluster or "", sys.executable, written)


def default_prefix() -> str | None:
    """Where the kernel goes when nothing was said: this Python's virtual environment, or else the user's folder."""
    return sys.prefix if sys.prefix != sys.base_prefix else None


def installed() -> list[Kernel]:
    """Our kernels, as far as this Python's Jupyter finds them."""
    found = []
    for name, entry in sorted(KernelSpecManager().get_all_specs().items()):
        spec = entry["spec"]
        if MARK in spec["metadata"]:
            cluster = str(spec["metadata"][MARK].get("cluster", ""))
            found.append(Kernel(name, spec["display_name"], cluster, spec["argv"][0], entry["resource_dir"]))
    return found


def remove(name: str) -> str:
    """Remove a kernel of ours; its folder. Raises UsageError when it is not there, or not ours."""
    specs = KernelSpecManager()
    ours = {kernel.name for kernel in installed()}
    if name not in ours:
        there = f"The kernel {name!r} is not one of KOS's." if _exists(specs, name) else f"There is no kernel {name!r}."
        raise UsageError(there, f"Those of KOS are: {', '.join(sorted(ours))}." if ours else "None of KOS's is.")
    try:
        return str(specs.remove_kernel_spec(name))
    except OSError as error:
        raise StateError(f"{error.filename} could not be removed ({error.strerror}).", "Remove the folder.") from None


def _overrides(display_name: str, cluster: str, remote: Remote | None) -> dict[str, Any]:
    """What differs from ipykernel's own kernelspec. `-P`: no file beside the notebook stands for a module of ours."""
    given = {"KOS_CLUSTER": cluster, "KOS_HOME": os.environ.get("KOS_HOME", "")}
    metadata: dict[str, Any] = {"debugger": True, MARK: {"cluster": cluster}}
    if remote is not None:
        config = {"cluster": cluster, "cpus": remote.cpus, "memory": remote.memory_bytes, "on": remote.on}
        metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER, "config": config}
    return {
        "argv": make_ipkernel_cmd(MODULE, python_arguments=["-P"]),
        "display_name": display_name,
        "env": {variable: value for variable, value in given.items() if value},
        "metadata": metadata,
        **({"interrupt_mode": "message"} if remote is not None else {}),  # a signal does not travel
    }


def _exists(specs: KernelSpecManager, name: str) -> bool:
    try:
        specs.get_kernel_spec(name)
    except NoSuchKernel:
        return False
    return True
