"""What every process of a Ray engine is told by its environment: certificates, the token, what it is not to do.

Theory of operation. Ray takes TLS files by name, and reads them whenever it opens a link. They lie in memfds of the
process that leads an engine's part (a rank, or a client's process), and are named beneath its /proc; so no key lies on
a disk, and they are gone with that process.

Rules. TLS and the token are always on. No report of usage leaves. Servers of metrics and the agents' HTTP are given a
port that cannot be: Ray says so in its log and goes on without them, as they would listen unencrypted.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Mapping
from typing import Any

from kos_cluster.services.engines import lazily
from kos_cluster.services.engines.engine import Credentials

NO_PORT = "-1"
OUTLIVED_S = 10**8  # that a driver lives on without a head; Ray has 60 s, and then ends its process
_FILES = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")

_writing = threading.Lock()


def of_member(credentials: Credentials) -> dict[str, str]:
    """What a process needs that speaks with a Ray. For this process and its descendants, and while it lives."""
    texts = (credentials.authority, credentials.certificate, credentials.key)
    with _writing:
        files = {variable: _memory_file(variable) for variable in _FILES}
        for fd, text in zip(files.values(), texts, strict=True):
            os.truncate(fd, 0)
            os.pwrite(fd, text.encode(), 0)
    return {
        "RAY_USE_TLS": "1",
        **{variable: f"/proc/{os.getpid()}/fd/{fd}" for variable, fd in files.items()},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": credentials.secret,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def of_node(credentials: Credentials, environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a head or a worker. What its user has set for Ray stays, but for what KOS decides."""
    return {
        **environ,
        **of_member(credentials),
        **lazily.put_beneath(environ),
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": NO_PORT,
        "DASHBOARD_METRIC_PORT": NO_PORT,
    }


def keep_loopback() -> None:
    """Have this process's Ray take 127.0.0.1 as it is. It takes it for the machine's outer address else, and then all
    its servers listen on all addresses; there is no setting for that.
    """
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host


@functools.cache
def _memory_file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def is_loopback(address: str) -> bool:
    """Whether a HOST:PORT is of this machine alone."""
    return address.startswith("127.")


def enter(credentials: Credentials) -> None:
    """Make this process a member, also one that was connected to another Ray before."""
    os.environ.update(of_member(credentials), RAY_gcs_rpc_server_reconnect_timeout_s=str(OUTLIVED_S))
    _raylet: Any = importlib.import_module("ray._raylet")
    _raylet.Config.initialize("")  # reads the environment again
    _raylet.AuthenticationTokenLoader.instance().reset_cache()
