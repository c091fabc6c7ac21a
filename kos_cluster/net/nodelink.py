"""A link to one node, kept up: prove who one is, open the control link, say hello, start over when it breaks.

Theory of operation. `NodeLink` runs one coroutine. A node of this machine is reached over its own socket. For any
other, or where that is not there or does not take us, it presents one's certificate over the bulk port, which also
gives the node's verified CURVE key, then opens the link over the network. A link that is closed, refused (the daemon
was restarted and forgot us) or stays down is made anew. What happens is told to a listener; nothing is sent while the
link is down.

    opening --ok--> connecting --up--> up --down, closed, refused--> opening
        |  refused, unreachable: pause, tell the listener, try again
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from kos_cluster.errors import AuthError, KosError, UnreachableError
from kos_cluster.home import ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.locallink import LocalLink
from kos_cluster.net.presenting import present
from kos_cluster.net.transport import Context, Link, LinkState, Payload

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1  # between tries; doubles up to
LONGEST_PAUSE_S = 2.0
DOWN_LIMIT_S = 0.5  # a link that is down for longer is made anew
GONE_AFTER_TRIES = 3  # tries to reach a node that was up, before it is told to be gone


class Listener(Protocol):
    """What its user does with what a link tells. All called in the loop's thread."""

    def link_gone(self, link: NodeLink, why: str) -> None: ...
    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None: ...


class NodeLink:
    """One node, by the address of its control port. `peer` is None until it has proved who it is.

    With a `home` the node is reached over its own socket there, if it has one.
    """

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        host: str,
        port: int,
        hello: wire.Hello,
        listener: Listener,
        home: ClusterHome | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.address = f"{host}:{port}"
        self.peer: Peer | None = None
        self.up = False
        self.failure: KosError | None = None  # why the last try failed
        self.shown = 0  # the serial of the certificate that was presented last
        self.heard_s = time.monotonic()
        self.given: set[str] = set()  # parts that the node holds, as far as we know
        self._context = context
        self._credentials = credentials
        self._hello = hello
        self._listener = listener
        self._home = home
        self._link: Link | LocalLink | None = None
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failures = 0  # in a row
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"link-{host}:{port}")

    def send(self, message: wire.Message, payload: Payload = b"") -> bool:
        """Queue a message; False when the link is down or full."""
        return self._link is not None and self._link.send(message, payload)

    def greet(self) -> None:
        """Say hello (again); the node answers with `Welcome`."""
        self.send(self._hello)

    def hurry(self) -> None:
        """Try again now: the node is known to be back. What failed before counts no more."""
        self._failures = 0
        self._hurry.set()

    def renewed(self, credentials: Credentials) -> None:
        """Present another certificate, of the same keys, from now on."""
        self._credentials = credentials

    def succeeded(self, peer: Peer) -> None:
        """The node has another certificate, of the same keys."""
        if self.peer is not None and self.peer.curve_public == peer.curve_public:
            self.peer = peer

    def close(self) -> None:
        self._task.cancel()
        self._drop()

    async def _keep(self) -> None:
        """Never ends by itself: a dead node is tried for ever, slowly, since it may come back."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._hurry.clear()
                self.shown = self._credentials.peer.serial
                link = await self._open_local() or await self._open()
                self.failure = None
                pause_s, self._failures = FIRST_PAUSE_S, 0
                await self._hold(link)
            except KosError as error:
                self.failure = error
                self._failures += 1
                if self._failures == GONE_AFTER_TRIES or isinstance(error, AuthError):
                    self._listener.link_gone(self, error.message)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S) if not await self._hurried(pause_s) else FIRST_PAUSE_S

    async def _hurried(self, pause_s: float) -> bool:
        """Wait between two tries; True when `hurry` cut it short, also while the last one was under way."""
        try:
            await asyncio.wait_for(self._hurry.wait(), pause_s)
        except TimeoutError:
            return False
        return True

    async def _open_local(self) -> LocalLink | None:
        """A link within this machine; None when the node has no socket here, or none that takes us."""
        path = self._home.socket_at(self.address) if self._home is not None else None
        if path is None:
            return None
        try:
            link = await LocalLink.open(path, self._credentials, self._said, self._state_changed)
        except UnreachableError:
            raise  # it stands still, on the network too
        except (OSError, KosError) as error:
            log.info("The node at %s is tried over the network, as its socket did not do: %s", self.address, error)
            return None
        self.peer = link.peer
        return link

    async def _open(self) -> Link:
        """A link over the network, as soon as the certificate is presented."""
        self.peer = await present(self.host, self.port, self._credentials)
        return Link(
            self._context,
            self._credentials,
            self.peer.curve_public,
            self.host,
            self.port,
            self._said,
            self._state_changed,
        )

    async def _hold(self, link: Link | LocalLink) -> None:
        """Keep the link until it is refused, closed, or has been down for too long."""
        self._changed.clear()
        self._link = link
        try:
            while True:
                try:
                    await asyncio.wait_for(self._changed.wait(), None if self.up else DOWN_LIMIT_S * 4)
                except TimeoutError:
                    return
                self._changed.clear()
                if link.state in ("refused", "closed"):
                    return
                if link.state == "down" and not await self._comes_back():
                    return
        finally:
            self._drop()

    async def _comes_back(self) -> bool:
        """Wait a moment for ZeroMQ to reconnect by itself."""
        try:
            await asyncio.wait_for(self._changed.wait(), DOWN_LIMIT_S)
        except TimeoutError:
            return False
        return True

    def _state_changed(self, state: LinkState) -> None:
        self.up = state == "up"
        self._changed.set()
        if self.up:
            self.heard_s = time.monotonic()
            self.greet()

    def _said(self, message: wire.Message, payload: memoryview) -> None:
        self.heard_s = time.monotonic()
        self._listener.link_said(self, message, payload)

    def _drop(self) -> None:
        self.up = False
        if self._link is not None:
            self._link.close()
            self._link = None
