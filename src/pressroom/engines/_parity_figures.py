"""How far one distribution is from another when only their likeliest tokens are known."""

from __future__ import annotations

import math
from collections.abc import Mapping


def divergence(reference: Mapping[int, float], other: Mapping[int, float]) -> float:
    """A lower bound of the Kullback-Leibler divergence D(reference ‖ other) in nats.

    Both are natural logarithms of the probabilities of the likeliest tokens, in full precision but not of all tokens.
    The vocabulary is cut into the tokens that both name, those that only `other` names, and all the rest. To put
    outcomes together never makes two distributions more different (the data processing inequality: Cover and Thomas,
    Elements of Information Theory, 2nd edition, theorem 2.8.1 and the log sum inequality, 2.7.1), so the divergence
    over these parts is at most the true one. What the reference gives to the tokens that only `other` names is not
    known; of what is possible, that which makes the bound smallest is taken.
    """
    assert reference and other
    shared = reference.keys() & other.keys()
    bound = sum(math.exp(reference[token]) * (reference[token] - other[token]) for token in shared)
    left = max(0.0, 1.0 - math.fsum(math.exp(reference[token]) for token in shared))
    alone = [token for token in other if token not in reference]
    there = math.fsum(math.exp(other[token]) for token in alone)
    rest = max(0.0, 1.0 - math.fsum(math.exp(logprob) for logprob in other.values()))
    # Each of them is at most as likely as the least likely that the reference names, and all together no more than
    # what it leaves over.
    unnamed = max(0.0, 1.0 - math.fsum(math.exp(logprob) for logprob in reference.values()))
    most = min(left, unnamed, len(alone) * math.exp(min(reference.values())))
    # D is smallest where both parts are changed by one factor.
    given = min(left * there / (there + rest), most) if there + rest > 0 else 0.0
    return max(0.0, bound + _part(given, there) + _part(left - given, rest))


# What is left of one after a sum of thousands of rounded probabilities is known to this much.
_ROUNDING = 1e-6


def _part(p: float, q: float) -> float:
    # A larger q makes the term smaller, so the bound stays one. Where p is small the term is, and mostly below zero.
    return p * math.log(p / max(q, _ROUNDING)) if p > 0 else 0.0


def same_first(reference: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether both find the same token likeliest."""
    return likeliest(reference) == likeliest(other)


def likeliest(found: Mapping[int, float]) -> int:
    """The token with the highest probability; of equal ones the one with the lowest number."""
    return min(found, key=lambda token: (-found[token], token))


def largest_difference(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """The most that the probability of a token that both name differs; 1 where they name none in common."""
    shared = one.keys() & other.keys()
    return max((abs(math.exp(one[token]) - math.exp(other[token])) for token in shared), default=1.0)
