"""When a certificate is due to be renewed, and that it is then."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from kos_cluster.core.replicated import commands
from kos_cluster.core.roles import Role
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials, load_certificate
from kos_cluster.node import rotating
from kos_cluster.node.certifying import Certifier, certificate_of, seals
from kos_cluster.node.rotating import EARLIEST, LATEST, Rotation, is_due
from tests.net.conftest import Alone, OneMember

DAY_S = 86400.0


@pytest.mark.parametrize("share", [EARLIEST, LATEST])
def test_it_is_due_after_its_share_of_the_certificates_life(share: float) -> None:
    credentials = CertificateAuthority.create("lab").local("x", "x", Role.NODE, lifetime_s=100 * DAY_S)
    begin = load_certificate(credentials.cert_pem).not_valid_before_utc.timestamp()
    assert not is_due(credentials, share, begin + (share * 100 - 1) * DAY_S)
    assert is_due(credentials, share, begin + (share * 100 + 1) * DAY_S)


def test_the_share_lies_between_half_and_four_fifths() -> None:
    assert (EARLIEST, LATEST) == (0.5, 0.8)


def test_a_node_renews_by_itself_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys stay, the new certificate is on the disk, and the old one is denied once the new one is in use."""
    authority = CertificateAuthority.create("lab")
    old = authority.local("n1", "desk", Role.NODE, lifetime_s=30)  # of 330 s, 300 have passed
    agreed = Alone(old)
    agreed.leads = True  # type: ignore[attr-defined]
    certifier = Certifier(old, agreed, OneMember())  # type: ignore[arg-type]
    used: list[Credentials] = []
    looks: list[float] = []

    async def look_on(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise asyncio.CancelledError

    async def scene() -> None:
        await agreed.propose(commands.FoundCluster("lab", authority.certificate_pem, (certificate_of(old),)))
        await agreed.propose(seals(authority, {"n1": old.curve_public}))
        control = SimpleNamespace(consensus=agreed, certifier=certifier)
        rotation = Rotation(old, tmp_path, control, used.append)  # type: ignore[arg-type]
        monkeypatch.setattr(rotating, "asyncio", SimpleNamespace(sleep=look_on))  # this module's, no other loop's
        with suppress(asyncio.CancelledError):
            await rotation.run()

    asyncio.run(scene())
    (new,) = used  # once: the second look finds nothing to do
    assert new.peer.serial != old.peer.serial and new.curve_public == old.curve_public
    assert new.peer.not_after > time.time() + 360 * DAY_S
    assert Credentials.load(tmp_path).peer == new.peer
    assert agreed.state.identities.denied(old.peer.serial) is not None
    assert agreed.state.identities.denied(new.peer.serial) is None
