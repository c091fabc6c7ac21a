"""When a certificate is due to be renewed."""

from __future__ import annotations

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import load_certificate
from kos_cluster.node.rotating import EARLIEST, LATEST, is_due

DAY_S = 86400.0


@pytest.mark.parametrize("share", [EARLIEST, LATEST])
def test_it_is_due_after_its_share_of_the_certificates_life(share: float) -> None:
    credentials = CertificateAuthority.create("lab").local("x", "x", Role.NODE, lifetime_s=100 * DAY_S)
    begin = load_certificate(credentials.cert_pem).not_valid_before_utc.timestamp()
    assert not is_due(credentials, share, begin + (share * 100 - 1) * DAY_S)
    assert is_due(credentials, share, begin + (share * 100 + 1) * DAY_S)


def test_the_share_lies_between_half_and_four_fifths() -> None:
    assert (EARLIEST, LATEST) == (0.5, 0.8)
