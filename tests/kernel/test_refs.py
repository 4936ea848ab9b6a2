"""References: what is written is what is read, and what is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.kernel import Ref, RefError, is_name

_LETTERS = "abcXYZ019"
_part = st.builds(str.__add__, st.sampled_from(_LETTERS), st.text(alphabet=_LETTERS + "._-", max_size=20))
_names = st.one_of(_part, st.builds(lambda org, name: f"{org}/{name}", _part, _part))
_digests = st.text(alphabet="0123456789abcdef", min_size=4, max_size=64).map("sha256-{}".format)
_refs = st.builds(Ref, _names, st.none() | _part, st.none() | _digests)


@given(_refs)
def test_what_is_written_is_what_is_read(ref: Ref) -> None:
    assert Ref.parse(str(ref)) == ref


@given(st.text())
def test_any_text_is_read_as_written_or_refused(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except RefError as error:
        assert error.facts["asked"] == text
    else:
        assert str(ref) == text


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("smollm2", Ref("smollm2")),
        ("smollm2:3", Ref("smollm2", "3")),
        ("smollm2:production", Ref("smollm2", "production")),
        ("org/name:2", Ref("org/name", "2")),
        ("m@sha256-1f0c", Ref("m", None, "sha256-1f0c")),
        ("m:1@sha256-" + "a" * 64, Ref("m", "1", "sha256-" + "a" * 64)),
    ],
)
def test_good_forms(text: str, ref: Ref) -> None:
    assert Ref.parse(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a:",
        "a@",
        ":1",
        "@sha256-1f0c",
        "a:1:2",
        "a/b/c",
        "/a",
        "a/",
        "../a",
        "a/..",
        ".hidden",
        "-x",
        "a:-1",
        "a:../x",
        "a@sha256-1f0",
        "a@sha256-XYZW",
        "a@sha256-1F0C",
        "a@md5-1f0c",
        "a@sha256-" + "a" * 65,
        "a@sha256-1f0c:1",
        "a" * 97,
        "a:" + "1" * 65,
        "a\n",
        "a:1\n",
        "a@sha256-1f0c\n",
        "naïve",
        "a:¹",
        "a\x00",
    ],
)
def test_bad_forms_are_quoted(text: str) -> None:
    with pytest.raises(RefError) as caught:
        Ref.parse(text)
    assert repr(text) in caught.value.message
    assert "name[:version]" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "number"), [("m", None), ("m:3", 3), ("m:03", 3), ("m:production", None), ("m:3a", None)]
)
def test_number(text: str, number: int | None) -> None:
    assert Ref.parse(text).number == number


@pytest.mark.parametrize(
    ("text", "yes"), [("smollm2", True), ("org/m", True), ("a:1", False), ("", False), ("-", False)]
)
def test_is_name(text: str, yes: bool) -> None:
    assert is_name(text) is yes


def test_refs_are_values() -> None:
    assert {Ref.parse("a:1"), Ref.parse("a:1")} == {Ref("a", "1")}
