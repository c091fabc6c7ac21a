"""Modules in the place of others that take long to load and are hardly used: they load those when they are.

Ray imports jsonschema, which imports `rfc3987_syntax` for a check of one format where JupyterLab has brought it; that
builds a grammar, for 80 % of the time that importing Ray takes (measured in ADR 035), in each of Ray's processes. What
executes notebooks imports jsonschema, too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_MODULE = "rfc3987_syntax"


def put_here() -> None:
    """In this process."""
    if _MODULE not in sys.modules and importlib.util.find_spec(_MODULE) is not None:
        sys.modules[_MODULE] = importlib.import_module(f"{__name__}.{_MODULE}")


def put_beneath(environ: Mapping[str, str]) -> dict[str, str]:
    """In the processes of this environment: what to add to it."""
    if importlib.util.find_spec(_MODULE) is None:
        return {}
    folders = [str(Path(__file__).parent), environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
