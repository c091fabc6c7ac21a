"""Imported by a node's idle fork server, so that a cell finds IPython loaded and a shell made in its worker."""

from __future__ import annotations

from kos_kernel.magics import running as running  # loaded for the workers
from kos_kernel.magics import shell

shell.keep_one()
