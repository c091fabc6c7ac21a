"""What every process of a Ray engine is told by its environment: certificates, the token, what it is not to do.

Theory of operation. Ray takes TLS files by name, and reads them whenever it opens a link. They lie in memfds of the
process that leads an engine's part (a rank, or a client's process), and are named beneath its /proc; so no key lies on
a disk, and they are gone with that process. Ray's C++ part reads the environment once in a process's life, when it is
first asked for a setting. So the names stay the same for a process, and what is in them is what changes.

Rules. TLS and the token are always on. No report of usage leaves. Servers of metrics and the agents' HTTP are given a
port that cannot be: Ray says so in its log and goes on without them, as they would listen unencrypted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from kos_cluster.services.engines.engine import Credentials

NO_PORT = "-1"
_FILES = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")


def of_member(credentials: Credentials) -> dict[str, str]:
    """What a process needs that speaks with a Ray. For this process and its descendants, and while it lives."""
    texts = (credentials.authority, credentials.certificate, credentials.key)
    for variable, text in zip(_FILES, texts, strict=True):
        fd = _memory_file(variable)
        os.truncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)
    return {
        "RAY_USE_TLS": "1",
        **{variable: f"/proc/{os.getpid()}/fd/{_memory_file(variable)}" for variable in _FILES},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": credentials.secret,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def of_node(credentials: Credentials, environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a head or a worker. What its user has set for Ray stays, but for what KOS decides."""
    return {
        **environ,
        **of_member(credentials),
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": NO_PORT,
        "DASHBOARD_METRIC_PORT": NO_PORT,
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }


@functools.cache
def _memory_file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)
