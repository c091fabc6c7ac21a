"""This machine's client certificate: renewed in time, or when somebody asks for it, while its processes go on.

Theory of operation. All client processes of a machine share one identity on disk. One of them, under a file lock, asks
the cluster to certify the same keys anew, writes that to disk, and says that it is kept; then the former certificate is
denied. The others see that the file has changed, and take it into use; their open links go on, as the keys stay.

Rules: a new certificate is on the disk before the old one is given up. One renews at a time, from what is on disk then.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from kos_cluster.errors import KosError, StateError
from kos_cluster.net import wire
from kos_cluster.net.administration import Renew, RenewalKept
from kos_cluster.net.identity import Credentials
from kos_cluster.node.rotating import EARLIEST, LATEST, is_due
from kos_cluster.tasks.asking import Asking

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the file
CALENDAR_S = 60.0  # between two looks at the calendar
ANSWER_TIMEOUT_S = 15.0  # longer than the cluster takes to agree at most

T = TypeVar("T")


class Renewal:
    """Used in the mesh thread. `use` puts new credentials into use wherever this process shows them."""

    def __init__(
        self, credentials: Credentials, folder: Path, asking: Asking, use: Callable[[Credentials], None]
    ) -> None:
        self._credentials = credentials
        self._folder = folder
        self._asking = asking
        self._use = use
        self._share = random.Random(credentials.peer.id).uniform(EARLIEST, LATEST)
        self._changed_ns = self._written_ns()

    async def run(self) -> None:
        """Renew in time, and follow what other processes renew. Does not return."""
        look_at_calendar_s = 0.0
        while True:
            self.follow()
            if time.monotonic() >= look_at_calendar_s:
                look_at_calendar_s = time.monotonic() + CALENDAR_S
                if is_due(self._credentials, self._share, time.time()):
                    try:
                        await self.renew()
                    except KosError as error:
                        log.warning("This machine's certificate could not be renewed: %s", error)
            await asyncio.sleep(LOOK_S)

    def follow(self) -> None:
        """Take into use what another process has written."""
        written_ns = self._written_ns()
        if written_ns == self._changed_ns:
            return
        self._changed_ns = written_ns
        try:
            self._take(Credentials.load(self._folder))
        except StateError as error:
            log.warning("%s This process goes on with those that it has.", error.message)

    async def renew(self) -> float:
        """Renew now; when the new certificate ends (Unix seconds). Raises KosError."""
        with _alone(self._folder):
            old = Credentials.load(self._folder)
            pem = await self._ask(Renew(old.renewal_request()), bytes)
            new = old.renewed(pem)
            new.save(self._folder)
            self._take(new)
            await self._ask(RenewalKept(new.peer.serial), bool)
        log.info("This machine's certificate is renewed; it is good until %s.", time.ctime(new.peer.not_after))
        return new.peer.not_after

    async def _ask(self, question: wire.Asked, kind: type[T]) -> T:
        return msgspec.msgpack.decode(await self._asking.one(question, timeout_s=ANSWER_TIMEOUT_S), type=kind)

    def _take(self, credentials: Credentials) -> None:
        if credentials.peer.serial != self._credentials.peer.serial:
            self._credentials = credentials
            self._use(credentials)

    def _written_ns(self) -> int:
        """When the certificate was written; 0 when it is not there (this machine has left the cluster)."""
        try:
            return (self._folder / "cert.pem").stat().st_mtime_ns
        except FileNotFoundError:
            return 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the one process that renews. Raises StateError when another one does."""
    try:
        lock = open(folder / "renewing", "ab")  # noqa: SIM115
    except OSError as error:
        raise StateError(
            f"The certificate in {folder} cannot be renewed ({error.strerror}).", "See that it can be written to."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError("Another process is renewing this machine's certificate.", "Wait for it.") from None
        yield
