"""The place in a bucket, of real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pressroom.kernel import SettingsError, StoreError, StoreFullError
from pressroom.store.places import open_place
from pressroom.store.places.s3 import Backend
from pressroom.testing.place_contract import LARGE, PlaceContract, some_bytes

from .s3_servers import KINDS, SECRET, Bucket


def beside(tmp_path: Path) -> list[str]:
    """What a place left in its workspace."""
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


class TestS3Place(PlaceContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def url(self, tmp_path: Path) -> str:
        return self.bucket.url(tmp_path)

    def left_over(self, tmp_path: Path) -> list[str]:
        return [*beside(tmp_path), *self.bucket.uploads(tmp_path)]


@pytest.fixture
def place(bucket: Bucket, tmp_path: Path) -> Iterator[Backend]:
    place = Backend(bucket.url(tmp_path), root=tmp_path)
    yield place
    place.close()


def test_a_server_can_run_here() -> None:
    assert KINDS


def test_pieces_lie_under_the_prefix_by_name(place: Backend, bucket: Bucket, tmp_path: Path) -> None:
    place.put("packs/a", b"123")
    place.put("packs/b", bytes(LARGE))
    assert bucket.objects(tmp_path) == {"packs/a": 3, "packs/b": LARGE}


def test_a_bucket_without_a_prefix(bucket: Bucket, tmp_path: Path) -> None:
    place = Backend(f"s3://{bucket.name}", root=tmp_path)
    name = f"whole-{tmp_path.name}"
    place.put(name, b"123")
    assert place.read(name, 0, 3) == b"123"
    assert (name, 3) in list(place.list("whole-"))
    assert place.delete(name)
    assert place.url == f"s3://{bucket.name}"


def test_what_others_put_there_is_no_piece(place: Backend, bucket: Bucket, tmp_path: Path) -> None:
    place.put("packs/one", b"1")
    for key in ("packs/.hidden", "packs/a b", "packs/ä", "-x"):
        bucket.client.put_object(Bucket=bucket.name, Key=f"{bucket.prefix(tmp_path)}/{key}", Body=b"x")
    assert list(place.list("")) == list(place.list("packs/")) == [("packs/one", 1)]


def test_more_pieces_than_a_page_holds(place: Backend, bucket: Bucket, tmp_path: Path) -> None:
    names = [f"many/{number:04}" for number in range(1_050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: place.put(name, b"x"), names))
    assert sorted(name for name, _ in place.list("many/")) == names


def test_what_was_altered_behind_its_back(place: Backend, bucket: Bucket, tmp_path: Path) -> None:
    place.put("packs/a", bytes(1000))
    bucket.client.put_object(Bucket=bucket.name, Key=f"{bucket.prefix(tmp_path)}/packs/a", Body=b"x" * 10)
    with pytest.raises(StoreError, match="10 bytes"):
        place.read("packs/a", 0, 1000)


def test_no_such_bucket(bucket: Bucket, tmp_path: Path) -> None:
    place = open_place("s3://nothing-of-that-name/prefix", tmp_path)
    for ask in (
        lambda: place.put("a", b"x"),
        lambda: place.put("a", bytes(LARGE)),
        lambda: list(place.list("")),
    ):
        with pytest.raises(StoreError, match="no bucket nothing-of-that-name") as caught:
            ask()
        assert "AWS_ENDPOINT_URL" in caught.value.hint
    assert beside(tmp_path) == []


def test_a_wrong_key(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not bucket.checks_signatures:
        pytest.skip("this server takes every signature")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-one")
    place = open_place(bucket.url(tmp_path), tmp_path)
    for ask in (
        lambda: place.put("a", b"x"),
        lambda: place.put("a", bytes(LARGE)),
        lambda: place.read("a", 0, 1),
        lambda: place.size("a"),
        lambda: place.delete("a"),
        lambda: list(place.list("")),
    ):
        with pytest.raises(StoreError, match="refuses: it answered 403") as caught:
            ask()
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint
        assert "not-the-right-one" not in json.dumps(caught.value.as_dict())


def test_keys_from_the_files_of_aws(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = os.environ["AWS_ACCESS_KEY_ID"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    files = Path(os.environ["HOME"]) / ".aws"
    files.mkdir()
    (files / "credentials").write_text(f"[work]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")
    (files / "config").write_text(f"[profile work]\nregion = us-east-1\nendpoint_url = {bucket.endpoint}\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    # Of keys that are not there any more: it does not belong to those of the file.
    monkeypatch.setenv("AWS_SESSION_TOKEN", "left over")
    place = open_place(bucket.url(tmp_path), tmp_path)
    place.put("a", b"123")
    assert place.read("a", 0, 3) == b"123"
    assert SECRET not in f"{vars(place)}"


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "/prefix",
        "key:sesame@bucket/prefix",
        "key:sesame@",
        "bucket:sesame/prefix",
        "bucket/prefix?password=sesame",
        "bucket/../other",
        "bucket//prefix",
        "bucket/a b",
        "bucket/.prefix",
        "-bucket",
    ],
)
def test_what_names_no_bucket(no_account: None, tmp_path: Path, rest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_place(f"s3://{rest}", tmp_path)
    assert "sesame" not in json.dumps(caught.value.as_dict())
    assert "s3://" in caught.value.message + caught.value.hint


def test_without_the_library(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
sys.modules["obstore"] = None
from pressroom.kernel import MissingDependencyError
from pressroom.store.places import open_place
try:
    open_place("s3://bucket/prefix", Path(sys.argv[1]))
except MissingDependencyError as error:
    print(error.message, error.hint)
"""
    said = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "obstore" in said.stdout
    assert "pressroom[s3]" in said.stdout


def test_no_room_for_the_spool_is_said_before_the_first_byte(place: Backend) -> None:
    with pytest.raises(StoreFullError) as caught, place.write(size=1 << 60):
        pytest.fail("it was begun")
    assert caught.value.facts["needed"] == 1 << 60
    assert caught.value.facts["free"] > 0


def test_small_pieces_need_no_disk(bucket: Bucket, tmp_path: Path) -> None:
    place = Backend(bucket.url(tmp_path), root=tmp_path / "not there")
    place.put("small", bytes(1000))
    assert place.size("small") == 1000
    with pytest.raises(StoreError, match="on the") as caught:
        place.put("large", bytes(LARGE))
    assert "not there" in caught.value.facts["path"]
    assert place.size("large") is None


# argv: URL, root. Says by how many bytes the memory of the process grew while it put and read a large piece.
_MEASURED = """
import json, resource, sys
from pathlib import Path
from pressroom.store.places import open_place

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

SIZE = 120 << 20
place = open_place(sys.argv[1], Path(sys.argv[2]))
place.put("warm", bytes(2 << 20))
place.read("warm", 0, 2 << 20)
block = bytes(1 << 20)
before = peak()
with place.write(size=SIZE) as writer:
    for _ in range(SIZE >> 20):
        writer.write(block)
    writer.commit("large")
put = peak() - before
out = bytearray(SIZE)
for at in range(0, SIZE, len(block)):
    out[at : at + len(block)] = b"." * len(block)
before = peak()
place.read_into("large", 0, memoryview(out))
print(json.dumps([put, peak() - before, out == bytes(SIZE)]))
"""


def test_memory_stays_small_however_large_the_piece(bucket: Bucket, tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _MEASURED, bucket.url(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    put, read, right = json.loads(said.stdout)
    assert right
    assert put <= 16 << 20
    assert read <= 64 << 20


def test_an_exception_while_reading_leaves_the_buffer_alone_afterwards(place: Backend) -> None:
    """What was on its way when a part failed must not arrive in a buffer that has another owner by then."""
    place.put("a", some_bytes("a", LARGE))
    out = bytearray(LARGE + (64 << 20))
    with pytest.raises(StoreError):
        place.read_into("a", 0, memoryview(out))
    out[:] = bytes(len(out))
    assert not any(out[:LARGE:997])


def test_closing_twice_and_using_it_again(place: Backend) -> None:
    place.put("a", some_bytes("a", LARGE))
    out = bytearray(LARGE)
    for _ in range(2):
        place.read_into("a", 0, memoryview(out))
        place.close()
    assert out == some_bytes("a", LARGE)
