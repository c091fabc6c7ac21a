"""The widget's one ES module, put together from the files in `static` as they are.

Theory of operation. Each file is an ES module of its own with one `export default`, so that editors and browsers
understand it. Here each becomes a function that is called once, and imports become the names of what these gave; so
there is no build step, and no address that a browser would have to load from. A pane is one file more, in `PANES`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from kos_kernel.dashboard.panes import PANES

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r"^import .*$\n?", re.MULTILINE)
_EXPORT = re.compile(r"^export default ", re.MULTILINE)


@cache
def source() -> str:
    """The module's text."""
    names = [f"{pane.NAME}Pane" for pane in PANES]
    parts = [_called("kit", "kit.js")]
    parts += [_called(name, f"panes/{pane.NAME}.js") for name, pane in zip(names, PANES, strict=True)]
    parts.append(f"const panes = [{', '.join(names)}];\n")
    parts.append(_IMPORT.sub("", _text("monitor.js")))
    return "\n".join(parts)


@cache
def style() -> str:
    """The style sheet's text."""
    return _text("monitor.css")


def _called(name: str, file: str) -> str:
    body, exports = _EXPORT.subn("return ", _IMPORT.sub("", _text(file)))
    if exports != 1:
        raise ValueError(f"{file} has {exports} default exports instead of one")
    return f"const {name} = (() => {{\n{body}}})();\n"


def _text(file: str) -> str:
    return (STATIC / file).read_text(encoding="utf-8")
