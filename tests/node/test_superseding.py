"""Whose work of a detached job a node ends, and takes no more of, when the job has another driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.node.superseding import Superseding


class Agreed:
    """One job, and who is admitted: clients, each with the node that it came with."""

    def __init__(self, **came_with: str) -> None:
        self.job = SimpleNamespace(id="j", driver="a", state=JobState.DRIVEN)
        known = {id_: SimpleNamespace(id=id_, came_with=node) for id_, node in came_with.items()}
        identities = SimpleNamespace(get=known.get, identities=lambda: list(known.values()))
        self.state = SimpleNamespace(jobs=SimpleNamespace(snapshot=lambda: [self.job]), identities=identities)


class Owners:
    """Each has work of the job."""

    def __init__(self, *identities: str) -> None:
        self.there = [SimpleNamespace(peer=SimpleNamespace(id=id_), has=lambda job: job == "j") for id_ in identities]

    def __iter__(self) -> Any:
        return iter(list(self.there))

    def end(self, owner: Any) -> None:
        self.there.remove(owner)


def superseding(agreed: Agreed, owners: Owners) -> Superseding:
    made = Superseding(agreed, owners)  # type: ignore[arg-type]
    made.look()
    return made


def test_what_the_former_drivers_client_has_here_is_ended_and_no_more_is_taken() -> None:
    agreed, owners = Agreed(client_a="a", client_b="b"), Owners("client_a", "client_b")
    looked = superseding(agreed, owners)
    assert not looked.is_former("client_a", "j")
    agreed.job.driver = "b"
    looked.look()
    assert [owner.peer.id for owner in owners] == ["client_b"]
    assert looked.is_former("client_a", "j")
    assert not looked.is_former("client_b", "j")


@pytest.mark.parametrize("driver", ["b", "c"])
def test_nodes_of_one_home_drive_on_with_the_client_that_came_with_a_lost_one(driver: str) -> None:
    agreed, owners = Agreed(client="a"), Owners("client")
    looked = superseding(agreed, owners)
    agreed.job.driver = driver
    looked.look()
    assert not looked.is_former("client", "j")
    assert [owner.peer.id for owner in owners] == ["client"]


def test_a_cancelled_job_has_no_driver_any_more() -> None:
    agreed, owners = Agreed(client="a"), Owners("client")
    looked = superseding(agreed, owners)
    agreed.job.state = JobState.CANCELLED
    looked.look()
    assert not list(owners)
