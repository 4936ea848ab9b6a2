"""The table `[cache]` of a deployment's file."""

from __future__ import annotations

from typing import Any

import pytest

from pressroom.gateway.cache import CachePolicy, MeaningPolicy, directives
from pressroom.kernel import DeployError


def test_nothing_said_keeps_nothing() -> None:
    assert CachePolicy.parse({}) == CachePolicy()
    assert not CachePolicy().exact


def test_everything_said() -> None:
    table = {
        "exact": True,
        "ttl_s": 60,
        "temperature_above_0": True,
        "across_keys": "team",
        "max_bytes": 1_000_000,
        "meaning": {
            "deployment": "minilm",
            "threshold": 0.95,
            "same_words": False,
            "max_entries": 50,
            "timeout_s": 0.5,
        },
    }
    policy = CachePolicy.parse(table)
    assert policy.as_dict() == table
    assert policy.meaning == MeaningPolicy(
        deployment="minilm", threshold=0.95, same_words=False, max_entries=50, timeout_s=0.5
    )


@pytest.mark.parametrize(
    "table",
    [{}, {"exact": False}, {"exact": True, "across_keys": True}, {"meaning": {"deployment": "e"}}],
)
def test_as_dict_reads_back(table: dict[str, Any]) -> None:
    policy = CachePolicy.parse(table)
    assert CachePolicy.parse(policy.as_dict()) == policy


def test_by_meaning_is_equal_too() -> None:
    assert CachePolicy.parse({"meaning": {"deployment": "e"}}).exact


def test_free_words_need_nearer_vectors() -> None:
    strict = CachePolicy.parse({"meaning": {"deployment": "e"}}).meaning
    free = CachePolicy.parse({"meaning": {"deployment": "e", "same_words": False}}).meaning
    own = CachePolicy.parse({"meaning": {"deployment": "e", "same_words": False, "threshold": 0.8}}).meaning
    assert strict and free and own and strict.threshold < free.threshold and own.threshold == 0.8


@pytest.mark.parametrize(
    ("table", "place", "says"),
    [
        ({"exakt": True}, "cache.exakt", "Did you mean exact"),
        ({"exact": True, "zzz": 1}, "cache.zzz", "There are: exact"),
        ({"exact": "yes"}, "cache.exact", "true or false"),
        ({"exact": 1}, "cache.exact", "true or false"),
        ({"exact": True, "ttl_s": 0}, "cache.ttl_s", "seconds"),
        ({"exact": True, "ttl_s": -1}, "cache.ttl_s", "seconds"),
        ({"exact": True, "ttl_s": float("nan")}, "cache.ttl_s", "seconds"),
        ({"exact": True, "ttl_s": float("inf")}, "cache.ttl_s", "seconds"),
        ({"exact": True, "ttl_s": True}, "cache.ttl_s", "seconds"),
        ({"exact": True, "ttl_s": "1h"}, "cache.ttl_s", "seconds"),
        ({"exact": True, "max_bytes": 10}, "cache.max_bytes", "bytes"),
        ({"exact": True, "max_bytes": 1e9}, "cache.max_bytes", "whole number"),
        ({"exact": True, "across_keys": "teams"}, "cache.across_keys", '"team"'),
        ({"exact": True, "across_keys": 1}, "cache.across_keys", '"team"'),
        ({"ttl_s": 60}, "cache.exact", "exact = true"),
        ({"exact": False, "meaning": {"deployment": "e"}}, "cache.exact", "leave exact out"),
        ({"meaning": {}}, "cache.meaning.deployment", "NAME"),
        ({"meaning": {"deployment": 3}}, "cache.meaning.deployment", "embeddings deployment"),
        ({"meaning": {"deployment": " "}}, "cache.meaning.deployment", "embeddings deployment"),
        ({"meaning": "minilm"}, "cache.meaning", "[cache.meaning]"),
        ({"meaning": {"deployment": "e", "treshold": 1}}, "cache.meaning.treshold", "threshold"),
        ({"meaning": {"deployment": "e", "threshold": 95}}, "cache.meaning.threshold", "cosine"),
        ({"meaning": {"deployment": "e", "threshold": 0.1}}, "cache.meaning.threshold", "cosine"),
        ({"meaning": {"deployment": "e", "max_entries": 0}}, "cache.meaning.max_entries", "answers"),
        ({"meaning": {"deployment": "e", "timeout_s": 0}}, "cache.meaning.timeout_s", "seconds"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], place: str, says: str) -> None:
    with pytest.raises(DeployError) as caught:
        CachePolicy.parse(table)
    assert place in caught.value.message or place == caught.value.facts["setting"]
    assert caught.value.facts["setting"] == place
    assert says in caught.value.hint


def test_the_place_is_the_callers() -> None:
    with pytest.raises(DeployError, match=r"chat\.toml: cache\.ttl_s is 0"):
        CachePolicy.parse({"exact": True, "ttl_s": 0}, place="chat.toml: cache")


@pytest.mark.parametrize("value", [None, [], "on", 3])
def test_a_table_is_a_table(value: Any) -> None:
    with pytest.raises(DeployError, match="not a table"):
        CachePolicy.parse(value)


@pytest.mark.parametrize(
    ("header", "fresh", "kept_out"),
    [
        (b"", False, False),
        (b"no-cache", True, False),
        (b"No-Cache", True, False),
        (b"no-store", False, True),
        (b" no-cache , no-store ", True, True),
        (b"max-age=0", True, False),
        (b"max-age=60", False, False),
        (b"private, max-age=00", False, False),
        (b"no-cache-please", False, False),
        (b"\xff,,=,", False, False),
    ],
)
def test_what_a_client_may_ask_for(header: bytes, fresh: bool, kept_out: bool) -> None:
    assert directives(header) == (fresh, kept_out)
