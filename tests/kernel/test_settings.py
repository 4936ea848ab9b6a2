"""Settings: what wins, and that each wrong one is quoted with what is allowed."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.kernel import Settings, SettingsError
from pressroom.kernel.settings import described, load, sections


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pressroom.toml"


def test_without_anything_the_defaults_hold() -> None:
    assert load(None, {}) == Settings()


def test_the_file_wins_over_defaults_and_the_environment_over_the_file(file: Path) -> None:
    file.write_text('offline = true\nengine = "echo"\n[gateway]\nport = 9000\nhost = "::1"\n')
    found = load(file, {"PRESSROOM_GATEWAY_PORT": "9001", "PRESSROOM_ENGINE": "other", "HOME": "/"})
    assert (found.offline, found.engine) == (True, "other")
    assert (found.gateway.port, found.gateway.host) == (9001, "::1")
    assert found.engines == Settings().engines


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(None, {}).offline = True  # type: ignore[misc]


@pytest.mark.parametrize("word", ["1", "true", "Yes", " ON "])
def test_words_for_yes(word: str) -> None:
    assert load(None, {"PRESSROOM_OFFLINE": word}).offline is True


@pytest.mark.parametrize("word", ["0", "False", "no", "off"])
def test_words_for_no(word: str) -> None:
    assert load(None, {"PRESSROOM_OFFLINE": word}).offline is False


def test_a_whole_number_will_do_where_a_number_is_asked_for(file: Path) -> None:
    file.write_text("[gateway]\ndrain_s = 3\n")
    drain = load(file, {}).gateway.drain_s
    assert drain == 3.0 and type(drain) is float


def test_numbers_of_the_environment_may_be_grouped() -> None:
    assert load(None, {"PRESSROOM_GATEWAY_MAX_BODY_BYTES": "1_000_000"}).gateway.max_body_bytes == 1_000_000


@pytest.mark.parametrize(
    ("text", "quoted", "allowed"),
    [
        ("offline = 1", "offline = 1", "true or false"),
        ('offline = "yes"', "offline = 'yes'", "true or false"),
        ("engine = 3", "engine = 3", "text"),
        ('engine = "  "', "engine = '  '", "empty"),
        ('[gateway]\nport = "8080"', "gateway.port = '8080'", "a whole number"),
        ("[gateway]\nport = 8080.0", "gateway.port = 8080.0", "a whole number"),
        ("[gateway]\nport = true", "gateway.port = True", "a whole number"),
        ("[gateway]\nport = -1", "gateway.port = -1", "0 to 65535"),
        ("[gateway]\nport = 65536", "gateway.port = 65536", "0 to 65535"),
        ("[gateway]\nport = []", "gateway.port = []", "a whole number"),
        ("[gateway]\ndrain_s = true", "gateway.drain_s = True", "a number"),
        ("[gateway]\ndrain_s = nan", "gateway.drain_s = nan", "at least 0"),
        ("[gateway]\ndrain_s = inf", "gateway.drain_s = inf", "finite"),
        ("[gateway]\ndrain_s = -inf", "gateway.drain_s = -inf", "at least 0"),
        ("[gateway]\ndrain_s = 1" + "0" * 400, "gateway.drain_s = 1", "finite"),
        ("[gateway]\nport = 1" + "0" * 400, "gateway.port = 1", "0 to 65535"),
        ("[gateway]\ndrain_s = -0.5", "gateway.drain_s = -0.5", "at least 0"),
        ("[measure]\ntokens = 9999", "measure.tokens = 9999", "8 to 4096"),
        ("gateway = 3", "gateway = 3", "section"),
    ],
)
def test_a_wrong_value_of_the_file_is_quoted(file: Path, text: str, quoted: str, allowed: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert quoted in caught.value.message
    assert str(file) in caught.value.message
    assert allowed in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("PRESSROOM_OFFLINE", "maybe", "true or false"),
        ("PRESSROOM_OFFLINE", "", "true or false"),
        ("PRESSROOM_GATEWAY_PORT", "http", "a whole number"),
        ("PRESSROOM_GATEWAY_PORT", "80.5", "a whole number"),
        ("PRESSROOM_GATEWAY_PORT", "70000", "0 to 65535"),
        ("PRESSROOM_GATEWAY_DRAIN_S", "nan", "at least 0"),
        ("PRESSROOM_GATEWAY_DRAIN_S", "inf", "finite"),
        ("PRESSROOM_GATEWAY_DRAIN_S", "1e999", "finite"),
        ("PRESSROOM_GATEWAY_HOST", "", "empty"),
    ],
)
def test_a_wrong_variable_is_quoted(variable: str, text: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {variable: text})
    assert f"{variable}={text!r}" in caught.value.message
    assert allowed in caught.value.message


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="PRESSROOM_GATEWAY_PROT='1'") as caught:
        load(None, {"PRESSROOM_GATEWAY_PROT": "1"})
    assert "PRESSROOM_GATEWAY_PORT" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["[gateway]\nprot = 1", "ofline = true", "[gatewy]\nport = 1", "[gateway.port]\nx = 1"]
)
def test_an_unknown_name_of_the_file_is_quoted_with_the_nearest(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert str(file) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"a = 1\na = 2", b"\x00", b"a = " + b"9" * 5000])
def test_a_file_that_is_not_toml_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="not valid TOML") as caught:
        load(file, {})
    assert str(file) in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path, {})  # a directory


def test_the_workspace_variable_is_no_setting() -> None:
    assert load(None, {"PRESSROOM_WORKSPACE": "/somewhere"}) == Settings()


def test_the_defaults_pass_their_own_bounds(file: Path) -> None:
    """What docs/settings.md shows as an example says what no file at all says."""
    lines, last = [], ""
    for dotted, _, default, _ in described():
        section, _, name = dotted.rpartition(".")
        lines += [f"[{section}]"] if section != last else []
        last = section
        lines.append(f"{name} = {str(default).lower() if isinstance(default, bool) else repr(default)}")
    file.write_text("\n".join(lines))
    assert tomllib.loads(file.read_text())
    assert load(file, {}) == Settings()


def test_every_setting_has_its_own_variable_and_help() -> None:
    every = list(described())
    assert len({variable for _, variable, _, _ in every}) == len(every)
    assert all(help.endswith((".", ":", "it.")) for _, _, _, help in every)
    assert {dotted.rpartition(".")[0] for dotted, _, _, _ in every} == set(sections())


@given(st.text(), st.sampled_from([variable for _, variable, _, _ in described()]))
def test_any_text_is_a_setting_or_a_settings_error(text: str, variable: str) -> None:
    try:
        load(None, {variable: text})
    except SettingsError as error:
        assert repr(text) in error.message
