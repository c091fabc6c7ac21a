"""A log of commands and the state that they make, and commands at random that get into each other's way."""

from __future__ import annotations

import random
from typing import Any

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated.replies import Outcome, Refusal, Reply
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import secret_sha256

START_S = 1_000_000.0
YEAR_S = 365 * 86400.0
KEY = b"k" * 40
IDS = ("n1", "n2", "n3", "u1", "u2")
HASHES = tuple(digit * 64 for digit in "abc")


class Log:
    """Applies commands one after another, with the time of the last one unless another is given."""

    def __init__(self) -> None:
        self.state = ClusterState()
        self.now_s = START_S

    def apply(self, command: c.Command, at_s: float | None = None, **session: int) -> Outcome:
        if at_s is not None:
            self.now_s = at_s
        entry = c.encode(c.Proposal(self.now_s, command, **session))
        return self.state.apply(self.state.applied_index + 1, entry)

    def reply(self, command: c.Command, at_s: float | None = None, **session: int) -> Any:
        """The reply, which must not be a refusal."""
        reply = self.apply(command, at_s, **session).reply
        assert not isinstance(reply, Refusal), reply
        return reply

    def refused(self, command: c.Command, at_s: float | None = None, **session: int) -> Refusal:
        """The refusal, which must not have changed anything but the index and the clock."""
        self.apply(c.Tick(), at_s)
        before = parts(self.state)
        reply: Reply = self.apply(command, **session).reply
        assert isinstance(reply, Refusal), reply
        assert parts(self.state) == before
        return reply


def parts(state: ClusterState) -> bytes:
    """A snapshot without the index."""
    index, state.applied_index = state.applied_index, 0
    try:
        return state.snapshot()
    finally:
        state.applied_index = index


def certificate(serial: int, id: str, name: str = "", role: Role = Role.NODE, **more: Any) -> c.Certificate:
    return c.Certificate(serial, id, name or f"name-{id}", role, START_S + YEAR_S, KEY, **more)


def founded() -> Log:
    """A cluster with two nodes and a client."""
    log = Log()
    first = (certificate(1, "n1"), certificate(2, "n2"), certificate(3, "u1", role=Role.ADMIN))
    log.reply(c.FoundCluster("lab", b"ca", first))
    return log


def redeem(token: str, joiner: str, number: int, **more: Any) -> c.RedeemToken:
    """A redemption whose wishes are made of `number`."""
    until_s = START_S + YEAR_S
    return c.RedeemToken(
        token,
        secret_sha256("secret"),
        joiner,
        c.Wish(f"node{number}", 2 * number, until_s, KEY),
        c.Wish(f"user{number}", 2 * number + 1, until_s, KEY),
        **{"node_name": "worker", "client_name": "ann@worker", **more},
    )


def random_command(rng: random.Random, state: ClusterState) -> c.Command:
    """One that is often right, and often not; names are few, so that commands meet."""
    name, owner = rng.choice("xyz"), rng.choice("pqrs")
    id, job, number = rng.choice(IDS), f"job{rng.randint(1, 3)}", rng.randint(1, 40)
    until_s = state.clock_s + rng.choice((60.0, YEAR_S))
    open_ = state.transactions.snapshot()
    txn = rng.choice(open_).txn if open_ and rng.random() < 0.8 else number
    known = state.jobs.get(job)
    epoch = known.epoch if known is not None and rng.random() < 0.8 else rng.randint(0, 3)
    small = bytes(rng.randint(0, 20))
    results = tuple(
        c.TaskResult(task, small) if rng.random() < 0.5 else c.TaskResult(task, None, rng.choice(HASHES), ("n1", "n2"))
        for task in {rng.randint(0, 9) for _ in range(rng.randint(1, 4))}
    )
    choices: tuple[c.Command, ...] = (
        c.Tick(),
        c.OpenSession(owner),
        c.FoundCluster("lab", b"ca", (certificate(1, "n1"), certificate(2, "n2"))),
        c.SetSetting(name, rng.choice(("1", "2", None))),
        c.SwapSetting(name, rng.choice(("1", None)), rng.choice(("1", "2"))),
        c.MintToken(name, secret_sha256("secret"), rng.choice(tuple(Role)), rng.choice((5.0, 600.0))),
        redeem(name, owner, number, insist=rng.random() < 0.5),
        c.RenewCertificate(id, rng.randint(1, 80), rng.randint(1, 80), until_s, KEY),
        c.ConfirmCertificate(id, rng.randint(1, 80)),
        c.RemoveIdentity(rng.choice((id, f"node{number}")), "removed by ann"),
        c.SealAuthority({id: small, "n1": b"sealed"}),
        c.AcquireLock(name, owner, f"holder {owner}", rng.choice((1.0, 10.0)), rng.choice((0.0, 5.0, 50.0))),
        c.RenewLock(name, owner, state.locks.last_token),
        c.ReleaseLock(name, owner),
        c.BeginTransaction({"n1": b"slot", rng.choice(("n2", "n3")): small}, rng.choice((2.0, 60.0))),
        c.DecideTransaction(txn, rng.random() < 0.6),
        c.AckTransaction(txn, (rng.choice(("n1", "n2", "n3")), "n1")),
        c.SubmitJob(job, "u1", "ann", "sum", small, (c.Part(rng.choice(HASHES), ("n1",)),)),
        c.AssignDriver(job, rng.choice(("n1", "n2")), epoch),
        c.CommitResults(job, epoch, results),
        c.MovePart(job, c.Part(rng.choice(HASHES), ("n2", "n3"))),
        c.FinishJob(job, epoch, rng.choice(tuple(c.JobEnd)), 3, small),
        c.CancelJob(job, "ann"),
        c.DropJob(job),
    )
    return rng.choice(choices)


def random_step_s(rng: random.Random) -> float:
    """How far the stamp of the next command lies from the last one's; sometimes back, sometimes far."""
    return rng.choice((0.0, 0.0, 0.5, 0.5, 3.0, -2.0, 40.0, 5000.0))


def random_log(rng: random.Random, length: int) -> list[bytes]:
    """Entries that were proposed while they were being applied."""
    state, entries, now_s = ClusterState(), [], START_S
    for index in range(1, length + 1):
        now_s += random_step_s(rng)
        sessions = [session.number for session in state.sessions.snapshot()]
        session = rng.choice(sessions) if sessions and rng.random() < 0.5 else 0
        entry = c.encode(c.Proposal(now_s, random_command(rng, state), session, rng.randint(1, 20) if session else 0))
        state.apply(index, entry)
        entries.append(entry)
    return entries
