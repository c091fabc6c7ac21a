"""The cluster's state: Raft's committed commands, applied in order, make the same of it on every node.

Theory of operation. `apply` moves the replicated clock, ends what is due by it, looks whether the command was applied
before (`sessions`), then lets the part concerned decide. A part checks all before it changes anything, and raises a
`KosError` to refuse, which becomes the reply. The clock is the latest time that any proposer stamped on a command; it
never goes back, so all nodes end leases at the same command, however their own clocks differ.

Rules: nothing depends on this node's clock, on randomness, or on the order of a set, so equal commands make snapshots
equal byte by byte. An error that is no `KosError` is a defect: it comes through and the daemon halts, rather than go
on with a state that others may not have. All of it is bounded by its parts, whose limits are part of the format (see
`commands`).
"""

from __future__ import annotations

import math

import msgspec

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import formats
from kos_cluster.core.replicated import replies as r
from kos_cluster.core.replicated.identities import Identities, Identity, Revoked
from kos_cluster.core.replicated.jobs import Job, Jobs
from kos_cluster.core.replicated.locks import Lock, Locks
from kos_cluster.core.replicated.redemption import Redemption, Redemptions
from kos_cluster.core.replicated.seals import Seals
from kos_cluster.core.replicated.sessions import Session, Sessions
from kos_cluster.core.replicated.settings import Settings
from kos_cluster.core.replicated.transactions import Ended, Transaction, Transactions
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import TokenEntry
from kos_cluster.errors import KosError, StateError, UsageError


class _Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of the state. Lists keep the order that the parts rely on. What a format does not know is empty in it, and so
    left out.
    """

    applied_index: int = 0
    clock_s: float = 0.0
    cluster: str = ""
    ca_pem: bytes = b""
    sessions: list[Session] = []
    settings: dict[str, str] = {}
    identities: list[Identity] = []
    revoked: list[Revoked] = []
    tokens: list[TokenEntry] = []
    redemptions: list[Redemption] = []
    seals: dict[str, bytes] = {}
    locks: list[Lock] = []
    last_lock_token: int = 0
    transactions: list[Transaction] = []
    ended_transactions: list[Ended] = []
    jobs: list[Job] = []


class ClusterState:
    """The parts may be read by anyone, and are changed by `apply` alone."""

    def __init__(self) -> None:
        self._adopt(_Snapshot())

    def _adopt(self, s: _Snapshot) -> None:
        self.applied_index = s.applied_index
        self.clock_s = s.clock_s
        self.cluster = s.cluster
        self.ca_pem = s.ca_pem
        self.sessions = Sessions(s.sessions)
        self.settings = Settings(s.settings)
        self.identities = Identities(s.identities, s.revoked)
        self.redemptions = Redemptions(s.tokens, s.redemptions)
        self.seals = Seals(s.seals)
        self.locks = Locks(s.locks, s.last_lock_token)
        self.transactions = Transactions(s.transactions, s.ended_transactions)
        self.jobs = Jobs(s.jobs)

    @property
    def format(self) -> int:
        """In which entries and snapshots are written: the one that is agreed on, as far as this version knows it."""
        return min(formats.agreed(self.settings), c.FORMAT)

    @property
    def due_s(self) -> float:
        """When the coordinator should propose a `Tick`, if nothing else is proposed by then; often infinite."""
        return min(self.locks.due_s, self.transactions.due_s)

    def snapshot(self) -> bytes:
        """All of the state, as `restore` takes it."""
        return bytes((self.format,)) + msgspec.msgpack.encode(
            _Snapshot(
                applied_index=self.applied_index,
                clock_s=self.clock_s,
                cluster=self.cluster,
                ca_pem=self.ca_pem,
                sessions=self.sessions.snapshot(),
                settings=self.settings.snapshot(),
                identities=self.identities.identities(),
                revoked=self.identities.revoked(),
                tokens=self.redemptions.tokens(),
                redemptions=self.redemptions.redemptions(),
                seals=self.seals.snapshot(),
                locks=self.locks.snapshot(),
                last_lock_token=self.locks.last_token,
                transactions=self.transactions.snapshot(),
                ended_transactions=self.transactions.ended(),
                jobs=self.jobs.snapshot(),
            )
        )

    @classmethod
    def restore(cls, snapshot: bytes) -> ClusterState:
        """Raises UnknownEntryError for a snapshot of another version, StateError for a damaged one."""
        if not snapshot or not c.FIRST_FORMAT <= snapshot[0] <= c.FORMAT:
            raise c.UnknownEntryError(
                f"A snapshot of the cluster's state is of no format that this version reads (up to {c.FORMAT}).",
                "Install the version of kos-cluster that the other nodes run, then start this node again.",
            )
        try:
            decoded = msgspec.msgpack.decode(memoryview(snapshot)[1:], type=_Snapshot)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StateError(
                f"A snapshot of the cluster's state is damaged ({error}).",
                "Let this node leave and join again; the others have the state.",
            ) from None
        state = cls()
        state._adopt(decoded)
        return state

    def apply(self, index: int, entry: bytes) -> r.Outcome:
        """Apply the committed entry at `index`. Raises UnknownEntryError, and then nothing changed: halt."""
        if index <= self.applied_index:
            raise ValueError(f"entry {index} is applied already; the state is at {self.applied_index}")
        proposal = c.decode(entry)
        self.applied_index = index
        if math.isfinite(proposal.now_s):
            self.clock_s = max(self.clock_s, proposal.now_s)
        changes = self._expire()
        if not proposal.session:
            reply, more = self._attempt(index, proposal.command)
            return r.Outcome(reply, (*changes, *more))
        try:
            earlier = self.sessions.recall(proposal.session, proposal.serial, proposal.answered_below, self.clock_s)
        except KosError as error:
            return r.Outcome(r.Refusal.of(error), tuple(changes))
        if earlier is not None:
            return r.Outcome(earlier, tuple(changes), repeated=True)
        reply, more = self._attempt(index, proposal.command)
        self.sessions.keep(proposal.session, proposal.serial, reply)
        return r.Outcome(reply, (*changes, *more))

    def _expire(self) -> list[r.Change]:
        self.sessions.expire(self.clock_s)
        self.identities.expire(self.clock_s)
        self.jobs.expire(self.clock_s)
        return [*self.locks.expire(self.clock_s), *self.transactions.expire(self.clock_s)]

    def _attempt(self, index: int, command: c.Command) -> tuple[r.Reply, list[r.Change]]:
        try:
            return self._carry_out(index, command)
        except KosError as error:
            return r.Refusal.of(error), []

    def _carry_out(self, index: int, command: c.Command) -> tuple[r.Reply, list[r.Change]]:
        match command:
            case c.Tick():
                return r.Done(), []
            case c.OpenSession(owner):
                self.sessions.open(index, owner, self.clock_s)
                return r.SessionOpened(index), []
            case c.SetSetting(name, value):
                self.settings.set(name, value)
                return r.Done(), [r.SettingChanged(name)]
            case c.SwapSetting(name, expected, value):
                self.settings.swap(name, expected, value)
                return r.Done(), [r.SettingChanged(name)]
            case c.AcquireLock():
                return self.locks.acquire(command, self.clock_s), []
            case c.RenewLock():
                return self.locks.renew(command, self.clock_s), []
            case c.ReleaseLock():
                return r.Done(), self.locks.release(command, self.clock_s)
            case c.BeginTransaction():
                return self.transactions.begin(command, index, self.clock_s), []
            case c.DecideTransaction():
                return self.transactions.decide(command)
            case c.AckTransaction():
                return self.transactions.ack(command)
            case (
                c.FoundCluster()
                | c.MintToken()
                | c.RedeemToken()
                | c.RenewCertificate()
                | c.ConfirmCertificate()
                | c.RemoveIdentity()
                | c.SealAuthority()
            ):
                return self._carry_out_identity(command)
            case _:
                return self._carry_out_job(command)

    def _carry_out_identity(
        self,
        command: c.FoundCluster
        | c.MintToken
        | c.RedeemToken
        | c.RenewCertificate
        | c.ConfirmCertificate
        | c.RemoveIdentity
        | c.SealAuthority,
    ) -> tuple[r.Reply, list[r.Change]]:
        match command:
            case c.FoundCluster():
                self._found(command)
                return r.Done(), []
            case c.MintToken():
                self.redemptions.mint(command, self.clock_s)
                return r.Done(), []
            case c.RedeemToken():
                return self.redemptions.redeem(command, self.identities, self.clock_s), []
            case c.RenewCertificate():
                return _denied(self.identities.renew(command, self.clock_s)[1])
            case c.ConfirmCertificate():
                return _denied(self.identities.confirm(command, self.clock_s))
            case c.RemoveIdentity(id, reason):
                self.seals.check_drop(id)
                reply, changes = _denied(self.identities.remove(id, reason, self.clock_s))
                if self.seals.drop(id):
                    changes.append(r.SealsChanged())
                return reply, changes
            case c.SealAuthority(seals):
                self.seals.replace(seals, [i.id for i in self.identities.identities() if i.role is Role.NODE])
                return r.Done(), [r.SealsChanged()]

    def _carry_out_job(
        self,
        command: c.SubmitJob | c.AssignDriver | c.CommitResults | c.MovePart | c.FinishJob | c.CancelJob | c.DropJob,
    ) -> tuple[r.Reply, list[r.Change]]:
        changes: list[r.Change] = [r.JobChanged(command.id)]
        match command:
            case c.SubmitJob():
                return self.jobs.submit(command, self.clock_s), changes
            case c.AssignDriver():
                return self.jobs.assign(command), changes
            case c.CommitResults():
                return self.jobs.commit(command), changes
            case c.MovePart():
                self.jobs.move(command)
            case c.FinishJob():
                self.jobs.finish(command, self.clock_s)
            case c.CancelJob():
                return self.jobs.cancel(command, self.clock_s), changes
            case c.DropJob(id):
                self.jobs.drop(id)
        return r.Done(), changes

    def _found(self, command: c.FoundCluster) -> None:
        if self.cluster:
            raise StateError(f"This is the cluster {self.cluster!r} already.")
        if not command.cluster or not command.ca_pem:
            raise UsageError("A cluster has a name and an authority.")
        self.identities.admit(list(command.certificates), self.clock_s)
        self.cluster, self.ca_pem = command.cluster, command.ca_pem
        self.redemptions = Redemptions(list(command.tokens), [])


def _denied(serials: tuple[int, ...]) -> tuple[r.Reply, list[r.Change]]:
    changes: list[r.Change] = [r.CertificatesDenied(serials)] if serials else []
    return r.Denied(serials), changes
