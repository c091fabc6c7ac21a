"""What counts as a word of another node, before this one may hold itself to be removed."""

from __future__ import annotations

import zmq

from kos_cluster.core.roles import Role
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.transport import Origin
from kos_cluster.node.peers import Peers


def test_a_hello_is_no_word_and_what_is_said_to_this_node_is() -> None:
    """One that is alone greets every address of its list, also where one starts again that it has removed."""
    authority = CertificateAuthority.create("lab")
    own, other = authority.local("n1", "desk", Role.NODE), authority.local("n2", "rack", Role.NODE)
    peers = Peers(None, own, None, None, lambda serial: False, None)
    origin = Origin(other.peer, b"route", zmq.Frame())
    peers.greeted(origin)
    assert not peers.met
    peers.came(origin)
    assert peers.met
