"""Which keys, which region and which server the environment and AWS's files name; and how a request is signed."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pressroom.kernel import SettingsError
from pressroom.store.places import open_place
from pressroom.store.places._aws import Account, account
from pressroom.store.places._uploads import _signed

_KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "sesame"}


def files(tmp_path: Path, *, credentials: str = "", config: str = "") -> dict[str, str]:
    """An environment whose home has these files of AWS's."""
    directory = tmp_path / ".aws"
    directory.mkdir()
    (directory / "credentials").write_text(credentials)
    (directory / "config").write_text(config)
    return {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}


def test_keys_of_the_environment() -> None:
    found = account(_KEYS | {"AWS_SESSION_TOKEN": "token", "AWS_REGION": "eu-west-1", "HOME": "/nonexistent"})
    assert found == Account(key="AK", secret="sesame", token="token", region="eu-west-1")
    assert "sesame" not in repr(found) and "token'" not in repr(found)


def test_keys_of_the_files(tmp_path: Path) -> None:
    environ = files(
        tmp_path,
        credentials="[default]\naws_access_key_id=AKD\naws_secret_access_key=a%b=c\n[other]\naws_access_key_id=AKO\n"
        "aws_secret_access_key=o\naws_session_token=t\n",
        config="[default]\nregion=eu-north-1\n[profile other]\nregion=ap-south-1\nendpoint_url=https://s3.example.org/\n",
    )
    assert account(environ) == Account(key="AKD", secret="a%b=c", region="eu-north-1")
    other = Account(key="AKO", secret="o", token="t", region="ap-south-1", endpoint="https://s3.example.org")
    assert account(environ | {"AWS_PROFILE": "other"}) == other
    # What the environment says goes before, a token of the files never beside a key of the environment.
    said = environ | _KEYS | {"AWS_PROFILE": "other", "AWS_DEFAULT_REGION": "us-west-2"}
    assert account(said) == Account(key="AK", secret="sesame", region="us-west-2", endpoint="https://s3.example.org")


def test_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("[default]\naws_access_key_id=AK\naws_secret_access_key=s\n")
    (tmp_path / "d").write_text("[default]\nregion=eu-north-1\n")
    environ = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "c"), "AWS_CONFIG_FILE": str(tmp_path / "d")}
    assert account(environ) == Account(key="AK", secret="s", region="eu-north-1")


@pytest.mark.parametrize("missing", _KEYS)
def test_half_a_pair(missing: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        account({name: value for name, value in _KEYS.items() if name != missing} | {"HOME": str(tmp_path)})
    assert missing in caught.value.message
    assert "sesame" not in json.dumps(caught.value.as_dict())


def test_a_profile_without_keys(tmp_path: Path) -> None:
    environ = files(tmp_path, config="[profile sso]\nsso_session=work\n") | {"AWS_PROFILE": "sso"}
    with pytest.raises(SettingsError, match="'sso' has no aws_access_key_id") as caught:
        account(environ)
    assert "export-credentials" in caught.value.hint
    with pytest.raises(SettingsError, match="'nothing' has no"):
        account(environ | {"AWS_PROFILE": "nothing"})


@pytest.mark.parametrize("content", ["sesame\n", "[default\nsesame = 1", "[default]\nsesame", "\xff\xfe"])
def test_a_file_that_is_none(tmp_path: Path, content: str) -> None:
    environ = files(tmp_path)
    (tmp_path / ".aws/credentials").write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match="not an INI file") as caught:
        account(environ)
    assert "sesame" not in json.dumps(caught.value.as_dict())
    assert caught.value.__suppress_context__


def test_no_keys_and_no_role(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.raises(SettingsError, match="no credentials") as caught:
        account(environ)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert account(environ | {"AWS_SKIP_SIGNATURE": "true"}) == Account()
    assert account(environ | {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2"}) == Account()


def test_without_keys_a_machine_is_asked_for_its_role_only_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A port of loopback where nobody listens stands for the address that only Amazon's machines have.
    monkeypatch.setattr("pressroom.store.places._aws._METADATA", ("127.0.0.1", 1))
    with pytest.raises(SettingsError, match="no role"):
        account({"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("endpoint", "plain"),
    [
        ("https://s3.example.org", False),
        ("https://s3.example.org:9000/", False),
        ("http://127.0.0.1:9000", True),
        ("http://localhost:9000", True),
        ("http://[::1]:9000", True),
    ],
)
def test_endpoints(endpoint: str, plain: bool) -> None:
    found = account(_KEYS | {"HOME": "/nonexistent", "AWS_ENDPOINT_URL": endpoint})
    assert (found.endpoint, found.plain_http) == (endpoint.rstrip("/"), plain)
    other = {"AWS_ENDPOINT_URL_S3": "https://own.example.org"}
    found = account(_KEYS | {"HOME": "/nonexistent", "AWS_ENDPOINT_URL": endpoint} | other)
    assert (found.endpoint, found.plain_http) == ("https://own.example.org", False)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://192.0.2.1:9000",
        "http://minio:9000",
        "http://127.0.0.1.example.org",
        "ftp://127.0.0.1",
        "127.0.0.1:9000",
        "https://",
        "http://127.0.0.1:port",
        "http://[::1",
        "https://user:sesame@s3.example.org",
        "https://user@s3.example.org",
        "https://s3.example.org?key=1",
    ],
)
def test_endpoints_that_are_refused(endpoint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        account(_KEYS | {"HOME": "/nonexistent", "AWS_ENDPOINT_URL": endpoint})
    assert "AWS_ENDPOINT_URL" in caught.value.message
    assert "sesame" not in json.dumps(caught.value.as_dict())


def test_plain_http_to_another_machine_is_somebodys_decision() -> None:
    found = account(_KEYS | {"HOME": "/nonexistent", "AWS_ENDPOINT_URL": "http://minio:9000", "AWS_ALLOW_HTTP": "true"})
    assert found.plain_http


def test_opening_asks_nobody(no_account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    open_place("s3://bucket/prefix", tmp_path).close()
    assert os.listdir(tmp_path) == []


def test_a_signature_that_amazon_published() -> None:
    """ "Example: GET Bucket (List Objects)" of the Amazon S3 API Reference, Signature Version 4."""
    amazon = Account(key="AKIAIOSFODNN7EXAMPLE", secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    when = datetime(2013, 5, 24, tzinfo=UTC)
    headers = _signed(amazon, "GET", "examplebucket.s3.amazonaws.com", "/", "max-keys=2&prefix=J", when)
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;x-amz-content-sha256;x-amz-date, "
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )
