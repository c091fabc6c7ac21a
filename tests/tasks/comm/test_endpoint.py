"""Links between ranks of one process: who is let in, and what is said to whoever is not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import CollectiveTimeoutError, GangError, LimitError, RankGoneError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.tasks import serialise
from kos_cluster.tasks.comm import collectives, endpoint, exchange, frames, links
from kos_cluster.tasks.comm.communicator import Communicator
from kos_cluster.tasks.comm.endpoint import Endpoint, Listeners
from kos_cluster.tasks.comm.table import Table, make_table

WAIT_S = 30.0
LATE_S = 0.03


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("lab")


@pytest.fixture(scope="module")
def credentials(authority: CertificateAuthority) -> Credentials:
    return authority.local("client-1", "desk-user", Role.CLIENT)


class Gang:
    """Ranks as endpoints of this process, on the nodes that are named."""

    def __init__(self, nodes: str, credentials: Credentials) -> None:
        self.listeners = [Listeners.open("127.0.0.1") for _ in nodes]
        addresses = [msgspec.msgpack.encode(each.address()) for each in self.listeners]
        places = [(node, node, "127.0.0.1") for node in nodes]
        self.table = msgspec.msgpack.decode(make_table("g", 1, places, addresses), type=Table)
        self.credentials = credentials
        self.comms = [Communicator(self.endpoint(rank)) for rank in range(len(nodes))]

    def endpoint(self, rank: int) -> Endpoint:
        return Endpoint(rank, self.table, self.listeners[rank], lambda: self.credentials)

    def together(self, call: Callable[[Communicator], object]) -> list[object]:
        """What each rank's call gives; the first error, if one raises."""
        told: dict[int, object] = {}

        def run(comm: Communicator) -> None:
            try:
                told[comm.rank] = call(comm)
            except Exception as error:
                told[comm.rank] = error
                comm.close()  # as the end of its process does

        threads = [threading.Thread(target=run, args=(comm,)) for comm in self.comms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        return [told[rank] for rank in range(len(self.comms))]

    def close(self) -> None:
        for comm in self.comms:
            comm.close()  # again, where a call has failed


@pytest.fixture(params=["aa", "ab", "aab"])
def gang(request: pytest.FixtureRequest, credentials: Credentials) -> Iterator[Gang]:
    made = Gang(request.param, credentials)
    yield made
    made.close()


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 14, links.SHARED_FROM_BYTES, links.SLOT_BYTES + 1, 9 << 20])
def test_a_value_of_any_size_arrives_as_it_was_sent(gang: Gang, size_bytes: int):
    array = np.random.default_rng(size_bytes).integers(0, 255, size_bytes, dtype=np.uint8)

    def around(comm: Communicator) -> bool:
        sender = threading.Thread(target=lambda: comm._exchange.send((comm.rank + 1) % comm.size, message))
        message = frames.encode(array, frames.Call.SEND, 3)
        sender.start()
        same = np.array_equal(comm.recv((comm.rank - 1) % comm.size, tag=3), array)
        sender.join()
        return same

    assert gang.together(around) == [True] * len(gang.comms)


@pytest.mark.parametrize("size", [3, links.SHARED_FROM_BYTES])
def test_a_masked_array_keeps_its_mask(gang: Gang, size: int):
    value = np.ma.array(np.arange(size), mask=np.arange(size) == 2)

    def call(comm: Communicator) -> object:
        return comm.broadcast(value if comm.rank == 0 else None), comm.allreduce(value)

    for got, reduced in gang.together(call):
        assert got.mask.tolist() == reduced.mask.tolist() == value.mask.tolist()
        assert got.sum() == value.sum() and reduced.sum() == len(gang.comms) * value.sum()


def test_arrays_are_never_pickled(gang: Gang, monkeypatch: pytest.MonkeyPatch):
    def pickles(value: object) -> None:
        raise AssertionError(f"pickled: {value!r:.80}")

    monkeypatch.setattr(serialise, "dumps_result", pickles)
    monkeypatch.setattr(serialise, "loads", pickles)

    def every_call(comm: Communicator) -> object:
        for size in (5, links.SHARED_FROM_BYTES, collectives.RING_FROM_BYTES):
            mine, last = np.full(size, comm.rank, dtype=np.int64), comm.size - 1
            if comm.rank == 0:
                comm.send(mine, last)
            elif comm.rank == last:
                assert not comm.recv(0).any()
            assert comm.broadcast(mine, root=last)[-1] == last
            assert comm.scatter(np.arange(comm.size * size).reshape(comm.size, size))[0] == comm.rank * size
            gathered = comm.gather(mine)
            assert gathered is None or [int(each[-1]) for each in gathered] == list(range(comm.size))
            assert [int(each[-1]) for each in comm.allgather(mine)] == list(range(comm.size))
            assert [int(each[-1]) for each in comm.alltoall([mine] * comm.size)] == list(range(comm.size))
            total = sum(range(comm.size))
            reduced = comm.reduce(mine, root=last)
            assert reduced is None or reduced[-1] == total
            assert comm.allreduce(mine)[-1] == total
            assert comm.allreduce(mine, lambda one, other: one + other)[-1] == total
        return "whole"

    assert gang.together(every_call) == ["whole"] * len(gang.comms)


@pytest.mark.parametrize("nodes", ["aab", "aabbb"])
def test_nobody_leaves_a_barrier_before_all_have_come(credentials: Credentials, nodes: str):
    gang = Gang(nodes, credentials)
    come: list[int] = []

    def call(comm: Communicator) -> list[int]:
        seen = []
        others = [other for other in gang.comms if other is not comm]
        for late in range(comm.size):
            if comm.rank == late:
                while not all(other._endpoint.doing.serial > late for other in others):
                    time.sleep(0.001)
                time.sleep(LATE_S)  # for those who would not wait to be seen leaving
            come.append(comm.rank)
            comm.barrier()
            seen.append(len(come) // comm.size)
        return seen

    try:
        assert gang.together(call) == [list(range(1, len(nodes) + 1))] * len(nodes)
    finally:
        gang.close()


def test_ranks_beyond_those_that_are_greeted_at_once_wait(credentials: Credentials, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoint, "GREETING_LIMIT", 1)
    gang = Gang("aaaabbbb", credentials)
    try:
        assert gang.together(lambda comm: comm.gather(comm.rank))[0] == list(range(8))
    finally:
        gang.close()


def test_who_has_the_secret_of_another_epoch_is_refused(credentials: Credentials):
    for nodes in ("aa", "ab"):
        gang = Gang(nodes, credentials)
        old = msgspec.structs.replace(gang.table, secret=os.urandom(32))
        late = Endpoint(1, old, Listeners.open("127.0.0.1"), lambda: credentials)
        with pytest.raises(RankGoneError, match="was refused: it is not of epoch 1 of gang g"):
            late.outgoing(0)
        assert late.ask(0) is None
        late.close()
        gang.close()


def test_between_nodes_a_certificate_is_needed_and_one_that_may_run_work(
    authority: CertificateAuthority, credentials: Credentials
):
    gang = Gang("ab", credentials)
    other = CertificateAuthority.create("other").local("client-1", "desk-user", Role.CLIENT)
    observer = authority.local("observer-1", "guest", Role.OBSERVER)
    for refused, why in ((other, "cannot reach|broke"), (observer, "the role observer runs no work")):
        stranger = Endpoint(1, gang.table, Listeners.open("127.0.0.1"), lambda shown=refused: shown)
        with pytest.raises(RankGoneError, match=why):
            stranger.outgoing(0)
        stranger.close()
    gang.close()


def test_a_rank_that_is_no_more_is_named_whether_it_had_connected_or_not(gang: Gang):
    gone = gang.comms[-1]
    gone.close()
    with pytest.raises(RankGoneError, match=rf"waited for rank {gone.rank} \(node"):
        gang.comms[0].recv(gone.rank)
    gang.comms.remove(gone)


def test_a_collective_that_one_rank_does_not_call_names_it(gang: Gang):
    def call(comm: Communicator) -> None:
        comm.barrier()
        comm.patience_s = 0.3
        if comm.rank:
            comm.allgather(comm.rank)

    errors = gang.together(call)
    assert errors[0] is None
    if len(errors) == 2:
        assert isinstance(errors[1], CollectiveTimeoutError)
        assert "not called by 1 of the ranks: rank 0 (node a) has ended collective 1, barrier" in str(errors[1])


def test_ranks_that_wait_in_different_collectives_name_each_others(credentials: Credentials):
    def call(comm: Communicator) -> object:
        comm.patience_s = 0.5
        return comm.gather(1, root=1) if comm.rank else comm.broadcast(None, root=1)

    gang = Gang("ab", credentials)
    try:
        errors = [error for error in gang.together(call) if isinstance(error, CollectiveTimeoutError)]
        assert any("called another one in its place: rank" in str(error) for error in errors), errors
    finally:
        gang.close()


def test_arrays_of_different_sizes_are_refused_by_name(credentials: Credentials):
    gang = Gang("ab", credentials)
    errors = gang.together(lambda comm: comm.allreduce(np.ones(100_000 + comm.rank)))
    assert any(isinstance(error, GangError) and "one shape and dtype" in str(error) for error in errors), errors
    gang.close()


def test_messages_that_nobody_asks_for_have_a_limit(credentials: Credentials, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange, "EARLY_LIMIT_BYTES", 1000)
    gang = Gang("aa", credentials)
    for tag in range(4):
        gang.comms[0].send(np.zeros(400, np.uint8), 1, tag=tag)
    with pytest.raises(LimitError, match="has not asked for take over"):
        gang.comms[1].recv(0, tag=3)
    gang.close()
