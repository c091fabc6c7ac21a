"""What some tests need of the machine: without it they are skipped, and fail where everything must be there.

`REQUIRE_SYSTEM_PACKAGES=1`, as `.ci/run` sets it, asks for that of root, who has had the packages installed. It does
not begin with KOS_: tests forget such variables.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRE = "REQUIRE_SYSTEM_PACKAGES"


def missing(what: str) -> NoReturn:
    """End the test, since the machine lacks something that `make test` installs as root, or lets root do."""
    if os.environ.get(REQUIRE) == "1" and _is_root():
        pytest.fail(f"{what}, and {REQUIRE}=1 asks for it", pytrace=False)
    pytest.skip(what)


def _is_root() -> bool:
    return os.geteuid() == 0
