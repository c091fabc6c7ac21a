"""Founding a cluster: its authority, the first nodes' credentials, and those of the user, who administers it.

Rules: cluster.json is written last, so a cluster that exists is whole. What a failed founding wrote is removed.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import uuid
from collections.abc import Sequence

from kos_cluster.core.roles import Role
from kos_cluster.home import ClusterFile, ClusterHome, private_folder
from kos_cluster.net.authority import CertificateAuthority


def found(cluster: ClusterHome, nodes: Sequence[str], bootstrap: Sequence[str], *, embedded: bool) -> None:
    """Write the folder of a new cluster whose nodes, all on this machine, have these names. Starts nothing."""
    try:
        private_folder(cluster.home.path)
        private_folder(cluster.path)
        authority = CertificateAuthority.create(cluster.name)
        for node in nodes:
            authority.local(uuid.uuid4().hex, node, Role.NODE).save(cluster.node(node))
        authority.local(uuid.uuid4().hex, f"{user_name()}@{host_name()}", Role.ADMIN).save(cluster.client)
        authority.save(cluster.path, cluster.home.path / "wrap.key")
        cluster.write(ClusterFile(cluster.name, authority.sha256, embedded, list(bootstrap), list(nodes)))
    except BaseException:
        shutil.rmtree(cluster.path, ignore_errors=True)
        raise


def user_name() -> str:
    """Who types this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return f"uid{os.getuid()}"


def host_name() -> str:
    """This machine's name, as a node's name."""
    name = "".join(
        char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in socket.gethostname()
    )
    return name.split(".")[0].strip("-.")[:64] or "node"
