"""Whether `%kos nodes` stands alone, and shows its listing, or is assigned, and does not.

Theory of operation. IPython turns the line `%kos nodes` into a call of `run_line_magic`, which gives the listing. As
the last expression of a cell it would be shown with a number, as a result; on any line before, not at all. So the
call, where it is a statement of its own, is wrapped in one of `listings.show`, which displays it there and then.

Rules: nothing but such statements is touched. A semicolon at the end of the cell silences nothing, as with `print`.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_SHOWN = "__import__('kos_kernel.listings', fromlist=['show']).show(0)"


class Statements(ast.NodeTransformer):
    """Wraps the magic named `magic` where it stands alone."""

    def __init__(self, magic: str) -> None:
        self._magic = magic

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if _is_call_of(node.value, self._magic):
            shown = ast.parse(_SHOWN, mode="eval").body
            assert isinstance(shown, ast.Call)
            for part in ast.walk(shown):
                ast.copy_location(part, node.value)
            shown.args = [node.value]
            node.value = shown
        return node


def register(shell: InteractiveShell, magic: str) -> None:
    shell.ast_transformers.append(Statements(magic))


def unregister(shell: InteractiveShell) -> None:
    shell.ast_transformers[:] = [each for each in shell.ast_transformers if not isinstance(each, Statements)]


def _is_call_of(node: ast.expr, magic: str) -> bool:
    """Whether this is `get_ipython().run_line_magic(magic, ...)`."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr="run_line_magic")):
            return bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == magic
    return False
