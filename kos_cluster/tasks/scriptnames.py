"""What a script's text says of its names: which ones loading it binds, which may be bound later, and who uses which.

Theory of operation. Loading a script runs what stands at its top, but not what stands under the `__main__` guard. What
its functions use is in their code objects. So all this is read off the syntax tree and the code; nothing is run.

Rules. A name is found whatever its value. Attributes are not names: `x.pool` does not use `pool`.
"""

from __future__ import annotations

import ast
import dis
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_OWN_SCOPE = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class ScriptNames:
    """Of one script."""

    loaded: frozenset[str]  # bound by loading it
    later: frozenset[str]  # bound under the guard, or by a function that declares them global
    uses: Mapping[str, frozenset[str]]  # function or class at the top -> the global names in its code
    set_later: frozenset[tuple[str, str]]  # NAME.ATTRIBUTE that some statement binds
    stars: bool = False  # a `from module import *` has bound others

    @property
    def used(self) -> frozenset[str]:
        """What functions and classes use."""
        return frozenset().union(*self.uses.values())

    def comes_by_loading(self, name: str) -> bool:
        """Whether loading the script binds this name, and nothing else does."""
        return name not in self.later and (name in self.loaded or self.stars)

    def reached(self, roots: Iterable[str]) -> frozenset[str]:
        """These names, and what the functions and classes among them use, and so on."""
        found: set[str] = set()
        waiting = list(roots)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.uses.get(name, ())
        return frozenset(found)


def read(source: bytes, path: str) -> ScriptNames:
    """What this script says. Raises SyntaxError."""
    tree = ast.parse(source, path)
    binder = _Binder()
    binder.visit(tree)
    uses = _uses(compile(tree, path, "exec", dont_inherit=True))
    return ScriptNames(
        frozenset(binder.loaded), frozenset(binder.later), uses, frozenset(binder.attributes), binder.stars
    )


@dataclass
class _Binder(ast.NodeVisitor):
    """Goes through the statements at the top; in functions it looks only for what they bind outside of themselves."""

    loaded: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    attributes: set[tuple[str, str]] = field(default_factory=set)
    stars: bool = False
    _guarded: bool = False

    def visit(self, node: ast.AST) -> None:
        match node:
            case ast.If(test=test, body=body, orelse=others) if _is_guard(test):
                turned = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.NotEq)
                self._run(body, guarded=not turned)
                self._run(others, guarded=turned)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._bind(node.name)
                self._look_into(node)
            case ast.Import() | ast.ImportFrom():
                self._imported(node)
            case ast.Name(id=name, ctx=ast.Store()):
                self._bind(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                self._bind(name)
                self.generic_visit(node)
            case _ if isinstance(node, _OWN_SCOPE):
                self._look_into(node)
            case _:
                self._note_attribute(node)
                self.generic_visit(node)

    def _run(self, statements: list[ast.stmt], *, guarded: bool) -> None:
        before, self._guarded = self._guarded, guarded or self._guarded
        for statement in statements:
            self.visit(statement)
        self._guarded = before

    def _bind(self, name: str) -> None:
        (self.later if self._guarded else self.loaded).add(name)

    def _imported(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self.stars = True
            else:
                self._bind(alias.asname or alias.name.partition(".")[0])

    def _look_into(self, node: ast.AST) -> None:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Global):
                self.later.update(inner.names)
            elif isinstance(inner, ast.NamedExpr) and isinstance(node, _OWN_SCOPE):
                self._bind(inner.target.id)  # of a comprehension it is bound around it
            self._note_attribute(inner)

    def _note_attribute(self, node: ast.AST) -> None:
        match node:
            case ast.Attribute(value=ast.Name(id=root), attr=attribute, ctx=ast.Store()):
                self.attributes.add((root, attribute))


def _is_guard(test: ast.expr) -> bool:
    """Whether a condition asks for the name of the module, whatever else it asks for."""
    return any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(test))


def _uses(module: types.CodeType) -> dict[str, frozenset[str]]:
    """By function and class that stands at the top; lambdas there are one together."""
    uses: dict[str, frozenset[str]] = {}
    for code in _inner(module):
        uses[code.co_name] = uses.get(code.co_name, frozenset()) | _named_in(code)
    return uses


def _named_in(code: types.CodeType) -> frozenset[str]:
    own = {str(step.argval) for step in dis.get_instructions(code) if _is_global(step.opname)}
    return frozenset(own).union(*map(_named_in, _inner(code)))


def _is_global(opname: str) -> bool:
    """Whether an instruction looks a name up where globals are (the names of these differ between versions)."""
    return opname.startswith("LOAD_") and ("GLOBAL" in opname or "NAME" in opname)


def _inner(code: types.CodeType) -> list[types.CodeType]:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]
