"""Nodes and clients that were admitted: their names, their certificates by serial, and the deny-list.

Rules: a serial and an id are never given twice. No two nodes have one name; a removed node's name is free. A serial is
denied from the removal of its identity, or from the confirmation of its successor, until it would have expired anyway.
Removing a node removes the clients that came with it too, since their keys lie on the same machine.

    certificate   command                    next
    -             redeemed, founded          valid
    valid         renewed                    valid, with a successor that is valid too
    successor     confirmed                  valid; all others of the identity are denied
    successor     renewed again              denied (it may never have arrived); the new one is the successor
    any           identity removed           denied
    any           end of its life + grace    forgotten; the identity too when it was the last
"""

from __future__ import annotations

import re

import msgspec

from kos_cluster.core.replicated.commands import Certificate, ConfirmCertificate, RenewCertificate
from kos_cluster.core.replicated.deadlines import Deadlines
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, JoinError, LimitError, NoSuchNodeError, UsageError

IDENTITIES_LIMIT = 8192
REVOKED_LIMIT = 65536  # as many as every node's door remembers
EXPIRED_KEPT_S = 30 * 86400.0  # for which expired identities keep their name, should a clock have been wrong
REVOKED_KEPT_S = 86400.0  # beyond its end, for which a denied serial stays denied where a clock is slow
REASON_LIMIT_CHARACTERS = 256
CERTIFICATE_LIFE_LIMIT_S = 10 * 365 * 86400.0
CURVE_KEY_BYTES = 40  # Z85 text of 32 bytes
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TOKEN = "Join again with a new token."


class Revoked(msgspec.Struct, frozen=True):
    """A denied certificate. Times are Unix seconds."""

    serial: int
    id: str
    name: str
    reason: str
    since_s: float
    not_after_s: float


class Identity(msgspec.Struct):
    """`successor`: the serial of a renewed certificate that is not confirmed yet, or 0."""

    id: str
    name: str
    role: Role
    came_with: str
    certificates: dict[int, Certificate]
    successor: int = 0


class Identities:
    """Who is admitted, and who no longer is."""

    def __init__(self, identities: list[Identity], revoked: list[Revoked]) -> None:
        self._identities = {identity.id: identity for identity in identities}
        self._revoked = {entry.serial: entry for entry in revoked}
        self._serials = {serial: i.id for i in identities for serial in i.certificates}
        self._nodes = {i.name: i.id for i in identities if i.role is Role.NODE}
        self._ends = Deadlines()
        for identity in identities:
            self._watch(identity)
        for entry in revoked:
            self._ends.set(_revoked_key(entry.serial), entry.not_after_s + REVOKED_KEPT_S)

    def identities(self) -> list[Identity]:
        return list(self._identities.values())

    def revoked(self) -> list[Revoked]:
        return list(self._revoked.values())

    def get(self, id: str) -> Identity | None:
        return self._identities.get(id)

    def denied(self, serial: int) -> Revoked | None:
        """The entry of the deny-list, if a certificate is on it."""
        return self._revoked.get(serial)

    def certificate(self, serial: int) -> Certificate | None:
        """A certificate that was issued and is not denied."""
        id = self._serials.get(serial)
        return None if id is None else self._identities[id].certificates[serial]

    def node_name(self, wanted: str, insist: bool) -> str:
        """A free name for a new node: the wanted one, else the first free `nodeN`. Raises JoinError or UsageError."""
        if wanted and not _NAME.fullmatch(wanted):
            raise UsageError(
                f"{wanted[:64]!r} cannot be the name of a node.", "Use up to 64 letters, digits and . _ @ -."
            )
        if wanted and wanted not in self._nodes:
            return wanted
        if wanted and insist:
            raise JoinError(f"Another node of the cluster is named {wanted}.", "Give another --name.")
        number = 1
        while f"node{number}" in self._nodes:
            number += 1
        return f"node{number}"

    def admit(self, certificates: list[Certificate], clock_s: float) -> None:
        """Enter new identities, all or none. Raises JoinError, UsageError or LimitError, and then nothing changed."""
        if len(self._identities) + len(certificates) > IDENTITIES_LIMIT:
            raise LimitError(
                f"The cluster has {len(self._identities)} nodes and clients; the limit is {IDENTITIES_LIMIT}.",
                "Remove some: 'kos cluster remove NAME'.",
            )
        nodes = [c.name for c in certificates if c.role is Role.NODE]
        if len({c.id for c in certificates}) < len(certificates) or len(set(nodes)) < len(nodes):
            raise UsageError("Two new identities have one id, or two new nodes one name.")
        for certificate in certificates:
            ids = (certificate.id, certificate.came_with or certificate.id)
            if certificate.id in self._identities:
                raise JoinError(f"The id {certificate.id} is given already.", "Try again.")
            if certificate.role is Role.NODE and certificate.name in self._nodes:
                raise JoinError(f"Another node of the cluster is named {certificate.name}.", "Give another --name.")
            if not (_NAME.fullmatch(certificate.name) and all(map(_ID.fullmatch, ids))):
                raise UsageError(f"{certificate.name[:64]!r} cannot be the name of a node or client.")
            _check_certificate(certificate.curve_public, certificate.not_after_s, clock_s)
        self._check_new([c.serial for c in certificates])
        for c in certificates:
            identity = Identity(c.id, c.name, c.role, c.came_with, {c.serial: c})
            self._identities[c.id] = identity
            self._serials[c.serial] = c.id
            if c.role is Role.NODE:
                self._nodes[c.name] = c.id
            self._watch(identity)

    def renew(self, command: RenewCertificate, clock_s: float) -> tuple[Certificate, tuple[int, ...]]:
        """The successor, and what is denied by that. Raises AuthError, UsageError or LimitError."""
        identity = self._holder(command.id, command.old_serial)
        self._check_new([command.serial])
        _check_certificate(command.curve_public, command.not_after_s, clock_s)
        unconfirmed = [identity.successor] if identity.successor not in (0, command.old_serial) else []
        if identity.successor == command.old_serial:  # it renews what it did not confirm: so it has it
            unconfirmed = [serial for serial in identity.certificates if serial != command.old_serial]
        self._check_room(len(unconfirmed))
        self._deny(identity, unconfirmed, "replaced", clock_s)
        certificate = Certificate(
            command.serial,
            identity.id,
            identity.name,
            identity.role,
            command.not_after_s,
            command.curve_public,
            identity.came_with,
        )
        identity.certificates[command.serial] = certificate
        identity.successor = command.serial
        self._serials[command.serial] = identity.id
        self._watch(identity)
        return certificate, tuple(unconfirmed)

    def confirm(self, command: ConfirmCertificate, clock_s: float) -> tuple[int, ...]:
        """The serials that are denied now: all others of this identity. Raises AuthError or LimitError."""
        identity = self._holder(command.id, command.serial)
        others = [serial for serial in identity.certificates if serial != command.serial]
        self._check_room(len(others))
        self._deny(identity, others, "replaced", clock_s)
        identity.successor = 0
        return tuple(others)

    def remove(self, id: str, reason: str, clock_s: float) -> tuple[int, ...]:
        """Deny an identity and the clients that came with it. Raises NoSuchNodeError or LimitError."""
        if id not in self._identities:
            raise NoSuchNodeError(f"No node or client with the id {id[:64]} is in the cluster.", "See 'kos nodes'.")
        gone = [i for i in self._identities.values() if id in (i.id, i.came_with)]
        serials = [serial for identity in gone for serial in identity.certificates]
        self._check_room(len(serials))
        for identity in gone:
            self._deny(identity, list(identity.certificates), reason[:REASON_LIMIT_CHARACTERS], clock_s)
            self._forget(identity)
        return tuple(serials)

    def expire(self, clock_s: float) -> None:
        """Forget what expired, each kind after its grace."""
        for key in self._ends.due(clock_s):
            kind, _, rest = key.partition(":")
            if kind == "revoked":
                del self._revoked[int(rest)]
                continue
            identity = self._identities[rest]
            for serial, certificate in list(identity.certificates.items()):
                if certificate.not_after_s + EXPIRED_KEPT_S <= clock_s:
                    del identity.certificates[serial], self._serials[serial]
                    if serial == identity.successor:
                        identity.successor = 0
            if identity.certificates:
                self._watch(identity)
            else:
                self._forget(identity)

    def _holder(self, id: str, serial: int) -> Identity:
        identity = self._identities.get(id)
        if identity is not None and serial in identity.certificates:
            return identity
        entry = self._revoked.get(serial)
        if entry is not None and entry.id == id:
            raise AuthError(f"The certificate of {entry.name} is denied: {entry.reason}.", _TOKEN)
        raise AuthError("The certificate is not one that this cluster admitted.", _TOKEN)

    def _check_new(self, serials: list[int]) -> None:
        known = [s for s in serials if s in self._serials or s in self._revoked]
        if known or len(set(serials)) < len(serials):
            raise JoinError("The serial of a new certificate is given already.", "Try again.")

    def _check_room(self, count: int) -> None:
        if len(self._revoked) + count > REVOKED_LIMIT:
            raise LimitError(
                f"{len(self._revoked)} certificates are denied already; the limit is {REVOKED_LIMIT}.",
                "Some are forgotten when they expire; or form a new cluster.",
            )

    def _deny(self, identity: Identity, serials: list[int], reason: str, clock_s: float) -> None:
        for serial in serials:
            certificate = identity.certificates.pop(serial)
            del self._serials[serial]
            self._revoked[serial] = Revoked(
                serial, identity.id, identity.name, reason, clock_s, certificate.not_after_s
            )
            self._ends.set(_revoked_key(serial), certificate.not_after_s + REVOKED_KEPT_S)

    def _forget(self, identity: Identity) -> None:
        del self._identities[identity.id]
        self._ends.drop(f"identity:{identity.id}")
        for serial in identity.certificates:
            del self._serials[serial]
        if identity.role is Role.NODE:
            del self._nodes[identity.name]

    def _watch(self, identity: Identity) -> None:
        first_s = min(certificate.not_after_s for certificate in identity.certificates.values())
        self._ends.set(f"identity:{identity.id}", first_s + EXPIRED_KEPT_S)


def _revoked_key(serial: int) -> str:
    return f"revoked:{serial}"


def _check_certificate(curve_public: bytes, not_after_s: float, clock_s: float) -> None:
    if len(curve_public) != CURVE_KEY_BYTES:
        raise UsageError(f"A certificate's CURVE key has {len(curve_public)} bytes instead of {CURVE_KEY_BYTES}.")
    if not clock_s < not_after_s <= clock_s + CERTIFICATE_LIFE_LIMIT_S:
        raise UsageError(
            "A certificate would end before it begins, or live too long.", "Compare the clocks: 'kos doctor'."
        )
