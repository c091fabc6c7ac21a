"""What nodes say of themselves, checked by who has never met them."""

from __future__ import annotations

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.node.vouching import Vouching

AUTHORITY = CertificateAuthority.create("lab")
ADA = AUTHORITY.local("ada-id", "ada", Role.NODE)
BOB = AUTHORITY.local("bob-id", "bob", Role.NODE)


def vouching(credentials: Credentials = BOB, denied: frozenset[int] = frozenset()) -> Vouching:
    return Vouching(credentials, denied.__contains__)


def test_a_record_is_believed_by_whoever_has_the_authoritys_certificate() -> None:
    voucher = vouching(ADA).sign(b"I am ada")
    assert vouching().verify("ada-id", b"I am ada", voucher)


@pytest.mark.parametrize(
    ("id_", "statement", "maker"),
    [
        ("bob-id", b"I am ada", ADA),  # about another
        ("ada-id", b"I am Ada", ADA),  # changed on its way
        ("cal-id", b"I am ada", AUTHORITY.local("cal-id", "cal", Role.CLIENT)),  # of one that is no node
        ("ada-id", b"I am ada", CertificateAuthority.create("lab").local("ada-id", "ada", Role.NODE)),  # of another CA
    ],
    ids=["another's", "changed", "a client's", "a stranger's"],
)
def test_what_does_not_hold_is_not_believed(id_: str, statement: bytes, maker: Credentials) -> None:
    voucher = vouching(maker).sign(b"I am ada")
    assert not vouching().verify(id_, statement, voucher)


@pytest.mark.parametrize("cut", [0, 1, 71, 72, 73, 200])
def test_a_mangled_voucher_is_not_believed(cut: int) -> None:
    voucher = vouching(ADA).sign(b"I am ada")
    assert not vouching().verify("ada-id", b"I am ada", voucher[:cut])
    assert not vouching().verify("ada-id", b"I am ada", bytes(cut) + voucher[cut:] if cut else b"\0" + voucher)


def test_a_denied_certificate_vouches_for_nothing_also_when_it_is_known() -> None:
    voucher, denied = vouching(ADA).sign(b"I am ada"), set[int]()
    checking = Vouching(BOB, denied.__contains__)
    assert checking.verify("ada-id", b"I am ada", voucher)
    denied.add(ADA.peer.serial)
    assert not checking.verify("ada-id", b"I am ada", voucher)


def test_a_renewed_certificate_vouches_from_then_on() -> None:
    renewed = ADA.renewed(AUTHORITY.issue(ADA.renewal_request(), "ada-id", "ada", Role.NODE))
    own = vouching(ADA)
    own.renewed(renewed)
    assert vouching(denied=frozenset({ADA.peer.serial})).verify("ada-id", b"I am ada", own.sign(b"I am ada"))
