"""Small HTML for notebooks: a table, a line.

Rules: every text is escaped, for it may come from another machine. No script, no style sheet, no address; colours are
the notebook's own, so that light and dark both work.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = (), caption: str = "") -> str:
    """A table; the columns at the places in `right` hold numbers."""
    style = [f"text-align:{'right' if place in right else 'left'}" for place in range(len(heads))]
    head = "".join(f'<th style="{how}">{html.escape(text)}</th>' for how, text in zip(style, heads, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, style, row))}</tr>" for row in rows)
    above = f'<caption style="text-align:left">{html.escape(caption)}</caption>' if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def lines(texts: Iterable[str]) -> str:
    """Sentences, a line each."""
    return f"<div>{'<br>'.join(map(html.escape, texts))}</div>"


def _cell(style: str, text: str) -> str:
    return f'<td style="{style}">{html.escape(text)}</td>'
