"""What the registry's keeper decides about a join request: refuse it with a sentence, or certify the joiner.

Rules: everything that can be refused is refused before the token is used up. Versions: the wire version and Python's
minor version must agree, as pickled code does not travel between them; other differences are warnings in the reply.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from kos_cluster.core.records import Versions
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import TokenTable
from kos_cluster.errors import IncompatibleError, JoinError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.joining import JoinReply, JoinRequest

ID_BYTES = 8
NAME_LIMIT_CHARACTERS = 64


def grant(
    request: JoinRequest,
    source_host: str,
    *,
    authority: CertificateAuthority,
    tokens: TokenTable,
    versions: Versions,
    node_name: str,
    bootstrap: Sequence[str],
    now: float,
) -> JoinReply:
    """Redeem the token and certify the joiner. Make `tokens.snapshot()` durable before the reply is sent.

    `versions` are the keeper's; `node_name` is a free name for the node, should the role run one.
    """
    if request.cluster != authority.cluster:
        raise JoinError(
            f"This cluster is named {authority.cluster!r}, not {request.cluster!r}.",
            f"Type 'kos cluster join {authority.cluster}'.",
        )
    warnings = checked_versions(request.versions, versions)
    role = tokens.check(request.token_id, request.secret, now).role
    if request.role and request.role != role.value:
        raise JoinError(
            f"The join token is for the role {role.value!r}, not {request.role!r}.",
            f"Ask for another: 'kos cluster token --role {request.role}'.",
        )
    client_role = Role.CLIENT if role is Role.NODE else role
    client_pem = authority.issue(request.client.request_pem, _new_id(), _client_name(request), client_role)
    node_pem = b""
    if role is Role.NODE:
        node_pem = authority.issue(request.node.request_pem, _new_id(), node_name, Role.NODE)
    tokens.redeem(request.token_id, request.secret, now)
    return JoinReply(
        role=role,
        client_pem=client_pem,
        node_pem=node_pem,
        node_name=node_name if role is Role.NODE else "",
        source_host=source_host,
        bootstrap=list(bootstrap),
        warnings=warnings,
    )


def checked_versions(theirs: Versions, ours: Versions) -> list[str]:
    """Warnings about differences that can be lived with. Raises IncompatibleError for those that cannot."""
    if theirs.wire != ours.wire:
        raise IncompatibleError(
            f"The joining machine speaks KOS wire version {theirs.wire} (KOS {theirs.kos}), "
            f"the cluster {ours.wire} (KOS {ours.kos}).",
            f"Install kos-cluster {ours.kos} on the joining machine.",
        )
    if _minor(theirs.python) != _minor(ours.python):
        raise IncompatibleError(
            f"The joining machine runs Python {theirs.python}, the cluster Python {ours.python}; "
            "code does not travel between different minor versions.",
            f"Install kos-cluster under Python {_minor(ours.python)} on the joining machine.",
        )
    pairs = (("Python", theirs.python, ours.python), ("KOS", theirs.kos, ours.kos))
    return [
        f"The joining machine has {what} {there}, the cluster {here}." for what, there, here in pairs if there != here
    ]


def _client_name(request: JoinRequest) -> str:
    plain = re.sub(r"[^A-Za-z0-9._@-]", "-", f"{request.user or 'user'}@{request.name or 'host'}")
    return plain[:NAME_LIMIT_CHARACTERS]


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _new_id() -> str:
    return secrets.token_hex(ID_BYTES)
