"""What a gang asks for its slots with, and what it does with slots that it may not use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kos_cluster.core import ownership
from kos_cluster.core.gang.epochs import Epochs, Reserved
from kos_cluster.core.placement import Leaning
from kos_cluster.core.records import JobSummary, Needs
from kos_cluster.net import wire
from kos_cluster.net.detached import DetachedJobs
from kos_cluster.net.gangs import GangStanding, GangWanted, GangWithdrawn
from kos_cluster.tasks.gangs import Gang
from kos_cluster.tasks.job import JobSpec


class Asked:
    """A gang of two that is to be apart from web, whose slots are on n1 when it asks. Web is where `apart` says."""

    def __init__(self, *apart: set[str], name: str = "g") -> None:
        self.apart = list(apart)  # at each look
        self.told: list[tuple[str, Any]] = []  # node that was asked, question
        self.fed: list[Any] = []
        gang = self.gang = Gang.__new__(Gang)
        gang._machine, gang._ranks, gang._spec = Epochs(2, 0), 2, JobSpec(b"", name=name)
        gang._job = SimpleNamespace(id="j", needs=Needs(apart=("web",)))  # type: ignore[assignment]
        gang._mesh = SimpleNamespace(  # type: ignore[assignment]
            instance="i",
            members=[SimpleNamespace(name="node1", id="n1")],
            jobs=SimpleNamespace(summaries=list),
            credentials=SimpleNamespace(peer=SimpleNamespace(name="ada")),
            placing=SimpleNamespace(unknown_jobs=lambda names: [], leaning=self.leaning),
            feed=self.fed.append,
            request=self.request,
            request_all=lambda question, kind, enough_s: {"node1": self.request(question, kind)},
        )

    def leaning(self, job: Any) -> Leaning:
        return Leaning(apart=self.apart.pop(0))

    def request(self, question: Any, kind: Any, *, node: str = "", timeout_s: float = 0.0) -> Any:
        if isinstance(question, wire.Jobs | DetachedJobs):
            web = JobSummary("w", "web", "ada", 1, 0, 0, 1, 0.0, ("node1",))
            return [web] if isinstance(question, wire.Jobs) else []
        self.told.append((node, question))
        return GangStanding(("n1", "n1")) if isinstance(question, GangWanted) else True


def test_each_question_says_where_the_jobs_are_by_what_is_told_now():
    asked = Asked({"n2"}, set())
    assert asked.gang._ask() == Reserved(1, ("n1", "n1"))
    (_, wanted), *more = asked.told
    assert not more and isinstance(wanted, GangWanted)
    assert (wanted.instance, wanted.apart, wanted.alone) == ("i", ("n2",), False)
    assert asked.fed == [ownership.JobsElsewhere({"w": frozenset({"n1"}), "web": frozenset({"n1"})})]


def test_a_gang_that_is_apart_from_its_own_name_says_so():
    asked = Asked(set(), set(), name="web")
    asked.gang._ask()
    assert asked.told[0][1].alone


def test_slots_beside_a_job_that_has_come_meanwhile_are_given_back_and_not_used():
    asked = Asked(set(), {"n1"})
    assert asked.gang._ask() is None
    assert asked.told[1:] == [("", GangWithdrawn("j")), ("n1", GangWithdrawn("j"))]
    assert isinstance(asked.fed[-1], ownership.RanksPlaced) and "apart from has come" in asked.fed[-1].waits_for
