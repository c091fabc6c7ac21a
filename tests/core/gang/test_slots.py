"""Reserved slots at a node: granted in turn, held for the lease at most, and used by the gang's ranks alone."""

from __future__ import annotations

from kos_cluster.core import queue as q
from kos_cluster.core.capacity import Account, Capacity
from kos_cluster.core.gang.slots import (
    ReservedSlots,
    SlotsDenied,
    SlotsGranted,
    SlotsReleased,
    SlotsWanted,
    SlotsWithdrawn,
)
from tests.core.test_queue import Node

PATIENCE_S, LEASE_S = 2.0, 10.0


def wanted(txn: int, ranks: int, gang: str = "") -> SlotsWanted:
    return SlotsWanted(txn, gang or f"g{txn}", ranks, PATIENCE_S, LEASE_S)


def reservations(slots: int = 4, busy: int = 0) -> tuple[ReservedSlots, Account]:
    account = Account(slots, Capacity(gpus=("a", "b", "c"), resources={"licence": 2}))
    account.slots_in_use = busy
    return ReservedSlots(account), account


def test_requests_are_granted_in_turn_and_a_small_one_does_not_overtake():
    reserved, account = reservations(busy=2)
    assert reserved.want(wanted(1, 3), 0.0) == reserved.want(wanted(2, 1), 0.0) == []
    assert reserved.grant(0.0) == [] and reserved.waiting
    account.slots_in_use = 0
    assert reserved.grant(0.0) == [SlotsGranted(1), SlotsGranted(2)]
    assert account.slots_in_use == 4 and not reserved.waiting


def test_patience_and_lease_end_what_nobody_ends():
    reserved, account = reservations()
    reserved.want(wanted(1, 2), 0.0)
    reserved.want(wanted(2, 4), 0.0)
    assert reserved.grant(0.0) == [SlotsGranted(1)]
    assert reserved.tick(PATIENCE_S - 0.1) == []
    assert reserved.tick(PATIENCE_S) == [SlotsDenied(2)]
    reserved.tick(LEASE_S - 0.1)
    assert account.slots_in_use == 2
    reserved.tick(LEASE_S)
    assert account.slots_in_use == 0 and not reserved


def test_a_newer_transaction_of_a_gang_takes_the_place_of_an_older_one():
    reserved, account = reservations()
    reserved.want(wanted(1, 2, "g"), 0.0)
    reserved.grant(0.0)
    assert reserved.want(wanted(3, 3, "g"), 0.0) == []
    assert account.slots_in_use == 0
    assert reserved.grant(0.0) == [SlotsGranted(3)]
    assert account.slots_in_use == 3


def test_what_an_ended_client_has_reserved_or_waits_for_is_free_at_once_and_what_others_have_stays():
    gone, lives = ("me", "gone"), ("me", "lives")
    node = Node(slots=4)
    for txn, ranks, owner in ((1, 2, gone), (2, 1, lives), (3, 2, gone)):
        node.feed(SlotsWanted(txn, f"g{txn}", ranks, PATIENCE_S, LEASE_S, owner=owner))
    assert node.queue.running == 3
    assert SlotsDenied(3) in node.feed(q.OwnerGone(gone))
    assert node.queue.running == 1
    node.feed(SlotsWithdrawn("g2"))
    assert node.queue.running == 0 and not node.queue.reserves


def test_impossible_requests_are_denied():
    reserved, _ = reservations()
    for txn, ranks in enumerate((5, 0)):
        assert reserved.want(wanted(txn, ranks), 0.0) == [SlotsDenied(txn)]
    greedy = SlotsWanted(3, "g", 1, PATIENCE_S, LEASE_S, resources=(("licence", -1),))
    assert reserved.want(greedy, 0.0) == [SlotsDenied(3)]


def test_gpus_and_resources_are_held_too_and_pass_to_each_rank():
    reserved, account = reservations()
    needs = SlotsWanted(1, "g", 2, PATIENCE_S, LEASE_S, gpus=1, resources=(("licence", 1),))
    reserved.want(needs, 0.0)
    assert reserved.grant(0.0) == [SlotsGranted(1)]
    assert account.gpus_in_use == 2 and account.resources == {"licence": 2}
    spec = q.BatchSpec((("me", "i"), 1), "job", "e", gpus=1, resources=(("licence", 1),))
    assert reserved.take("g", spec) == ("a",)
    assert reserved.take("g", q.BatchSpec((("me", "i"), 2), "job", "e")) is None  # it asks for less than was held
    assert reserved.release(1) == []
    assert account.gpus_in_use == 1 and account.resources == {"licence": 1} and account.slots_in_use == 1


def rank(number: int, gang: str = "g1") -> q.Arrived:
    return q.Arrived(q.BatchSpec((("me", "i"), number), "job", "e", fresh=True, gang=gang), held=False)


def test_reserved_slots_count_as_in_use_and_go_to_ranks_alone():
    node = Node(slots=2)
    assert SlotsGranted(1) in node.feed(wanted(1, 2))
    assert node.queue.running == 2
    assert not any(isinstance(e, q.Assign) for e in node.feed(q.Arrived(q.BatchSpec((("x", "i"), 9), "j", "e"), False)))
    for number in (1, 2):
        assert any(isinstance(e, q.Assign) for e in node.feed(rank(number)))
    assert node.queue.running == 2 and not node.queue.reserves
    (refused,) = [e for e in node.feed(rank(3)) if isinstance(e, q.Refuse)]
    assert "its gang holds no slots here" in refused.reason


def test_a_request_that_waits_keeps_other_work_back_until_its_patience_is_over():
    node = Node(slots=2)
    node.feed(q.Arrived(q.BatchSpec((("x", "i"), 1), "j", "e"), held=False))
    node.feed(wanted(1, 2))
    node.feed(q.Arrived(q.BatchSpec((("x", "i"), 2), "j", "e"), held=False))
    assert node.queue.queued == 1  # a slot is free, and kept for the gang
    effects = node.queue.tick(node.now + PATIENCE_S)
    assert SlotsDenied(1) in effects and node.queue.queued == 0


def test_an_abort_frees_what_was_reserved():
    node = Node(slots=2)
    node.feed(wanted(1, 2))
    node.feed(SlotsReleased(1))
    assert node.queue.running == 0 and not node.queue.reserves
