"""Probes: one member at a time is pinged, then asked after through others; and the same done for others as a helper.

Theory of operation. A probe waits `probe_timeout_s` for a direct answer, then asks `HELPERS` members to ping the
target, and has failed when `probe_s` is over. A helper answers `Ack` when it got one, `Nack` after `relay_s` when it
did not. So a prober learns from missing Nacks that the fault may be its own: its local health (0 is good, up to
`HEALTH_LIMIT`) gets worse, and all its time-outs grow by that factor (Lifeguard, "Local Health Aware Probe").

    event                                  local health
    an answer to a probe                   1 better
    a failed probe                         worse by the Nacks that are missing; by 1 when there was no helper
    this node had to refute, or stalled    1 worse

Rules. Answers count only from whom they were asked. What is sent is returned as (id, message); gossip is added later.
"""

from __future__ import annotations

import random

from kos_cluster.core.swim.messages import Ack, Nack, Ping, PingReq
from kos_cluster.core.swim.profile import Profile
from kos_cluster.core.swim.turns import Turns

HELPERS = 3  # members asked to ping one that did not answer
HEALTH_LIMIT = 8  # the worst local health; time-outs are then nine times as long
RELAYS_LIMIT = 256  # pings for others under way; more are not taken, and a prober does without

Outgoing = tuple[str, Ping | Ack | PingReq | Nack]


class _Probe:
    __slots__ = ("asked", "direct_until", "helpers", "nacks", "seq", "target", "until")

    def __init__(self, target: str, seq: int, direct_until: float, until: float) -> None:
        self.target, self.seq, self.direct_until, self.until = target, seq, direct_until, until
        self.asked = False
        self.helpers: list[str] = []
        self.nacks: set[str] = set()


class _Relay:
    __slots__ = ("asker", "forget_at", "nack_at", "nacked", "seq", "target")

    def __init__(self, asker: str, seq: int, target: str, nack_at: float, forget_at: float) -> None:
        self.asker, self.seq, self.target, self.nack_at, self.forget_at = asker, seq, target, nack_at, forget_at
        self.nacked = False


class Prober:
    """The probe that is under way and the pings for others. `turns` says who is next."""

    def __init__(self, profile: Profile, turns: Turns, rng: random.Random, now: float) -> None:
        self.health = 0
        self._profile = profile
        self._turns = turns
        self._seq = rng.getrandbits(32)  # answers to an earlier life do not fit
        self._next = now + rng.random() * profile.probe_s
        self._probe: _Probe | None = None
        self._relays: dict[int, _Relay] = {}

    @property
    def deadline(self) -> float:
        probe = self._probe
        due = self._next if probe is None else probe.until if probe.asked else probe.direct_until
        if self._relays:
            due = min(due, *(relay.forget_at if relay.nacked else relay.nack_at for relay in self._relays.values()))
        return due

    def tick(self, now: float) -> tuple[list[Outgoing], str | None]:
        """Do what is due. Also returns whose probe failed, if one did."""
        sent = self._tick_relays(now) if self._relays else []
        probe, failed = self._probe, None
        if probe is not None and not probe.asked and now >= probe.direct_until:
            sent += self._ask_helpers(probe)
        if probe is not None and now >= probe.until:
            failed, self._probe = probe.target, None
            self.worsen(len(probe.helpers) - len(probe.nacks) if probe.helpers else 1)
        if self._probe is None and now >= self._next:
            sent += self._start(now)
        return sent, failed

    def acked(self, sender: str, seq: int) -> list[Outgoing]:
        """An answer came, to a probe or to a ping for another."""
        probe = self._probe
        if probe is not None and seq == probe.seq and (sender == probe.target or sender in probe.helpers):
            self._probe = None
            self.health = max(0, self.health - 1)
        relay = self._relays.get(seq)
        if relay is None or relay.target != sender:
            return []
        del self._relays[seq]
        return [(relay.asker, Ack(relay.seq))]

    def nacked(self, sender: str, seq: int) -> None:
        """A helper has got no answer yet."""
        if self._probe is not None and seq == self._probe.seq and sender in self._probe.helpers:
            self._probe.nacks.add(sender)

    def asked(self, asker: str, seq: int, target: str, now: float) -> list[Outgoing]:
        """Ping a live target for another."""
        if len(self._relays) >= RELAYS_LIMIT:
            return []
        own, profile = self._new_seq(), self._profile
        self._relays[own] = _Relay(asker, seq, target, now + profile.relay_s, now + profile.probe_s)
        return [(target, Ping(own))]

    def link_down(self, id: str, now: float) -> None:
        """The direct way to this live member is broken: ask the helpers at once, or probe it next."""
        probe = self._probe
        if probe is None or probe.target != id:
            self._turns.hasten(id)
        elif not probe.asked:
            probe.direct_until = now

    def forget(self, id: str) -> None:
        """This member is not alive any more; how a probe of it ends tells nothing."""
        if self._probe is not None and self._probe.target == id:
            self._probe = None

    def worsen(self, by: int = 1) -> None:
        self.health = min(HEALTH_LIMIT, self.health + by)

    def stalled(self, now: float) -> None:
        """This node did not run for a while; answers may wait to be read. Give the probe its time anew."""
        self.worsen()
        probe, profile = self._probe, self._profile
        if probe is not None:
            probe.direct_until = now + profile.probe_timeout_s
            probe.until = self._next = now + profile.probe_s

    def _start(self, now: float) -> list[Outgoing]:
        scale = 1 + self.health
        self._next = now + self._profile.probe_s * scale
        target = self._turns.next()
        if target is None:
            return []
        self._probe = _Probe(target, self._new_seq(), now + self._profile.probe_timeout_s * scale, self._next)
        return [(target, Ping(self._probe.seq))]

    def _ask_helpers(self, probe: _Probe) -> list[Outgoing]:
        probe.asked = True
        probe.helpers = self._turns.some(HELPERS, but=(probe.target,))
        return [(helper, PingReq(probe.seq, probe.target)) for helper in probe.helpers]

    def _tick_relays(self, now: float) -> list[Outgoing]:
        sent: list[Outgoing] = []
        for seq, relay in list(self._relays.items()):
            if not relay.nacked and now >= relay.nack_at:
                relay.nacked = True
                sent.append((relay.asker, Nack(relay.seq)))
            if now >= relay.forget_at:
                del self._relays[seq]
        return sent

    def _new_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq
