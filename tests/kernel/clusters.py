"""A cluster for the kernels of a test module, driven by the command."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kos_cluster.core.roles import Role
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home, private_folder
from tests.mesh.speaker import authority_of, identity

COMMAND_TIMEOUT_S = 60


def kos(*words: str, home: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kos_cluster.cli.main", *words],
        env={**os.environ, "KOS_HOME": home, **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


@contextlib.contextmanager
def cluster_of(count: int) -> Iterator[str]:
    """A cluster of so many nodes; its KOS_HOME."""
    folder = tempfile.mkdtemp(prefix="kos-")
    try:
        done = kos("up", "-n", str(count), home=folder)
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        kos("down", home=folder)
        shutil.rmtree(folder, ignore_errors=True)


def add_user(home: Path, role: Role, folder: Path) -> None:
    """Make `folder` the KOS_HOME of another user of an embedded cluster, with a role of their own."""
    ours, theirs = ClusterHome(Home(home), EMBEDDED_NAME), ClusterHome(Home(folder), EMBEDDED_NAME)
    theirs.write(ours.read())
    identity(authority_of(ours.home), role).save(private_folder(theirs.client))
    for node in ours.read().nodes:
        shutil.copy(ours.run(node) / "ready.json", private_folder(theirs.run(node)))
