"""`rfc3987_syntax`, loaded when it is first used. On a path of its own this module bears that name: see `lazily`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

_MODULE = "rfc3987_syntax"


def is_valid_syntax(*args: Any, **keywords: Any) -> Any:
    """What jsonschema takes from it."""
    return _real().is_valid_syntax(*args, **keywords)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(_real(), name)


def _real() -> Any:
    here = str(Path(__file__).parent)
    if sys.modules.get(_MODULE) is not None and sys.modules[_MODULE].__file__ == __file__:
        del sys.modules[_MODULE]
    sys.path[:] = [folder for folder in sys.path if folder != here]
    return importlib.import_module(_MODULE)
