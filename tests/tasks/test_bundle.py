"""A detached job's work as one part: what goes in comes out, within bounds."""

from __future__ import annotations

import msgspec
import pytest

from kos_cluster.core.replicated.jobs import RESULTS_LIMIT
from kos_cluster.errors import LimitError, ProtocolError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.tasks import bundle
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.job import JobSpec
from kos_cluster.tasks.options import Options

SPEC = JobSpec(
    fn=b"function",
    environment=Environment(workspace="w", threads=2),
    parts={"w": b"archive"},
    options=Options(cpus=2, memory="1G", retries=0, env={"A": "b"}, seed=7, max_parallel=3),
    name="work",
    modules=("numpy",),
)


def test_the_work_comes_out_as_it_went_in():
    spec, payloads = bundle.unpack(bundle.pack(SPEC, [b"one", b"two"]))
    assert (spec, payloads) == (SPEC, [b"one", b"two"])


def test_equal_work_makes_an_equal_bundle():
    assert bundle.pack(SPEC, [b"one"]) == bundle.pack(SPEC, [b"one"])


def test_too_much_or_nothing_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="at least one task"):
        bundle.pack(SPEC, [])
    with pytest.raises(LimitError, match="at most 16,384 tasks"):
        bundle.pack(SPEC, [b"x"] * (RESULTS_LIMIT + 1))
    monkeypatch.setattr(bundle, "BUNDLE_LIMIT_BYTES", 1000)
    with pytest.raises(LimitError, match="the limit is 1000 B"):
        bundle.pack(SPEC, [b"x" * 1000])


@pytest.mark.parametrize("data", [b"", b"\xff", msgspec.msgpack.encode({"fn": b""})])
def test_damaged_work_is_refused(data: bytes):
    with pytest.raises(ProtocolError, match="cannot be read here"):
        bundle.unpack(data)


def test_work_with_an_option_of_a_later_version_is_refused():
    packed = msgspec.msgpack.decode(bundle.pack(SPEC, [b"x"]))
    packed["options"]["novel"] = 1
    with pytest.raises(ProtocolError, match="version"):
        bundle.unpack(msgspec.msgpack.encode(packed))


@pytest.mark.parametrize("failed", [False, True])
def test_an_outcome_comes_out_as_it_went_in(failed: bool):
    kept = bundle.unpack_outcomes(bundle.pack_outcomes({3: bundle.pack_outcome(Outcome(b"pickle", failed))}))
    outcome = bundle.unpack_outcome(kept[3])
    assert (bytes(outcome.payload), outcome.failed) == (b"pickle", failed)


def test_damaged_results_are_refused():
    with pytest.raises(ProtocolError):
        bundle.unpack_outcomes(b"\xff")
