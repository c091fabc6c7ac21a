"""Join tokens, redeemed by agreement: a token is used up, and the name and certificates entered, in one step.

Theory of operation. Two coordinators may propose to redeem one token at once. Both commands are in the log, in one
order, which is the compare-and-set: the first finds the token unused, the second does not. A joiner that got no
answer asks again, perhaps another coordinator; the command carries the same `joiner`, and is answered with the
admission of then.

Rules: everything that can be refused is refused before the token is used up. What a token means is in `core.tokens`.
"""

from __future__ import annotations

import re

import msgspec

from kos_cluster.core.replicated.commands import Certificate, MintToken, RedeemToken, Wish
from kos_cluster.core.replicated.identities import Identities
from kos_cluster.core.replicated.replies import Admission
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import TokenEntry, TokenTable
from kos_cluster.errors import JoinError, UsageError

JOINER_LIMIT_CHARACTERS = 128
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Redemption(msgspec.Struct, frozen=True):
    """Who used a token up, and what it got."""

    token_id: str
    joiner: str
    admission: Admission


class Redemptions:
    """The tokens, and the admissions of those that were used, kept as long as the tokens are remembered."""

    def __init__(self, tokens: list[TokenEntry], redemptions: list[Redemption]) -> None:
        self._tokens = TokenTable(tokens)
        self._redemptions = {entry.token_id: entry for entry in redemptions}

    def tokens(self) -> list[TokenEntry]:
        return self._tokens.snapshot()

    def redemptions(self) -> list[Redemption]:
        return list(self._redemptions.values())

    def check(self, id: str, secret_sha256: str, clock_s: float) -> TokenEntry:
        """What a coordinator looks at before it proposes. Raises JoinError, as `redeem` will."""
        return self._tokens.check_hashed(id, secret_sha256, clock_s)

    def mint(self, command: MintToken, clock_s: float) -> None:
        """Raises UsageError or LimitError."""
        if not (_ID.fullmatch(command.id) and _SHA256.fullmatch(command.secret_sha256)):
            raise UsageError(f"{command.id[:64]!r} cannot be a join token: its id or hash is malformed.")
        self._tokens.add_hashed(command.id, command.secret_sha256, command.role, command.ttl_s, clock_s)
        remembered = {entry.id for entry in self._tokens.snapshot()}
        self._redemptions = {id: entry for id, entry in self._redemptions.items() if id in remembered}

    def redeem(self, command: RedeemToken, identities: Identities, clock_s: float) -> Admission:
        """Admit a joiner, or tell it again how it was. Raises JoinError, UsageError or LimitError."""
        self._tokens.recognise_hashed(command.token_id, command.secret_sha256)
        earlier = self._redemptions.get(command.token_id)
        if earlier is not None and earlier.joiner == command.joiner:
            return earlier.admission
        if not 0 < len(command.joiner) <= JOINER_LIMIT_CHARACTERS:
            raise UsageError("A join request does not say which one it is.", "Join again.")
        role = self._tokens.check_hashed(command.token_id, command.secret_sha256, clock_s).role
        if command.role and command.role != role.value:
            raise JoinError(
                f"The join token is for the role {role.value!r}, not {command.role[:32]!r}.",
                f"Ask for another: 'kos cluster token --role {command.role[:32]}'.",
            )
        admission = _admission(command, role, identities)
        wanted = [admission.client] if admission.node is None else [admission.node, admission.client]
        identities.admit(wanted, clock_s)
        self._tokens.redeem_hashed(command.token_id, command.secret_sha256, clock_s)
        self._redemptions[command.token_id] = Redemption(command.token_id, command.joiner, admission)
        return admission


def _admission(command: RedeemToken, role: Role, identities: Identities) -> Admission:
    if role is not Role.NODE:
        return Admission(role, _certificate(command.client, command.client_name, role), None)
    name = identities.node_name(command.node_name, command.insist)
    node = _certificate(command.node, name, role)
    return Admission(role, _certificate(command.client, command.client_name, Role.CLIENT, node.id), node)


def _certificate(wish: Wish, name: str, role: Role, came_with: str = "") -> Certificate:
    return Certificate(wish.serial, wish.id, name, role, wish.not_after_s, wish.curve_public, came_with)
