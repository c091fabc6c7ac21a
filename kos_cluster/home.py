"""KOS_HOME: where a user's clusters, identities, sockets and logs lie on this machine.

    KOS_HOME/                       default by platformdirs; everything is 0700 or 0600
        wrap.key                    wraps the authorities' keys of this home at rest
        current                     name of the cluster used when neither --cluster nor KOS_CLUSTER is given
        clusters/NAME/
            cluster.json            `ClusterFile`
            ca.pem, ca.key          where the cluster was founded: its authority, the key wrapped
            client/                 the user's own credentials: cert.pem, key.pem, ca.pem, curve.json
            nodes/NODE/             a node's credentials in the same form, how it is started, and its durable state:
                                    state.sqlite, raft.sqlite, kept/ (parts of detached jobs)
            run/NODE/               what lives as long as the daemon: `ready.json`, `spool/`, `arena/`, HOST:PORT.sock
                                    (for the clients of this machine); and `log`

Rules: this module only names and reads paths; it starts nothing. Folders are made 0700 and never widened.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

import msgspec
import platformdirs

from kos_cluster.errors import NotInClusterError, StateError, UsageError

EMBEDDED_NAME = "local"
_SOCKET = ".sock"


class ClusterFile(msgspec.Struct, frozen=True):
    """What this machine knows of a cluster before it has talked to anyone."""

    name: str
    ca_sha256: str  # hex, of the CA's public key
    embedded: bool = False  # made by `kos up`, removed by `kos down`
    bootstrap: list[str] = []  # HOST:PORT of control ports known to have been members
    nodes: list[str] = []  # names of the nodes that this machine runs


class Ready(msgspec.Struct, frozen=True):
    """Written by a daemon when it can take work; read by `kos up`, local clients and `kos down`."""

    name: str
    id: str
    pid: int
    host: str
    port: int


def private_folder(path: Path) -> Path:
    """Make a folder (and its parents) that only the user can enter."""
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a 0600 file atomically and durably: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class ClusterHome:
    """The folder of one cluster."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.path = home.path / "clusters" / name

    @property
    def client(self) -> Path:
        return self.path / "client"

    def node(self, name: str) -> Path:
        return self.path / "nodes" / name

    def run(self, name: str) -> Path:
        return self.path / "run" / name

    def arena(self, name: str) -> Path:
        """Where a node's arena has its socket."""
        return self.run(name) / "arena"

    def exists(self) -> bool:
        return (self.path / "cluster.json").exists()

    def read(self) -> ClusterFile:
        """Raises NotInClusterError when this machine is not in the cluster, StateError when its file is damaged."""
        try:
            data = (self.path / "cluster.json").read_bytes()
        except FileNotFoundError:
            raise NotInClusterError(
                f"This machine is not in a cluster named {self.name!r}.",
                f"Type 'kos cluster join {self.name} HOST' with a token, or 'kos up' for one on this machine.",
            ) from None
        try:
            return msgspec.json.decode(data, type=ClusterFile)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError(
                f"{self.path / 'cluster.json'} is damaged ({error}).",
                f"Remove {self.path} and join again.",
            ) from None

    def write(self, file: ClusterFile) -> None:
        private_folder(self.path)
        write_private(self.path / "cluster.json", msgspec.json.encode(file))

    def ready(self, node: str) -> Ready | None:
        """What the daemon of that node wrote when it became ready; None when it has not, or has ended cleanly."""
        try:
            return msgspec.json.decode((self.run(node) / "ready.json").read_bytes(), type=Ready)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def new_socket(self, node: str, address: str) -> Path:
        """Where the daemon of that node, at that address (HOST:PORT), is to listen; older ones of it are removed."""
        for old in self.run(node).glob(f"*{_SOCKET}"):
            old.unlink(missing_ok=True)
        return self.run(node) / f"{address}{_SOCKET}"

    def socket_at(self, address: str) -> Path | None:
        """The control socket of the node of this machine that others know by that address; None if there is none."""
        return next((self.path / "run").glob(f"*/{glob.escape(address)}{_SOCKET}"), None)


class Home:
    """The folder of one user on this machine."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            given = os.environ.get("KOS_HOME")
            path = Path(given) if given else Path(platformdirs.user_data_dir("kos"))
        self.path = path.absolute()

    def clusters(self) -> list[str]:
        folder = self.path / "clusters"
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if (entry / "cluster.json").exists())

    def cluster(self, name: str | None = None) -> ClusterHome:
        """The cluster of that name; else KOS_CLUSTER's, the current one, or the only one.

        Raises NotInClusterError when there is none, UsageError when there are several and none is current.
        """
        chosen = name or os.environ.get("KOS_CLUSTER") or self._current()
        if chosen:
            return ClusterHome(self, checked_name(chosen))
        known = self.clusters()
        if not known:
            raise NotInClusterError(
                "This machine is in no cluster.",
                "Type 'kos up' for one on this machine, or 'kos cluster join NAME HOST' with a token.",
            )
        if len(known) > 1:
            raise UsageError(
                f"This machine is in several clusters: {', '.join(known)}.",
                "Name one with --cluster or KOS_CLUSTER.",
            )
        return ClusterHome(self, known[0])

    def set_current(self, name: str) -> None:
        private_folder(self.path)
        write_private(self.path / "current", name.encode())

    def _current(self) -> str:
        try:
            name = (self.path / "current").read_text().strip()
        except FileNotFoundError:
            return ""
        return name if name in self.clusters() else ""


def checked_name(name: str) -> str:
    """A cluster's or node's name: letters, digits, `-`, `_`, `.`, at most 64. Raises UsageError otherwise."""
    plain = name.replace("-", "a").replace("_", "a").replace(".", "a")
    if not (0 < len(name) <= 64 and plain.isascii() and plain.isalnum() and name[0] not in ".-"):
        raise UsageError(
            f"{name!r} cannot be a name.",
            "Use letters, digits, '-', '_' and '.', at most 64, not starting with '.' or '-'.",
        )
    return name
