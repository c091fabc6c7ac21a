"""When a notebook comes to a cluster, and how it leaves: the first run starts one where there is none.

Rules: a cluster is started only for the first `run` of a notebook, on a machine that is in no cluster, and only when
none was named: a wrong name is a mistake, and who has typed `down` wants none. What is typed has been found good
before.
"""

from __future__ import annotations

import os
import sys

from kos_cluster.cli.main import run
from kos_cluster.errors import NotInClusterError
from kos_cluster.home import Home

_DECIDES = ("run", "up", "down", "create", "join")  # after these the user has said what cluster to use

_decided = False


def decided_by(action: str) -> None:
    """Note a command of the user's that says whether there is to be a cluster."""
    global _decided
    _decided = _decided or action in _DECIDES


def ensure_cluster(name: str | None) -> None:
    """Before a run on the cluster of that name (None: none was named): start one, if this is to be done.

    Raises NotInClusterError when it cannot be started.
    """
    first = not _decided
    decided_by("run")
    home = Home()
    if not first or name or os.environ.get("KOS_CLUSTER") or home.clusters():
        return
    sys.stderr.write("kos: this machine is in no cluster, so one is started on it; '%kos down' ends it.\n")
    if run(["up"], sys.stderr, sys.stderr) != 0:
        raise NotInClusterError("No cluster could be started on this machine.", "Type '%kos doctor'.")


def disconnect() -> None:
    """Close all connections of this process: its tasks that are not done are cancelled."""
    cluster = sys.modules.get("kos_cluster.tasks.cluster")  # only where it is in use
    if cluster is not None:
        cluster.disconnect()
