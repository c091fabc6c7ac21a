"""What is looked at in a join request before its token is spent: the cluster, the versions, the name.

Rules. The wire version and Python's minor version must agree, as pickled code does not travel between them; the format
of the cluster's log must be one that the joiner reads. Other differences are warnings in the reply.
"""

from __future__ import annotations

import re

from kos_cluster.core.records import Versions
from kos_cluster.errors import IncompatibleError, JoinError
from kos_cluster.net.joining import JoinRequest

NAME_LIMIT_CHARACTERS = 64


def check_cluster(request: JoinRequest, cluster: str) -> None:
    """Raises JoinError when the joiner means another cluster."""
    if request.cluster != cluster:
        raise JoinError(
            f"This cluster is named {cluster!r}, not {request.cluster!r}.", f"Type 'kos cluster join {cluster}'."
        )


def checked_versions(theirs: Versions, ours: Versions, log_format: int) -> list[str]:
    """Warnings about differences that can be lived with. Raises IncompatibleError for those that cannot."""
    if theirs.wire != ours.wire:
        raise IncompatibleError(
            f"The joining machine speaks KOS wire version {theirs.wire} (KOS {theirs.kos}), "
            f"the cluster {ours.wire} (KOS {ours.kos}).",
            f"Install kos-cluster {ours.kos} on the joining machine.",
        )
    if theirs.log_format < log_format:
        raise IncompatibleError(
            f"The joining machine reads the log of a cluster up to format {theirs.log_format} (KOS {theirs.kos}); this "
            f"cluster's is written in format {log_format} (KOS {ours.kos}).",
            f"Install kos-cluster {ours.kos} on the joining machine.",
        )
    if _minor(theirs.python) != _minor(ours.python):
        raise IncompatibleError(
            f"The joining machine runs Python {theirs.python}, the cluster Python {ours.python}; "
            "code does not travel between different minor versions.",
            f"Install kos-cluster under Python {_minor(ours.python)} on the joining machine.",
        )
    pairs = (("Python", theirs.python, ours.python), ("KOS", theirs.kos, ours.kos))
    return [
        f"The joining machine has {what} {there}, the cluster {here}." for what, there, here in pairs if there != here
    ]


def client_name(request: JoinRequest) -> str:
    """What the client of a joining machine is called."""
    plain = re.sub(r"[^A-Za-z0-9._@-]", "-", f"{request.user or 'user'}@{request.name or 'host'}")
    return plain[:NAME_LIMIT_CHARACTERS]


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])
