"""Look-ups while nodes die, come back, join and move: whoever is alive is found, where it is."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core.buckets import BUCKET_SIZE
from kos_cluster.core.kademlia import REFRESH_S, Seen
from tests.core.kademlia_network import Network

NODES = 60
STEPS = 25


@settings(max_examples=15, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_under_churn_every_node_that_stays_is_found_and_tables_stay_bounded(seed: int):
    """In each step a node dies, joins or comes back; a quarter may be dead at once."""
    network = Network(NODES, seed)
    rng = network.rng
    waiting = network.contacts[NODES // 2 :]
    joined = network.contacts[: NODES // 2]
    for number, one in enumerate(joined[1:], 1):
        network.join(one.id, joined[rng.randrange(number)])
    for step in range(STEPS):
        alive = [one for one in joined if one.id not in network.dead]
        match rng.choice(["die", "join", "return"]):
            case "die" if len(network.dead) < len(joined) // 4:
                network.dead.add(rng.choice(alive).id)
            case "join" if waiting:
                joined.append(waiting.pop())
                network.join(joined[-1].id, rng.choice(alive))
            case "return" if network.dead:
                back = rng.choice(sorted(network.dead))
                network.dead.remove(back)
                network.refresh([back], ticks=3)
        alive = [one for one in joined if one.id not in network.dead]
        seeker, target = rng.choice(alive), rng.choice(alive)
        done = network.look_up(seeker.id, target.id)
        assert done.found == target, f"seed {seed}, step {step}: {seeker.id} looked for {target.id}"
    for id_, node in network.machines.items():
        assert node.contacts() <= BUCKET_SIZE * 6, f"seed {seed}: {id_}"


@settings(max_examples=5, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_node_cut_off_for_hours_finds_its_way_back(seed: int):
    """Everyone is silent to it at three refreshes; one member that it hears of again is enough."""
    network = Network(20, seed)
    network.grow()
    lost = network.contacts[7]
    others = [one.id for one in network.contacts if one != lost]
    network.dead = set(others)
    for hour in range(3):
        network.now = max(network.now, REFRESH_S * (hour + 1))
        for _ in range(60):
            network.tick()
            network.run_until(network.now + 1.0)
    network.dead = set()
    assert network.machines[lost.id].contacts() == 0
    network.machines[lost.id].handle(Seen(network.contacts[0]), network.now)
    for other in others:
        assert network.look_up(lost.id, other).found is not None, f"seed {seed}: {other}"


@settings(max_examples=10, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_node_that_moved_is_found_at_its_new_address(seed: int):
    """It comes back elsewhere, and another node has its old address."""
    network = Network(30, seed)
    network.grow()
    one, other = network.rng.sample(network.contacts, 2)
    network.move(one.id, msgspec.structs.replace(one, port=7600))
    network.move(other.id, msgspec.structs.replace(other, host=one.host, port=one.port))
    for moved in (one, other):
        network.refresh([moved.id], ticks=3)
        network.machines[moved.id].handle(Seen(network.contacts[0]), network.now)
    for seeker in network.contacts:
        for target in (one, other):
            if seeker != target:
                done = network.look_up(seeker.id, target.id)
                assert done.found == network.contact_of(target.id), f"seed {seed}: {seeker.id} looked for {target.id}"
