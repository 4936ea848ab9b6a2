"""The choice for all tensors together is the best there is, whatever the costs look like."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pressroom.compress.search._allocating import Choice, allocate, cheapest, useful

_CHOICES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 50)), min_size=1, max_size=4).map(
    lambda found: [Choice(f"f{number}", cost, loss / 8) for number, (cost, loss) in enumerate(found)]
)


@given(st.lists(_CHOICES, min_size=1, max_size=4), st.integers(0, 200))
def test_no_other_choice_within_the_limit_loses_less(tensors: list[list[Choice]], limit: int) -> None:
    named = {f"t{number}": choices for number, choices in enumerate(tensors)}
    within = [
        sum(one.loss for one in every)
        for every in itertools.product(*tensors)
        if sum(one.cost for one in every) <= limit
    ]
    found = allocate(named, limit)
    if not within:
        assert found is None
        return
    assert found is not None
    assert list(found) == list(named)
    assert sum(one.cost for one in found.values()) <= limit
    assert sum(one.loss for one in found.values()) == min(within)


@given(st.lists(_CHOICES, min_size=1, max_size=3), st.integers(0, 20))
def test_no_other_choice_within_the_loss_is_cheaper(tensors: list[list[Choice]], eighths: int) -> None:
    named = {f"t{number}": choices for number, choices in enumerate(tensors)}
    most = eighths / 8
    every = list(itertools.product(*tensors))
    within = [sum(one.cost for one in some) for some in every if sum(one.loss for one in some) <= most]
    found = cheapest(named, most)
    if within:
        assert sum(one.loss for one in found.values()) <= most
        assert sum(one.cost for one in found.values()) == min(within)
    else:
        least = min(sum(one.loss for one in some) for some in every)
        assert sum(one.loss for one in found.values()) == least


def test_costs_without_a_common_measure_are_rounded_up_and_so_keep_to_the_limit() -> None:
    primes = [1_000_003, 2_000_029, 5_000_011, 7_000_003]
    tensors = {
        f"t{number}": [Choice("small", prime, 1.0), Choice("large", 3 * prime + number, 0.0)]
        for number, prime in enumerate(primes)
    }
    limit = sum(primes) + 2 * primes[3] + 100
    found = allocate(tensors, limit)
    assert found is not None
    assert sum(one.cost for one in found.values()) <= limit
    assert sum(one.loss for one in found.values()) == 2.0  # the two of 1 and 2 million beside the one of 5, or so


def test_of_equal_choices_the_same_one_is_taken_every_time() -> None:
    tensors = {f"t{number}": [Choice("a", 1, 1.0), Choice("b", 2, 0.0)] for number in range(6)}
    assert allocate(tensors, 9) == allocate(tensors, 9)


def test_what_costs_more_and_loses_more_is_of_no_use() -> None:
    best, worse, dear = Choice("best", 4, 1.0), Choice("worse", 4, 2.0), Choice("dear", 5, 1.0)
    assert useful([dear, worse, best]) == (best,)
