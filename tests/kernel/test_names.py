"""Which names a cell reads."""

from __future__ import annotations

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from kos_kernel.magics.names import free_names, imported_modules

CASES = {
    "print(x)": "print x",
    "x = 1\nprint(x)": "print",
    "x += 1": "x",
    "x = x + 1": "x",
    "x[0] = y": "x y",
    "x.y = 1": "x",
    "del x": "x",
    "x = 1\ndel x": "",
    "a, (b, *c) = d\na, b, c": "d",
    "for i in r: print(i)\ni": "r print i",
    "while x: x = 0": "x",
    "if c: x = 1\nx": "c x",
    "if c: x = 1\nelse: x = 2\nx": "c",
    "try:\n  x = 1\nexcept E as e: print(e)\nx": "E print x",
    "try:\n  pass\nexcept* E as e: print(e)": "E print",
    "with a as b, c(b): d = 1\nd": "a c d",
    "import os.path, numpy as np\nos, np": "",
    "from m import a as b\na, b": "a",
    "def f(p, q=d):\n  return p + g\nf(1)": "d g",
    "def f():\n  global z\n  z = 1\nf()": "",
    "lambda p: p + o": "o",
    "class A(B):\n  y = z\n  def m(self): return w": "B z w",
    "[i for i in xs if i in ys]": "xs ys",
    "{k: v for k, v in d.items()}": "d",
    "(y := x)\ny": "x y",  # it may stand where it does not run; at worst the name travels needlessly
    "f'{x!r:>{width}}'": "x width",
    "match x:\n  case {'k': v} if v > y: print(v)": "x v y print",
    "x: int = 3\nx": "int",
    "@deco\ndef f(): pass": "deco",
    "await x": "x",
    "async with a as b: await b": "a",
    "for i in r:\n  if c: break\n  else: continue": "r c",
    "!echo {x} $y ${z}": "x y z",
    "files = !ls {folder}": "folder",
    "%time y = f(x)\ny": "y f x",
    "%%time\nz = g(w)": "z g w",
    "%cd $folder": "folder",
    "get_ipython()\nIn, Out, exit, __name__": "",
}


@pytest.mark.parametrize("cell", CASES)
def test_free_names(cell: str) -> None:
    names = free_names(TransformerManager().transform_cell(cell))
    assert sorted(names) == sorted(CASES[cell].split())


def test_a_name_counts_in_the_order_of_reading() -> None:
    assert free_names("b(a)\nc") == ["b", "a", "c"]


def test_a_cell_that_does_not_parse_says_where() -> None:
    with pytest.raises(SyntaxError) as caught:
        free_names("x = 1\ny = = 2")
    assert caught.value.lineno == 2


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n  import i\n"
    assert imported_modules(source) == {"a.b", "c", "e.f", "i"}
