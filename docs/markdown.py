"""Markdown that is made from values: tables, and the parts of a document that are replaced by them."""

from __future__ import annotations


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def replaced(text: str, name: str, content: str) -> str:
    """A document with one of its parts made anew. Raises ValueError when it has no such part."""
    begin, end = f"<!-- begin {name} -->\n", f"\n<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the document has no part {name!r}")
    return before + begin + content + end + after
