"""What a network and a busy server do to the place in a bucket: nothing is lost, nothing is half-written."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pressroom.kernel import NotFoundError, StoreError, StoreFullError
from pressroom.store.places import open_place
from pressroom.store.places._patience import Patience
from pressroom.store.places.s3 import Backend
from pressroom.testing.place_contract import some_bytes

from .faulty_proxy import (
    Answer,
    Fault,
    FaultyProxy,
    Handler,
    Request,
    answer,
    cut_after,
    cut_before,
    cut_within,
    shorter,
    slow,
    stalled,
    told_twice,
    twice,
)
from .s3_servers import SECRET, Bucket

# Long enough for a busy machine, short enough for a test that waits until it is over.
_SHORT = Patience(request_s=5.0, connect_s=5.0, total_s=5.0, first_pause_s=0.01, longest_pause_s=0.05, retries=3)
_IMPATIENT = Patience(request_s=0.4, connect_s=5.0, total_s=0.3, first_pause_s=0.01, longest_pause_s=0.05, retries=3)
# Two parts, and two ranges.
LARGE = (5 << 20) + 7
_CONTENT = some_bytes("faults", LARGE)
# What may be mended by another try, and how often it happens.
_PASSING: dict[str, tuple[Fault, int]] = {
    "503 three times": (answer(503), 3),
    "500": (answer(500, "InternalError"), 1),
    "429": (answer(429, "TooManyRequests"), 2),
    "408": (answer(408, "RequestTimeout"), 1),
    "409": (answer(409, "OperationAborted"), 1),
    "cut before": (cut_before, 2),
    "cut after": (cut_after, 1),
    "cut after twice": (cut_after, 2),
    "cut within": (cut_within, 1),
    "server asked twice": (twice, 1),
    "client told twice": (told_twice, 1),
}


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def place(proxy: FaultyProxy, bucket: Bucket, tmp_path: Path) -> Iterator[Backend]:
    place = Backend(bucket.url(tmp_path), root=tmp_path, patience=_SHORT)
    yield place
    place.close()


def nothing_left(bucket: Bucket, tmp_path: Path) -> None:
    assert bucket.uploads(tmp_path) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("fault", _PASSING)
def test_a_small_piece_comes_through(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, fault: str
) -> None:
    what, times = _PASSING[fault]
    proxy.do(what, when="PUT", times=times)
    place.put("a", b"once")
    assert bucket.objects(tmp_path) == {"a": 4}
    assert place.read("a", 0, 4) == b"once"
    nothing_left(bucket, tmp_path)


@pytest.mark.parametrize("fault", _PASSING)
@pytest.mark.parametrize("step", ["POST*uploads", "PUT*partNumber=2", "POST*uploadId="])
def test_a_large_piece_comes_through(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, fault: str, step: str
) -> None:
    what, times = _PASSING[fault]
    proxy.do(what, when=step, times=times)
    place.put("a", _CONTENT)
    assert proxy.planned_left == 0
    assert bucket.objects(tmp_path) == {"a": LARGE}
    assert place.read("a", 0, LARGE) == _CONTENT


@pytest.mark.parametrize("fault", [*_PASSING, "shorter"])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_piece_is_read(place: Backend, proxy: FaultyProxy, fault: str, size: int) -> None:
    place.put("a", _CONTENT[:size])
    what, times = (shorter, 2) if fault == "shorter" else _PASSING[fault]
    proxy.do(what, when="GET", times=times)
    out = bytearray(size)
    place.read_into("a", 0, memoryview(out))
    assert out == _CONTENT[:size]
    assert proxy.planned_left == 0


@pytest.mark.parametrize("fault", _PASSING)
def test_looking_listing_and_deleting(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, fault: str
) -> None:
    what, times = _PASSING[fault]
    place.put("x/a", b"1")
    place.put("x/b", b"22")
    for when in ("HEAD", "GET", "DELETE"):
        proxy.do(what, when=when, times=times)
    assert place.size("x/a") == 1
    assert sorted(place.list("x/")) == [("x/a", 1), ("x/b", 2)]
    assert place.delete("x/a") is True
    assert bucket.objects(tmp_path) == {"x/b": 2}


def test_a_list_that_breaks_off(place: Backend, proxy: FaultyProxy) -> None:
    for number in range(5):
        place.put(f"x/{number}", b"1")
    pages = place.list("x/")
    proxy.do(cut_within, when="GET", times=2)
    assert sorted(name for name, _ in pages) == [f"x/{number}" for number in range(5)]


def test_a_server_that_answers_everything_twice(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path
) -> None:
    proxy.do(told_twice, times=1_000_000)
    for number, size in enumerate([10, LARGE, 20, 30]):
        assert place.size(f"x/{number}") is None
        place.put(f"x/{number}", _CONTENT[:size])
        assert place.size(f"x/{number}") == size
        assert place.read(f"x/{number}", 5, size - 5) == _CONTENT[5:size]
        assert dict(place.list("x/"))[f"x/{number}"] == size
    assert place.delete("x/0")
    assert bucket.objects(tmp_path) == {"x/1": LARGE, "x/2": 20, "x/3": 30}


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_put_while_another_one_of_the_same_name_is_under_way(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, size: int
) -> None:
    """Amazon says 409 to a conditional put while another is under way; that one may still fail."""
    proxy.do(answer(409, "ConditionalRequestConflict"), when="PUT", times=3)
    place.put("a", _CONTENT[:size])
    assert bucket.objects(tmp_path) == {"a": size}


def test_a_server_that_takes_no_conditions(place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path) -> None:
    proxy.do(answer(501, "NotImplemented"), when="PUT", times=1)
    place.put("a", b"once")
    place.put("a", b"other")
    assert place.read("a", 0, 4) == b"once"
    assert bucket.objects(tmp_path) == {"a": 4}


@pytest.mark.parametrize("fault", [answer(503), cut_before, stalled])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_server_that_stays_away(proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, fault: Fault, size: int) -> None:
    place = Backend(bucket.url(tmp_path), root=tmp_path, patience=_IMPATIENT)
    held = some_bytes("held", size)
    while place.size("held") is None:  # a server that is slow on a busy machine is not the one that is tested
        try:
            place.put("held", held)
        except StoreError:
            continue
    proxy.do(fault, times=1_000_000)
    asks: list[Callable[[], object]] = [
        lambda: place.put("a", _CONTENT[:size]),
        lambda: place.read("held", 0, size),
        lambda: place.read_into("held", 0, memoryview(bytearray(size))),
        lambda: place.size("held"),
        lambda: place.delete("held"),
        lambda: list(place.list("")),
    ]
    for ask in asks:
        with pytest.raises(StoreError, match="does not answer as it should") as caught:
            ask()
        assert not isinstance(caught.value, StoreFullError)
        assert "AWS_ENDPOINT_URL" in caught.value.hint
        assert bucket.name in caught.value.message
        assert "Debug source" not in caught.value.message
        assert SECRET not in str(caught.value.as_dict())
    proxy.forget()
    assert bucket.objects(tmp_path) == {"held": size}
    place.close()

    again = open_place(bucket.url(tmp_path), tmp_path)
    again.put("a", _CONTENT[:size])
    assert again.read("a", 0, size) == _CONTENT[:size]
    nothing_left(bucket, tmp_path)
    again.close()


def test_a_server_that_is_not_there(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(bucket.endpoint) as proxy:
        gone = proxy.url
    monkeypatch.setenv("AWS_ENDPOINT_URL", gone)
    place = Backend(bucket.url(tmp_path), root=tmp_path, patience=_IMPATIENT)
    with pytest.raises(StoreError, match="does not answer as it should"):
        place.put("a", b"x")
    with pytest.raises(StoreError, match="does not answer as it should"):
        place.size("a")


def test_a_slow_answer_is_waited_for(proxy: FaultyProxy, place: Backend) -> None:
    place.put("a", b"slow")
    go = threading.Event()
    proxy.do(slow(go), when="GET")
    threading.Timer(0.5, go.set).start()
    assert place.read("a", 0, 4) == b"slow"
    assert proxy.count("GET") == 1


def test_an_answer_that_is_too_slow_is_asked_for_again(proxy: FaultyProxy, bucket: Bucket, tmp_path: Path) -> None:
    patience = Patience(request_s=0.5, total_s=20.0, first_pause_s=0.01, longest_pause_s=0.05)
    place = Backend(bucket.url(tmp_path), root=tmp_path, patience=patience)
    for when in ("PUT", "GET", "HEAD", "DELETE"):
        proxy.do(stalled, when=when)
    place.put("a", b"slow")
    assert place.read("a", 0, 4) == b"slow"
    assert place.size("a") == 4
    assert place.delete("a")
    place.close()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "refuses"),
        (400, "ExpiredToken", "refuses"),
        (400, "AuthorizationHeaderMalformed", "cannot do"),
        (405, "MethodNotAllowed", "cannot do"),
    ],
)
def test_what_no_other_try_would_mend_is_said_at_once(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, status: int, code: str, says: str
) -> None:
    proxy.do(answer(status, code), times=1_000_000)
    with pytest.raises(StoreError, match=f"{says}.* {status} \\({code}\\)"):
        place.put("a", b"x")
    assert proxy.count("PUT") <= 2
    with pytest.raises(StoreError, match=f"{says}.* {status} \\({code}\\)"):
        list(place.list(""))
    proxy.forget()
    assert bucket.objects(tmp_path) == {}


def test_a_bucket_in_another_region(place: Backend, proxy: FaultyProxy) -> None:
    proxy.do(answer(301, "PermanentRedirect"), times=1_000_000)
    for ask in (lambda: place.put("a", b"x"), lambda: list(place.list(""))):
        with pytest.raises(StoreError, match="cannot do") as caught:
            ask()
        assert "AWS_REGION" in caught.value.hint
    assert len(proxy.seen) <= 3


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_full_bucket(place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, size: int) -> None:
    proxy.do(answer(507, "InsufficientStorage"), when="PUT", times=1_000_000)
    with pytest.raises(StoreFullError, match="is full"):
        place.put("a", _CONTENT[:size])
    proxy.forget()
    assert bucket.objects(tmp_path) == {}
    nothing_left(bucket, tmp_path)


def test_a_piece_that_goes_while_it_is_read(place: Backend, bucket: Bucket, tmp_path: Path) -> None:
    place.put("a", _CONTENT)
    bucket.client.delete_object(Bucket=bucket.name, Key=f"{bucket.prefix(tmp_path)}/a")
    with pytest.raises(NotFoundError):
        place.read_into("a", 0, memoryview(bytearray(LARGE)))
    with pytest.raises(NotFoundError):
        place.local("a")


# argv: URL, root, size.
_SENDER = """
import sys
from pathlib import Path
from pressroom.store.places import open_place
from pressroom.testing.place_contract import some_bytes

place = open_place(sys.argv[1], Path(sys.argv[2]))
place.put("killed/piece", some_bytes("faults", int(sys.argv[3])))
"""


@pytest.mark.parametrize("step", ["PUT*partNumber=2", "POST*uploadId="])
def test_kill_minus_9_in_the_middle_of_an_upload(proxy: FaultyProxy, bucket: Bucket, tmp_path: Path, step: str) -> None:
    held = threading.Event()
    proxy.do(slow(held), when=step)
    process = subprocess.Popen([sys.executable, "-c", _SENDER, bucket.url(tmp_path), str(tmp_path), str(LARGE)])
    while not proxy.count(step):
        assert process.poll() is None
        time.sleep(0.01)
    assert bucket.uploads(tmp_path) == ["killed/piece"]
    # While it lives, whoever opens the place leaves its upload alone.
    open_place(bucket.url(tmp_path), tmp_path).close()
    assert bucket.uploads(tmp_path) == ["killed/piece"]
    process.kill()
    process.wait()
    assert bucket.objects(tmp_path) == {}

    proxy.do(answer(503), when="GET", times=1)
    open_place(bucket.url(tmp_path), tmp_path).close()
    assert bucket.uploads(tmp_path) == ["killed/piece"], "the bucket did not answer: it is kept in mind"
    place = open_place(bucket.url(tmp_path), tmp_path)
    nothing_left(bucket, tmp_path)
    assert list(place.list("")) == []
    place.put("killed/piece", _CONTENT)
    assert place.read("killed/piece", 0, LARGE) == _CONTENT
    place.close()
    held.set()


def test_uploads_of_other_places_are_left_alone(proxy: FaultyProxy, bucket: Bucket, tmp_path: Path) -> None:
    held = threading.Event()
    proxy.do(slow(held), when="PUT*partNumber=2")
    process = subprocess.Popen([sys.executable, "-c", _SENDER, bucket.url(tmp_path), str(tmp_path), str(LARGE)])
    while not proxy.count("PUT*partNumber=2"):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    open_place(f"{bucket.url(tmp_path)}/deeper", tmp_path).close()
    assert bucket.uploads(tmp_path) == ["killed/piece"]
    held.set()
    open_place(bucket.url(tmp_path), tmp_path).close()
    nothing_left(bucket, tmp_path)


def test_an_upload_that_somebody_else_dropped_begins_again(
    place: Backend, proxy: FaultyProxy, bucket: Bucket, tmp_path: Path
) -> None:
    def dropped(handler: Handler, request: Request, ask: Callable[[], Answer]) -> None:
        for one in bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []):
            if one["Key"] == f"{bucket.prefix(tmp_path)}/a":
                bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=one["Key"], UploadId=one["UploadId"])
        handler.send(ask(), request)

    proxy.do(dropped, when="PUT*partNumber=2")
    place.put("a", _CONTENT)
    assert place.read("a", 0, LARGE) == _CONTENT
    nothing_left(bucket, tmp_path)
