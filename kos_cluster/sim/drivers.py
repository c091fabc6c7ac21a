"""A detached job that changes its driver again and again, judged from the log.

Theory of operation. Clients make themselves the driver of the one job of a world, each under the next epoch, and go on
committing results under the epoch that they were given, also when another has long taken over. The judge sees every
command that was applied, with its reply, once and in the order of the log.

    what                       must hold
    a driver is assigned       its epoch is the one after the last
    results are committed      by the driver of the last epoch alone, and of each task once
"""

from __future__ import annotations

from random import Random

from kos_cluster.core.replicated import commands, replies
from kos_cluster.sim.invariants import Violation

JOB = "job"
TASKS = 8  # few, so that several drivers have a result of the same task


class Driver:
    """What one client knows of the job: an epoch to take it over from, and the one that it drives it under."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.seen = -1  # the last epoch that it heard of; -1: no job
        self._driving = 0

    def next(self, random: Random, value: str) -> commands.Command:
        """The next thing that it asks for."""
        if self.seen < 0:
            return commands.SubmitJob(JOB, self._name, self._name, JOB, b"")
        if self._driving and random.random() < 0.7:
            result = commands.TaskResult(random.randrange(TASKS), value.encode())
            return commands.CommitResults(JOB, self._driving, (result,))
        return commands.AssignDriver(JOB, self._name, self.seen)

    def replied(self, command: commands.Command, reply: replies.Reply) -> None:
        if isinstance(reply, replies.JobEpoch):
            self.seen = max(self.seen, reply.epoch)
            if isinstance(command, commands.AssignDriver):
                self._driving = reply.epoch
        elif isinstance(command, commands.SubmitJob):  # another was first
            self.seen = 0


class Judge:
    """What the log says of the job."""

    def __init__(self) -> None:
        self._epoch = 0
        self._results: dict[int, int] = {}  # task -> the epoch in which its result was committed

    def see(self, command: commands.Command, reply: replies.Reply) -> None:
        """A command was applied for the first time."""
        match command, reply:
            case commands.AssignDriver(), replies.JobEpoch(_, epoch):
                if epoch != self._epoch + 1:
                    raise Violation("epochs", f"a driver was assigned in epoch {epoch}, after epoch {self._epoch}")
                self._epoch = epoch
            case commands.CommitResults(_, epoch), replies.ResultsCommitted(committed):
                if epoch != self._epoch:
                    raise Violation("epochs", f"results of epoch {epoch} were taken in epoch {self._epoch}")
                for task in committed:
                    if task in self._results:
                        raise Violation("epochs", f"task {task} has one result of epoch {self._results[task]} already")
                    self._results[task] = epoch
            case _:
                pass
