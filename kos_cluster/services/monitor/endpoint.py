"""The HTTP endpoint of `kos metrics`, for Prometheus.

Rules: on loopback it answers everybody on this machine; an address that others can reach needs a bearer token, which
lies in a file that only its owner can read. Nothing but `GET /metrics` (and `/`) is answered. Slow clients are cut off
after `CLIENT_TIMEOUT_S`; each is served by a thread of its own, at most `CLIENTS_LIMIT` at once.
"""

from __future__ import annotations

import errno
import hmac
import ipaddress
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from kos_cluster.errors import PortTakenError, StateError, UsageError
from kos_cluster.home import write_private
from kos_cluster.services.monitor.exporter import ClusterCollector

PORT = 7566
CLIENT_TIMEOUT_S = 10.0
CLIENTS_LIMIT = 16
TOKEN_BYTES = 32
TOKEN_LIMIT_BYTES = 4096  # of a token's file

Application = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


class Server(ThreadingMixIn, WSGIServer):
    """Serves scrapes until it is shut down."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, application: Application) -> None:
        """Raises PortTakenError, or UsageError for an address that this machine does not have."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(CLIENTS_LIMIT)
        try:
            super().__init__((host, port), _Quiet)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(
                    f"Port {port} on {host} is in use.", "Name another one with --listen HOST:PORT."
                ) from None
            raise UsageError(f"{host}:{port} cannot be listened on: {error.strerror}.", "Name another.") from None
        self.set_app(application)

    def process_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(CLIENT_TIMEOUT_S)
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was cut off, is nobody's error."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged: there is one every few seconds, for ever."""


def application(collector: ClusterCollector, token: str | None) -> Application:
    """The metrics of a collector, for those who show the token if there is one."""
    registry = CollectorRegistry()
    registry.register(collector)
    metrics: Application = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if token is not None and not _shows(environ.get("HTTP_AUTHORIZATION", ""), token):
            start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
            return [b"A bearer token is needed; it is in the file that 'kos metrics --token-file' names.\n"]
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD") or environ.get("PATH_INFO") not in ("/", "/metrics"):
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There is only /metrics here.\n"]
        return metrics(environ, start)

    return answer


def _shows(authorization: str, token: str) -> bool:
    kind, _, shown = authorization.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name counts as what it stands for."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        raise UsageError(f"{host!r} is not an address of this machine.", "Write --listen HOST[:PORT].") from None
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def read_token(path: Path) -> str:
    """The token in a file, which is made with a fresh one when there is none. Raises UsageError, StateError."""
    try:
        if not path.exists():
            write_private(path, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UsageError(
                f"Others can read the token in {path} (its mode is {mode:04o}).", f"Type 'chmod 600 {path}'."
            )
        with path.open("rb") as file:
            token = file.read(TOKEN_LIMIT_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"The token in {path} cannot be read: {error}.", "Name another file.") from None
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise UsageError(f"{path} holds no token of 16 characters or more.", "Remove it, and a fresh token is written.")
    return token
