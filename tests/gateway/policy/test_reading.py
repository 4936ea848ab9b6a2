"""What people write about routes: read, written again, and refused where it is wrong."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.gateway.policy import Policy
from pressroom.kernel import DeployError

BRANCHES = ("own", "new", "long", "vendor")
OWN = ("own", "new", "long")

EXAMPLE = """
[split]
"key:alice" = "new"
"team:research" = "own"
"tag:internal" = "long"
sticky = true
[fallback]
order = ["own", "vendor"]
[retry]
attempts = 2
backoff_s = 0.1
[breaker]
failures = 3
pause_s = 10
[hedge]
after_s = 2.0
[limits]
first_token_s = 30
total_s = 300
[shadow]
branch = "new"
share = 0.1
[[rule]]
when = { personal_data = true }
only = "own"
[[rule]]
when = { longer_than = 8000 }
prefer = "long"
[[rule]]
when = { language = ["de", "fr"], tag = "internal", key = ["alice"], team = ["research"], secret = true }
only = ["new", "own"]
prefer = "new"
"""


def parse(text: str, branches: tuple[str, ...] = BRANCHES, own: tuple[str, ...] = OWN) -> Policy:
    return Policy.parse(tomllib.loads(text), branches, own)


def test_what_is_written_is_meant() -> None:
    policy = parse(EXAMPLE)
    assert policy.split == {"key:alice": "new", "team:research": "own", "tag:internal": "long"}
    assert policy.sticky and policy.order == ("own", "vendor")
    assert (policy.retry.attempts, policy.retry.backoff_s) == (2, 0.1)
    assert (policy.breaker.failures, policy.breaker.pause_s) == (3, 10)
    assert (policy.hedge_after_s, policy.limits.first_token_s, policy.limits.total_s) == (2, 30, 300)
    assert policy.shadow is not None and (policy.shadow.branch, policy.shadow.share) == ("new", 0.1)
    first, second, third = policy.rules
    assert first.when.personal_data and first.only == ("own",) and not first.prefer
    assert second.when.longer_than == 8000 and second.prefer == ("long",)
    assert third.when.language == ("de", "fr") and third.when.tag == ("internal",) and third.only == ("new", "own")
    assert policy.default_rule and not parse("[rules]\ndefault = false").default_rule
    assert Policy.parse(policy.as_dict(), BRANCHES, OWN) == policy


def test_what_is_not_written_is_at_its_default() -> None:
    assert parse("") == Policy()
    assert Policy().as_dict() == {}
    assert parse("[retry]\nattempts = 1").retry.backoff_s == 0.1
    assert parse("[fallback]\norder = []").order == ()


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("[fallbak]\norder = []", "[fallbak]", "Did you mean fallback?"),
        ("[[rule]]\nwhen = { secret = true }\nonly = 'own'\n[[rule]]\nwhen = { languge = ['de'] }\nonly = 'own'",
         "[[rule]] 2: when.languge", "Did you mean language?"),
        ("[[rule]]\nwhen = { }\nonly = 'own'", "[[rule]] 1: when", "personal_data"),
        ("[[rule]]\nwhen = { secret = true }", "[[rule]] 1", "`only` or `prefer`"),
        ("[[rule]]\nonly = 'own'", "[[rule]] 1", "longer_than"),
        ("[[rule]]\nwhen = { secret = false }\nonly = 'own'", "[[rule]] 1: when.secret", "Only true"),
        ("[[rule]]\nwhen = { language = 'German' }\nonly = 'own'", "[[rule]] 1: when.language", "ISO 639"),
        ("[[rule]]\nwhen = { longer_than = -1 }\nonly = 'own'", "[[rule]] 1: when.longer_than", "from 0"),
        ("[[rule]]\nwhen = { tag = [] }\nonly = 'own'", "[[rule]] 1: when.tag", "A list of words"),
        ("[[rule]]\nwhen = { tag = 'a' }\nonly = 'vendr'", "[[rule]] 1: only", "Did you mean vendor?"),
        ("[[rule]]\nwhen = { tag = 'a' }\nonly = 'vendor'\nprefer = 'new'", "[[rule]] 1: prefer", "vendor"),
        ("[[rule]]\nwhen = { personal_data = true }\nonly = 'vendor'", "[[rule]] 1: only", "default = false"),
        ("[rule]\nwhen = 1", "[[rule]]", "[[rule]] before each"),
        ("[rules]\ndefault = 1", "[rules] default", "true and false"),
        ("[split]\nalice = 'new'", '[split] "alice"', "key:NAME"),
        ("[split]\n'key:' = 'new'", '[split] "key:"', "key:NAME"),
        ("[split]\n'key:alice' = 'nwe'", '[split] "key:alice"', "Did you mean new?"),
        ("[split]\nsticky = 'yes'", "[split] sticky", "true and false"),
        ("[fallback]", "[fallback]", "order"),
        ("[fallback]\norder = 'own'", "[fallback] order", "A list"),
        ("[fallback]\norder = ['own', 'own']", "[fallback] order", "each once"),
        ("[retry]", "[retry]", "attempts"),
        ("[retry]\nattempts = 11", "[retry] attempts", "from 0 to 10"),
        ("[retry]\nattempts = 1.0", "[retry] attempts", "A whole number"),
        ("[retry]\nattempts = true", "[retry] attempts", "A whole number"),
        ("[retry]\nbackoff_s = nan", "[retry] backoff_s", "from 0 to 60"),
        ("[retry]\nbackoff = 1", "[retry] backoff", "Did you mean backoff_s?"),
        ("[breaker]\npause_s = 0", "[breaker] pause_s", "from 0.01"),
        ("[hedge]\nafter_s = inf", "[hedge] after_s", "from 0.01"),
        ("[hedge]", "[hedge]", "after_s"),
        ("[limits]\nfirst_token_s = 10\ntotal_s = 5", "[limits] first_token_s", "at most total_s"),
        ("[limits]\ntotal_s = '5 min'", "[limits] total_s", "A number"),
        ("[shadow]\nbranch = 'new'", "[shadow]", "share"),
        ("[shadow]\nbranch = 'new'\nshare = 0", "[shadow] share", "Above 0"),
        ("[shadow]\nbranch = 'new'\nshare = 10", "[shadow] share", "from 0 to 1"),
        ("[shadow]\nbranch = 'nothing'\nshare = 1", "[shadow] branch", "Branches of this deployment"),
        ("limits = 5", "[limits]", "It is a table"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, place: str, says: str) -> None:
    with pytest.raises(DeployError) as caught:
        parse(text)
    assert caught.value.facts["place"] == place
    assert caught.value.message.startswith(place)
    assert says in caught.value.hint


@pytest.mark.parametrize(
    ("text", "branches", "own", "place"),
    [
        ("[hedge]\nafter_s = 1", (), (), "[hedge]"),
        ("[hedge]\nafter_s = 1", ("a",), ("a",), "[hedge]"),
        ("[fallback]\norder = ['a']", (), (), "[fallback] order"),
        ("[[rule]]\nwhen = { tag = 'x' }\nonly = 'own'", ("a",), (), "[[rule]] 1: only"),
        ("[[rule]]\nwhen = { tag = 'x' }\nonly = 'own'", ("a", "own"), ("a",), "[[rule]] 1: only"),
    ],
)
def test_what_these_branches_cannot(text: str, branches: tuple[str, ...], own: tuple[str, ...], place: str) -> None:
    with pytest.raises(DeployError) as caught:
        parse(text, branches, own)
    assert caught.value.facts["place"] == place


def test_the_default_rule_may_be_switched_off_for_another() -> None:
    text = "[rules]\ndefault = false\n[[rule]]\nwhen = { personal_data = true }\nonly = 'vendor'"
    assert parse(text).rules[0].only == ("vendor",)


_seconds = st.floats(0.01, 60).map(lambda value: round(value, 3))
_names = st.lists(st.sampled_from(BRANCHES), min_size=1, unique=True)
_words = st.lists(st.text("abcdef", min_size=1, max_size=5), min_size=1, max_size=3, unique=True)
_when = st.fixed_dictionaries(
    {"tag": _words},
    optional={
        "personal_data": st.just(True),
        "secret": st.just(True),
        "key": _words,
        "team": _words,
        "language": st.just(["de"]),
        "longer_than": st.integers(0, 10_000),
    },
)
_rule = st.one_of(
    st.fixed_dictionaries({"when": _when, "only": st.just("own")}),
    st.fixed_dictionaries({"when": _when, "prefer": _names}),
)
_tables = st.fixed_dictionaries(
    {},
    optional={
        "split": st.dictionaries(_words.map(lambda words: f"key:{words[0]}"), st.sampled_from(BRANCHES)),
        "fallback": st.fixed_dictionaries({"order": _names}),
        "retry": st.fixed_dictionaries({"attempts": st.integers(0, 10)}, optional={"backoff_s": _seconds}),
        "breaker": st.fixed_dictionaries({"failures": st.integers(0, 9)}, optional={"pause_s": _seconds}),
        "hedge": st.fixed_dictionaries({"after_s": _seconds}),
        "limits": st.fixed_dictionaries({"total_s": _seconds}),
        "shadow": st.fixed_dictionaries({"branch": st.sampled_from(BRANCHES), "share": st.floats(0.01, 1)}),
        "rules": st.fixed_dictionaries({"default": st.booleans()}),
        "rule": st.lists(_rule, max_size=3),
    },
)


@given(_tables)
@settings(max_examples=100, deadline=None)
def test_written_and_read_again_it_is_the_same(tables: dict[str, Any]) -> None:
    policy = Policy.parse(tables, BRANCHES, OWN)
    assert Policy.parse(policy.as_dict(), BRANCHES, OWN) == policy


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["split", "fallback", "retry", "limits", "shadow", "rule", "rules"]), _json))
@settings(max_examples=200, deadline=None)
def test_nothing_but_a_policy_or_an_error_comes_of_anything(tables: dict[str, Any]) -> None:
    try:
        assert isinstance(Policy.parse(tables, BRANCHES, OWN), Policy)
    except DeployError as error:
        assert error.facts["place"] and error.hint
