"""What is asked about detached jobs, as any node answers it from the cluster's state.

Rules. Who may ask is decided before (`answers`); here only whose job it is. Whoever submits names the nodes that keep
the work; a job whose work nobody keeps fails when it is driven, and says so. What an id means is looked up among all
that was decided before the question, so a job that was submitted elsewhere a moment ago is known.
"""

from __future__ import annotations

from kos_cluster.core import driving
from kos_cluster.core.replicated import commands
from kos_cluster.core.replicated.commands import Part, SubmitJob, TaskResult
from kos_cluster.core.replicated.jobs import Job
from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, NoSuchTaskError, StateError
from kos_cluster.net import detached as asks
from kos_cluster.net import wire
from kos_cluster.net.identity import Peer
from kos_cluster.net.standing import Standing, StandingAsked
from kos_cluster.node.controlplane import ControlPlane
from kos_cluster.node.driving import Driving

ASKED = (
    asks.Detach,
    asks.DetachedJobs,
    asks.DetachedJobOf,
    asks.DetachedResults,
    asks.DetachedOutput,
    asks.CancelDetached,
    StandingAsked,
)

READ_TIMEOUT_S = 3.0  # less than a client waits for an answer


class DetachedJobs:
    """Used in the daemon's loop."""

    def __init__(self, control: ControlPlane, driving: Driving) -> None:
        self._control = control
        self._consensus = control.consensus
        self._driving = driving

    async def answer(self, peer: Peer, ask: wire.Asked) -> object:
        """Raises what refuses it."""
        match ask:
            case asks.Detach():
                return await self._submit(peer, ask)
            case asks.DetachedJobs():
                return [self._told(job) for job in self._consensus.state.jobs.snapshot()]
            case asks.DetachedJobOf(id_):
                return self._told(await self._find(id_))
            case asks.DetachedResults(id_):
                return await self._results(id_)
            case asks.DetachedOutput(id_, epoch, offset):
                return self._output(id_, epoch, offset)
            case asks.CancelDetached(id_):
                return await self._cancel(peer, id_)
            case StandingAsked(id_, epoch):
                return await self._standing(id_, epoch)
        raise StateError(f"{type(ask).__name__} is not about a detached job.")

    async def _submit(self, peer: Peer, ask: asks.Detach) -> bool:
        work = driving.decode(ask.spec)
        if work.bundle != ask.bundle or work.count < 1:
            raise StateError("The description of the job does not fit its work.", "Submit it again.")
        part = Part(ask.bundle, ask.holders)
        await self._consensus.propose(SubmitJob(ask.id, peer.id, peer.name, ask.name, ask.spec, (part,)))
        return True

    async def _find(self, id_: str) -> Job:
        """Raises NoSuchTaskError."""
        job = self._consensus.state.jobs.get(id_)
        if job is None:
            job = (await self._consensus.read(READ_TIMEOUT_S)).jobs.get(id_)
        if job is None:
            raise NoSuchTaskError(f"The cluster knows no detached job {id_[:64]!r}.", "See 'kos ps'.")
        return job

    async def _results(self, id_: str) -> list[TaskResult]:
        await self._find(id_)
        job = (await self._consensus.read(READ_TIMEOUT_S)).jobs.get(id_)
        return [job.results[task] for task in sorted(job.results)] if job is not None else []

    def _output(self, id_: str, epoch: int, offset: int) -> asks.OutputSoFar:
        output = self._driving.output(id_, epoch)
        if output is None:
            return asks.OutputSoFar(False)
        return asks.OutputSoFar(True, *output.since(offset))

    async def _standing(self, id_: str, epoch: int) -> Standing:
        standing = await self._driving.standing(id_, epoch)
        if standing is None:
            raise StateError(
                f"No driver of job {id_[:64]!r} tells here why its tasks wait.", "Ask again in some seconds."
            )
        return standing

    async def _cancel(self, peer: Peer, id_: str) -> bool:
        try:
            job = await self._find(id_)
        except NoSuchTaskError:
            return False
        if peer.id != job.submitter and not may(peer.role, Command.CANCEL_ANY):
            raise AuthError(
                f"Job {id_} belongs to {job.user}; the role {peer.role} may only cancel its own work.",
                "Ask its owner, or use an admin's identity.",
            )
        await self._consensus.propose(commands.CancelJob(id_, peer.name))
        return True

    def _told(self, job: Job) -> asks.DetachedJob:
        try:
            work = driving.decode(job.spec)
        except StateError:  # of a later version: listed all the same
            work = driving.Work(driving.Kind.MAP, 0, "")
        driver = self._control.membership.member(job.driver)
        return asks.DetachedJob(
            id=job.id,
            name=job.name,
            user=job.user,
            state=job.state,
            kind=work.kind,
            total=work.count,
            done=len(job.results),
            failed=sum(result.exit_code != 0 for result in job.results.values()),
            submitted_s=job.submitted_s,
            driver=job.driver,
            driver_name=driver.name if driver is not None else job.driver,
            epoch=job.epoch,
            exit_code=job.exit_code,
            tail=job.tail,
            ended_s=job.ended_s,
            ended_by=job.ended_by,
        )
