"""Which way a payload takes, by its size. Apart from `net.wire`, whose messages workers do not need to know."""

from __future__ import annotations

BULK_BYTES = 1 << 20  # payloads of this size and more go over the bulk port
