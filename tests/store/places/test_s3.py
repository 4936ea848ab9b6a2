"""The place in a bucket, against a real server, on good days and on bad ones."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import NotFoundError, SettingsError, StoreError
from pressroom.store.places import Place, open_place
from pressroom.testing.place_contract import PlaceContract, some_bytes
from tests.store.places.servers import Proxy, s3_server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(autouse=True)
def credentials(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that must not be seen")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def bucket(port: int) -> str:
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/models", method="PUT")).close()
    return "models"


class TestS3(PlaceContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: str, tmp_path: Path) -> None:
        self._url = f"s3://{bucket}/{uuid.uuid4().hex}"

    def url(self, tmp_path: Path) -> str:
        return self._url


@pytest.fixture
def proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    yield proxy
    proxy.close()


@pytest.fixture
def place(proxy: Proxy, bucket: str, tmp_path: Path) -> Place:
    return open_place(f"s3://{bucket}/{uuid.uuid4().hex}", tmp_path)


@pytest.mark.parametrize("fault", ["503", "slow", "lost", "refuse"])
def test_a_put_on_a_bad_day_arrives_once_and_whole(place: Place, proxy: Proxy, fault: str) -> None:
    content = some_bytes(fault, 200_000)
    proxy.faults[:] = [fault, fault]
    place.put("packs/a", content)
    assert place.read("packs/a", 0, len(content)) == content
    assert list(place.list("")) == [("packs/a", 200_000)]
    assert f"PUT {fault}" in proxy.seen


@pytest.mark.parametrize("fault", ["503", "slow", "refuse", "cut", "lost"])
def test_a_read_on_a_bad_day_gives_the_right_bytes(place: Place, proxy: Proxy, fault: str) -> None:
    content = some_bytes(fault, 300_000)
    place.put("packs/a", content)
    proxy.faults[:] = [fault]
    assert place.read("packs/a", 1000, 250_000) == content[1000:251_000]
    assert f"GET {fault}" in proxy.seen


def test_parts_of_a_large_piece_survive_a_server_that_is_tired(place: Place, proxy: Proxy) -> None:
    content = some_bytes("large", 20_000_000)
    proxy.faults[:] = ["", "503", "", "lost", "503"]
    place.put("packs/large", content)
    out = bytearray(len(content))
    proxy.faults[:] = ["503", "cut", "refuse"]
    place.read_into("packs/large", 0, memoryview(out))
    assert out == content


def test_a_server_that_stays_away_is_an_error_in_plain_words(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: str
) -> None:
    from pressroom.store.places import s3

    monkeypatch.setitem(s3._RETRIES, "max_retries", 1)
    place = open_place(f"s3://{bucket}/other", tmp_path)
    proxy.faults[:] = ["503"] * 20
    with pytest.raises(StoreError, match="does not answer as it should") as caught:
        place.put("a", b"content")
    assert "a secret" not in str(caught.value) + caught.value.hint
    proxy.faults.clear()
    assert list(place.list("")) == []


def test_a_bucket_that_is_not_there(tmp_path: Path) -> None:
    place = open_place("s3://nobody-made-it/x", tmp_path)
    with pytest.raises((NotFoundError, StoreError)):
        place.put("a", b"1")


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///prefix", "s3://bucket/../x", "s3://bucket/a b", "s3://key:hidden@bucket/x"]
)
def test_urls_that_name_no_bucket(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_place(url, tmp_path)
    assert "hidden" not in str(caught.value.as_dict())


def test_plain_http_goes_to_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pressroom.store.places import s3

    assert s3._is_loopback("http://127.0.0.1:9000") and s3._is_loopback("http://localhost")
    assert s3._is_loopback("http://[::1]:9000")
    assert not s3._is_loopback("http://10.0.0.1") and not s3._is_loopback("http://127.0.0.1.example.org")
