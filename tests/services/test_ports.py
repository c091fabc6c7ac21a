"""Free ports, and which address is ours."""

import socket

import pytest

from kos_cluster.errors import PortTakenError, StateError
from kos_cluster.node.machine import primary_address
from kos_cluster.services.ports import LOOPBACK, bound, check_free, free_pairs


def test_pairs_are_free_adjacent_and_apart() -> None:
    pairs = free_pairs(8)
    assert len({port for pair in pairs for port in (pair, pair + 1)}) == 16
    for port in pairs:
        check_free(LOOPBACK, port)


@pytest.mark.parametrize("offset", [0, 1])
def test_a_taken_port_is_named_with_what_to_type(offset: int) -> None:
    (port,) = free_pairs(1)
    with bound(LOOPBACK, port + offset), pytest.raises(PortTakenError) as caught:
        check_free(LOOPBACK, port)
    assert str(port + offset) in caught.value.message
    assert "--listen" in caught.value.hint


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StateError, match=r"192\.0\.2\.77 is not an address of this machine"):
        check_free("192.0.2.77", 7567)


def test_the_primary_address_can_be_listened_on() -> None:
    with socket.socket() as listening:
        listening.bind((primary_address(), 0))
