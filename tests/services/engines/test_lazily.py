"""A module that is put in the place of another, until that is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kos_cluster.services.engines import lazily

pytest.importorskip("rfc3987_syntax")

USES = """
import sys
import jsonschema
assert "rfc3987_syntax.syntax_helpers" not in sys.modules, "loaded at once"
check = jsonschema.FormatChecker()
check.check("http://example.org/\\u00e9", "iri")
try:
    check.check("no <iri>", "iri")
except jsonschema.FormatError:
    pass
else:
    raise AssertionError("not checked")
assert "rfc3987_syntax.syntax_helpers" in sys.modules
import rfc3987_syntax
assert rfc3987_syntax.__name__ == "rfc3987_syntax" and "lazily" not in rfc3987_syntax.__file__
"""


def test_it_is_loaded_when_it_is_used_and_is_the_real_one() -> None:
    environ = os.environ | lazily.put_beneath(os.environ)
    subprocess.run([sys.executable, "-c", USES], env=environ, check=True)
