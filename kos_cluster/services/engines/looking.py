"""How an engine stands, as its head says: asked in a thread, so that a head that does not answer holds nobody up.

Rules. A connection that leads nowhere any more is made anew, as it does not come back by itself. Whatever a look
raises, the next one is taken; what is not just silence is printed. The engine's packages are imported here, when the
engine serves, not before: that costs the time of a core while head and workers need it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from kos_cluster.errors import KosError, UnreachableError
from kos_cluster.services.engines.kinds import engine_of

if TYPE_CHECKING:
    from kos_cluster.services.engines.engine import Address, Connection, Standing
    from kos_cluster.services.engines.spec import Spec
    from kos_cluster.services.engines.troubles import Troubles
    from kos_cluster.tasks.cluster import Cluster

LOOK_S = 0.5  # between two questions
FIRST_S = 10.0  # for the engine's packages to load here, before the head is asked for the first time
LOOPBACK = "127.0.0.1"  # a client is reached by nobody


class Looking:
    """One life's connection of the supervisor to the head."""

    def __init__(self, cluster: Cluster, spec: Spec, address: Address, troubles: Troubles) -> None:
        self._cluster = cluster
        self._spec = spec
        self._address = address
        self._troubles = troubles
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._broken = False  # the connection is
        self._leaving = 0  # workers that are to be let go
        self._retires = False
        self.refusal = ""  # why workers that were to be let go could not be
        self._heard_s = time.monotonic() + FIRST_S
        self.standing: Standing | None = None
        self._thread = threading.Thread(target=self._run, name="kos-looking", daemon=True)
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """For how long the head has not answered. It is not asked while it lets workers go, which may take a minute."""
        return 0.0 if self._retires else time.monotonic() - self._heard_s

    @property
    def retires(self) -> bool:
        """Whether workers are being let go."""
        return self._retires

    def retire(self, count: int) -> None:
        """Have so many workers let go, soon; `refusal` says when that cannot be."""
        self.refusal, self._leaving = "", count

    def withdraw(self) -> None:
        """Let nobody go who has not been asked to."""
        self.refusal, self._leaving = "", 0

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self._look()
            except UnreachableError:
                continue  # `silent_s` grows, and says so
            except (Exception, asyncio.CancelledError) as error:  # of whatever kind the engine's packages raise
                self._broken = True
                self._troubles.came("head", f"a look at its head has raised {type(error).__name__}: {error}")
            else:
                self._heard_s = time.monotonic()
                self._troubles.over("head")
        self._leave()

    def _look(self) -> None:
        if self._connection is not None and (self._broken or not self._connection.usable):
            self._leave()
        if self._connection is None:
            credentials = self._cluster.engine_keys(self._spec.id, LOOPBACK)
            self._connection = engine_of(self._spec.kind).connect(self._address, credentials)
        if self._leaving:
            self._retire(self._connection)
        self.standing = self._connection.standing()

    def _leave(self) -> None:
        connection, self._connection, self._broken = self._connection, None, False
        if connection is not None:
            connection.close()

    def _retire(self, connection: Connection) -> None:
        """Once, also when that fails: which of them have gone by then is not known."""
        self._retires = True
        count, self._leaving = self._leaving, 0
        try:
            gone = connection.retire(count)
            if len(gone) < count:
                self.refusal = f"{count - len(gone)} of them hold what no other worker has room for"
        except KosError as error:
            self.refusal = error.message
        except Exception as error:
            self.refusal = f"to let them go has raised {type(error).__name__}: {error}"
            raise
        finally:
            self._retires = False
