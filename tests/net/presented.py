"""Presenting a certificate, for tests without an event loop of their own."""

from __future__ import annotations

import asyncio

from kos_cluster.net import presenting
from kos_cluster.net.identity import Credentials, Peer


def present(host: str, port: int, credentials: Credentials) -> Peer:
    return asyncio.run(presenting.present(host, port, credentials))
