"""One look-up: asks the closest first, few at once, believes no address, and ends."""

from __future__ import annotations

from kos_cluster.core.buckets import BUCKET_SIZE, Contact, key_of
from kos_cluster.core.lookup import ADDRESSES_LIMIT, PARALLEL, QUESTIONS_LIMIT, LookUp


def contact(number: int, port: int = 7567) -> Contact:
    return Contact(f"n{number}", "host", port)


def by_distance(contacts: list[Contact], key: int) -> list[Contact]:
    return sorted(contacts, key=lambda one: key_of(one.id) ^ key)


def test_the_closest_are_asked_first_and_few_at_once():
    seeds = [contact(number) for number in range(10)]
    lookup = LookUp(7, seeds)
    order = by_distance(seeds, 7)
    assert lookup.next() == order[:PARALLEL] and lookup.next() == []
    lookup.answered(order[1], [])
    assert lookup.next() == [order[PARALLEL]]


def test_it_ends_when_the_closest_have_all_answered():
    seeds = [contact(number) for number in range(BUCKET_SIZE + 5)]
    lookup = LookUp(7, seeds)
    asked = 0
    while questions := lookup.next():
        for question in questions:
            asked += 1
            lookup.answered(question, [])
    assert lookup.done and asked == BUCKET_SIZE
    assert lookup.closest() == tuple(by_distance(seeds, 7)[:BUCKET_SIZE])


def test_who_fails_makes_room_for_the_next_closest():
    seeds = [contact(number) for number in range(BUCKET_SIZE + 2)]
    order = by_distance(seeds, 7)
    lookup = LookUp(7, seeds)
    while questions := lookup.next():
        for question in questions:
            if question in order[:2]:
                lookup.failed(question.id)
            else:
                lookup.answered(question, [])
    assert lookup.done and lookup.closest() == tuple(order[2:])


def test_it_ends_as_soon_as_its_target_answers_and_tells_the_way():
    lookup = LookUp(key_of("n9"), [contact(1)], "n9")
    assert lookup.next() == [contact(1)]
    lookup.answered(contact(1), [contact(2), contact(9)])
    assert lookup.next() == [contact(9), contact(2)] and lookup.found is None
    proved = contact(9, port=99)  # the link says where it really is
    lookup.answered(proved, [contact(3)])
    assert lookup.done and lookup.found == proved and lookup.hops == 2 and lookup.next() == []
    assert lookup.closest() == (proved, contact(1))


def test_of_a_liar_s_address_the_next_one_is_tried():
    lookup = LookUp(key_of("n9"), [contact(1), contact(2)], "n9")
    lookup.next()
    lookup.answered(contact(1), [contact(9, port=66)])
    assert lookup.next() == [contact(9, port=66)]
    lookup.answered(contact(2), [contact(9)])
    assert lookup.next() == []
    lookup.failed("n9")
    assert lookup.next() == [contact(9)]


def test_a_contact_that_failed_is_asked_again_at_an_address_that_is_new():
    lookup = LookUp(7, [contact(1), contact(2)])
    lookup.next()
    lookup.failed("n1")
    lookup.answered(contact(2), [contact(1)])
    assert lookup.next() == [] and lookup.done
    again = LookUp(7, [contact(1), contact(2)])
    again.next()
    again.failed("n1")
    again.answered(contact(2), [contact(1, port=9)])
    assert again.next() == [contact(1, port=9)]


def test_the_addresses_of_one_contact_are_bounded():
    lookup = LookUp(7, [contact(1, port) for port in range(1, 50)])
    tried = 0
    while questions := lookup.next():
        tried += len(questions)
        lookup.failed("n1")
    assert lookup.done and tried == ADDRESSES_LIMIT


def test_the_questions_are_bounded_whatever_the_answers():
    lookup = LookUp(0, [contact(0)])
    made_up = 0
    while questions := lookup.next():
        for question in questions:
            closer = by_distance([contact(made_up + number) for number in range(1, 200)], 0)[:BUCKET_SIZE]
            made_up += 200
            lookup.answered(question, closer)
    assert lookup.done and lookup.questions <= QUESTIONS_LIMIT
    failing = LookUp(0, [contact(number) for number in range(1000)])
    while questions := failing.next():
        for question in questions:
            failing.failed(question.id)
    assert failing.done and failing.questions == QUESTIONS_LIMIT and failing.closest() == ()


def test_without_contacts_it_has_ended():
    lookup = LookUp(7, [], "n9")
    assert lookup.done and lookup.next() == [] and lookup.found is None and lookup.hops == 0
