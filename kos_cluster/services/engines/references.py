"""x"""

from __future__ import annotations

import os
from pathlib import Path

from kos_cluster.home import Home


def run_folder() -> Path | None:
    """Where the node beneath this process has its arena and spool; None: there is no node."""
    node = os.environ.get("KOS_NODE")
    return Home().cluster().run(node) if node else None
