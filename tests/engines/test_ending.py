"""The end of an engine's certificates, with a life of seconds: the real Dask, without a cluster."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kos_cluster.errors import AuthError
from kos_cluster.net import engineauthority
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.engineauthority import ends_s, make_request
from kos_cluster.services.engines.dask import ENGINE
from kos_cluster.services.engines.engine import Credentials, Place
from tests.mesh.conftest import until

HOST = "127.0.0.1"
LIFETIME_S = 4.0
CLUSTER = CertificateAuthority.create("lab")


def keys() -> Credentials:
    key_pem, request_pem = make_request()
    authority = CLUSTER.of_engine("e")
    certificate_pem = authority.issue(request_pem, HOST, "ada@desk")
    return Credentials(authority.certificate_pem.decode(), certificate_pem.decode(), key_pem.decode(), authority.secret)


def test_links_that_are_open_go_on_and_new_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting = keys()
    monkeypatch.setattr(engineauthority, "LIFETIME_S", LIFETIME_S)
    short = keys()
    until_s = ends_s(short.certificate)
    assert until_s - time.time() <= LIFETIME_S
    head = ENGINE.head(Place("e", HOST, 1, 0, str(tmp_path), short))
    before = ENGINE.connect(head.address, lasting)
    assert before.standing().workers == []
    until(lambda: time.time() > until_s, "the end is there")
    with pytest.raises(AuthError, match="or a certificate has ended: see 'kos engine list'"):
        ENGINE.connect(head.address, lasting)
    assert before.standing().workers == []
    before.close()
    stop = threading.Event()
    stop.set()
    with suppress(TimeoutError):  # of a busy machine: it closes later
        head.serve(stop)
