"""The network: wire format, CURVE transport, TLS streams, discovery and identity. Imports `core` only."""
