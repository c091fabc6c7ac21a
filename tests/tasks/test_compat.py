"""Which payloads another machine can read."""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Versions
from kos_cluster.tasks.compat import installing, needed, unreadable

OURS = Versions(kos="0.1", wire=1, python="3.11.7", numpy="2.1.0", cloudpickle="3.1.2")


def theirs(**versions: str) -> Versions:
    return msgspec.structs.replace(OURS, **versions)


def test_equal_majors_read_each_other():
    assert unreadable(OURS, theirs(numpy="2.4.6", cloudpickle="3.0.0")) == {}


def test_another_numpy_major_cannot_read_arrays():
    assert unreadable(OURS, theirs(numpy="1.26.4")) == {"numpy": "it has numpy 1.26.4, this side 2.1.0"}
    assert "not installed" in unreadable(OURS, theirs(numpy=""))["numpy"]


def test_another_cloudpickle_major_can_read_nothing():
    assert unreadable(OURS, theirs(cloudpickle="2.2.1")) == {"": "it has cloudpickle 2.2.1, this side 3.1.2"}


def test_without_numpy_here_arrays_are_no_concern():
    assert unreadable(msgspec.structs.replace(OURS, numpy=""), theirs(numpy="1.26.4")) == {}


def test_arguments_that_name_numpy_need_it():
    assert needed(("pandas",), [b"plain", b"... numpy._core.multiarray ..."]) == ("pandas", "numpy")
    assert needed(("numpy",), [b"numpy"]) == ("numpy",)
    assert needed(("pandas",), [b"plain"]) == ("pandas",)


def test_what_to_install_there_is_what_is_here():
    assert installing(OURS) == "pip install cloudpickle==3.1.2 numpy==2.1.0"
    assert installing(msgspec.structs.replace(OURS, numpy="")) == "pip install cloudpickle==3.1.2"
