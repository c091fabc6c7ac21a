"""The supervisor of one engine: a detached job's task that starts its ranks, watches them, and says how they stand.

Theory of operation. A life of an engine is one gang: the head and the workers, all or nothing. While it serves, the
supervisor looks at three things each `LOOK_S`: what is wanted, whether the gang still runs, and how the head says that
it stands. The gang ends when the head is lost, which ends that life; with restarts left the next one begins. A worker's
rank that is lost, and workers that are wanted beyond those that there are, come as further gangs; what is wanted less
is let go by the engine, which passes on what it holds. A worker process that its rank brings back itself, as Dask's
nanny does, is nothing to the supervisor.

    life       event                                     next
    -          the name is free                          starting
    -          it has a record of this engine            starting, one restart less; failed, if none is left
    starting   head and workers serve                    serving
    starting   a rank is lost, it would never fit, late  gone; as in serving, if an earlier life has served
    serving    the head is lost                          starting, one restart less; failed, if none is left
    any        a stop is wanted, its job is cancelled    gone

Rules. The supervisor alone writes the engine's record, over what it wrote last: one that was replaced, because its node
was held to be lost, writes nothing more and ends. When the supervisor or the driver of its job is lost, its gangs end
with it. Of an engine that never served nothing is left; one that has failed later stays listed until it is stopped.
What a register holds or refuses, and any other error of KOS's beside the gangs, ends no engine that serves.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

import kos_cluster as kos
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import EngineError, KosError
from kos_cluster.services.engines.crews import Crews
from kos_cluster.services.engines.heads import SILENT_S, Ends
from kos_cluster.services.engines.ledger import Ledger, Superseded
from kos_cluster.services.engines.looking import Looking
from kos_cluster.services.engines.spec import Record, Spec, State, Wanted, lost_with, name_taken
from kos_cluster.services.engines.troubles import Troubles
from kos_cluster.tasks.cluster import Cluster

LOOK_S = 0.25
START_LOOK_S = 0.1  # while it starts
WAITS_AGAIN_S = 2.0  # between two looks why it has no slots yet
START_TIMEOUT_S = 180.0  # from having slots until all of a gang serves: a Ray loads 20 processes of Python


class _Lost(Exception):
    """A life has ended; the message says how."""


class _Stopped(Exception):
    """The user wants no more of it."""


def supervise(spec: Spec) -> None:
    """The task of the detached job. Raises how the engine has ended, if not by a stop."""
    _Supervisor(kos.connect(), spec).run()


class _Supervisor:
    def __init__(self, cluster: Cluster, spec: Spec) -> None:
        self._cluster = cluster
        self._spec = spec
        self._troubles = Troubles(spec.name)
        self._ledger = Ledger(cluster, _first_record(spec), self._troubles)
        self._served = False  # some life has
        self._wish = ""  # the one that is being carried out

    def run(self) -> None:
        try:
            self._claim()
            while True:
                self._live()
        except _Stopped:
            self._ledger.forget()
        except Superseded:
            raise
        except (_Lost, KosError) as error:
            raise self._failed(error) from error.__cause__
        except KeyboardInterrupt:  # its job was cancelled; or its driver was lost, and the next supervisor goes on
            if self._cancelled():
                self._ledger.forget()
            raise

    def _cancelled(self) -> bool:
        """Whether its job is, as far as can be told: a record that is left is of no supervisor then, and is seen so."""
        try:
            return self._cluster.attach(self._ledger.record.job).state().state is JobState.CANCELLED
        except KosError:
            return False

    # ---- lives

    def _claim(self) -> None:
        """Take the name, or the place of a supervisor that was lost. Raises UsageError."""
        former = self._ledger.claim()
        if former is None:
            return
        if former.id != self._spec.id:
            raise name_taken(former)
        self._served = bool(former.address.head)
        if self._served:
            self._next_life(f"its supervisor was lost, and with it the head on {former.node} and the workers")
        else:
            self._ledger.write(life=former.life + 1)  # what a head has said of the life before is not for this one

    def _live(self) -> None:
        """One life. Raises _Stopped, or what ends the engine."""
        record = self._ledger.record
        crews = Crews(self._cluster, self._spec, record.wanted, record.life)
        try:
            self._begin(crews)
            self._serve(crews)
        except _Lost as lost:
            if not self._served:
                raise
            self._next_life(str(lost))
        finally:
            crews.end()

    def _begin(self, crews: Crews) -> None:
        """Wait until all of the first gang serve."""
        until_s = float("inf")
        before, told_s = self._ledger.record.why, time.monotonic()
        while (began := self._ledger.began()) is None:
            self._ledger.catch_up()
            wanted = self._wanted()
            if wanted is not None:
                self._ledger.answer(wanted, "it has not begun to serve")
            why = crews.failure() or crews.lost()
            if why:
                raise _Lost(why)
            if crews.placed:
                until_s = min(until_s, time.monotonic() + START_TIMEOUT_S)
            elif time.monotonic() > told_s + WAITS_AGAIN_S:
                told_s = time.monotonic()
                self._ledger.write(why="; ".join(filter(None, [before, crews.waits_for()])))
            if time.monotonic() > until_s:
                raise _Lost(f"not all of it was there {START_TIMEOUT_S:g} s after it had its slots")
            time.sleep(START_LOOK_S)
        self._served = True
        self._ledger.write(
            state=State.SERVING,
            address=began.address,
            node=crews.head_node,
            workers=crews.workers,
            until_s=began.until_s,
            why=before,
        )

    def _serve(self, crews: Crews) -> None:
        """Until the head is lost, or the user wants no more."""
        looking = Looking(self._cluster, self._spec, self._ledger.record.address, self._troubles)
        ends = Ends(self._ledger.record)
        try:
            while True:
                failure = crews.failure()
                if failure:
                    raise _Lost(failure)
                try:
                    self._look(crews, looking)
                except Superseded:
                    raise
                except KosError as error:  # it works on, and what could not be is tried with the next look
                    self._troubles.came("look", str(error))
                else:
                    self._troubles.over("look")
                if news := ends.news(time.time()):
                    print(f"Engine {self._spec.name}: {news}.", flush=True)
                time.sleep(LOOK_S)
        finally:
            looking.stop()

    def _next_life(self, why: str) -> None:
        """Begin anew. Raises EngineError when that is not to be."""
        record = self._ledger.record
        told = f"{why.rstrip('.')}; lost: {lost_with(record)}"
        if not record.restarts_left:
            raise EngineError(f"Engine {record.name!r} has ended: {told}.", f"See 'kos logs {record.job}'.")
        print(f"Engine {record.name} starts anew: {told}.", flush=True)
        self._wish = ""
        self._ledger.write(
            state=State.STARTING,
            life=record.life + 1,
            restarts_left=record.restarts_left - 1,
            workers=0,
            waiting=0,
            running=0,
            held_bytes=0,
            silent=False,
            until_s=0.0,
            why=told,
        )

    def _failed(self, error: Exception) -> KosError:
        """What the job ends with. The record of an engine that has served stays."""
        name = self._spec.name
        if isinstance(error, KosError):
            told = error
        else:
            told = EngineError(
                f"Engine {name!r} did not start: {str(error).rstrip('.')}.", "See 'kos ps' and 'kos logs'."
            )
        if self._served:
            self._ledger.write(state=State.FAILED, workers=0, why=told.message)
        else:
            with suppress(KosError):  # what is left is seen to have no supervisor
                self._ledger.forget()
        return told

    # ---- what is wanted, and what is there

    def _wanted(self) -> Wanted | None:
        """A wish that has no answer yet. Raises _Stopped."""
        wanted = self._ledger.wanted()
        if wanted is not None and wanted.stop:
            raise _Stopped
        return wanted

    def _look(self, crews: Crews, looking: Looking) -> None:
        wanted = self._wanted()
        if wanted is not None:
            self._carry_out(wanted, crews, looking)
        elif self._wish:  # who wished it has given up
            self._wish = ""
            crews.withdraw()
            looking.withdraw()
        else:
            self._mend(crews)
        self._tell(crews, looking)
        self._ledger.catch_up()

    def _carry_out(self, wanted: Wanted, crews: Crews, looking: Looking) -> None:
        """Bring the number of workers to what is wanted, a step at a time."""
        if self._wish != wanted.id:
            looking.withdraw()
            if not looking.retires:  # else how many are left is known when it has done so
                self._take_up(wanted, crews, looking)
            return
        refusal = crews.settled() or looking.refusal
        if refusal:
            looking.refusal = ""
            self._wish = ""
            self._ledger.answer(wanted, refusal)
        elif not crews.waits and crews.workers <= wanted.workers:
            self._wish = ""
            self._ledger.write(wanted=wanted.workers, answered=wanted.id, refusal="")

    def _take_up(self, wanted: Wanted, crews: Crews, looking: Looking) -> None:
        """Begin with a wish. Workers that wait, for an older one or in place of lost ones, are not wanted any more."""
        if self._wish:
            crews.settled()  # why the older one cannot be had is for nobody
        else:
            self._mended(crews)
        crews.withdraw()
        self._wish = wanted.id
        have = crews.workers
        if wanted.workers < have:
            looking.retire(have - wanted.workers)
        elif wanted.workers > have:
            try:
                crews.grow(wanted.workers - have, self._ledger.record.address)
            except KosError as error:
                self._wish = ""
                self._ledger.answer(wanted, error.message)

    def _mend(self, crews: Crews) -> None:
        """Replace ranks that were lost."""
        record = self._ledger.record
        if crews.waits:
            self._mended(crews)
        else:
            crews.keep(record.wanted, record.address)

    def _mended(self, crews: Crews) -> None:
        why = crews.settled()
        if why:
            self._ledger.write(why=f"lost workers could not be replaced: {why}")

    def _tell(self, crews: Crews, looking: Looking) -> None:
        """Write down what has changed: losses at once, what the head counts less often."""
        why = crews.lost()
        if why:
            print(f"Engine {self._spec.name} has lost workers: {why}.", flush=True)
            self._ledger.write(why=why)
        silent = looking.silent_s > SILENT_S
        if silent != self._ledger.record.silent:
            self._ledger.write(silent=silent)
        if looking.standing is not None:
            self._ledger.count(looking.standing)


def _first_record(spec: Spec) -> Record:
    return Record(
        name=spec.name,
        kind=spec.kind,
        id=spec.id,
        job=os.environ.get("KOS_TASK", "").partition(".")[0],
        state=State.STARTING,
        wanted=spec.workers,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        restarts_left=spec.restarts,
        plaintext=spec.plaintext,
        since_s=time.time(),
    )
