"""The store in a bucket keeps to all that the one in a directory keeps to."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.kernel import LockedError, Settings, Workspace
from pressroom.store import Blob, Store, open_store
from pressroom.store.backends.s3 import Backend
from pressroom.store.family._leases import _host
from pressroom.testing.store_contract import StoreContract, digest
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, quantised, tensors, tuned, write
from tests.store.places import faulty_proxy as faulty
from tests.store.places.conftest import clean_environment
from tests.store.places.s3_servers import KEY, KINDS, SECRET, Bucket, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serving(KINDS[0], tmp_path_factory.mktemp("s3") / "server") as url:
        bucket = Bucket(KINDS[0], url)
        bucket.make()
        yield bucket


@pytest.fixture
def bucket(server: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    return server


class TestS3Store(StoreContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def url(self, tmp_path: Path) -> str:
        return self.bucket.url(tmp_path)

    def alter(self, store: Store, blob: Blob, content: bytes) -> None:
        (name,) = [one for one in self.bucket.objects(self._path) if one.endswith(blob.digest)]
        key = f"{self.bucket.prefix(self._path)}/{name}"
        self.bucket.client.put_object(Bucket=self.bucket.name, Key=key, Body=content)

    @pytest.fixture(autouse=True)
    def _where(self, tmp_path: Path) -> None:
        self._path = tmp_path


def opened(bucket: Bucket, tmp_path: Path, root: Path) -> Backend:
    root.mkdir(exist_ok=True)
    store = open_store(Workspace(root, Settings(store=bucket.url(tmp_path))))
    assert isinstance(store, Backend)
    return store


def test_a_family_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    store = opened(bucket, tmp_path, tmp_path / "here")
    model = base()
    held = {}
    for number in range(3):
        content = as_safetensors(tensors(model))
        held[store.put_file(write(tmp_path / "m", content)).digest] = content
        model = tuned(model, number)
    content = as_gguf(quantised())
    held[store.put_file(write(tmp_path / "q", content)).digest] = content
    assert store.usage().stored == sum(bucket.objects(tmp_path).values())
    assert store.usage().stored < 0.7 * sum(map(len, held.values()))
    # Another machine knows nothing but the bucket.
    there = opened(bucket, tmp_path, tmp_path / "there")
    for one in (store, there):
        for name, content in held.items():
            assert one.size(name) == len(content)
            with one.open(name) as file:
                assert file.read() == content
            assert one.path(name).read_bytes() == content
            out = bytearray(len(content))
            one.read_into(name, out)
            assert out == content
            one.verify(name)
    # What it adds is told from what is there, also where that came since, and this machine finds it.
    other = as_safetensors({f"x.{n}": part for n, part in tensors(base(7)).items()})
    held[store.put_file(write(tmp_path / "o", other)).digest] = other
    before = there.usage().stored
    late = as_safetensors({f"x.{n}": part for n, part in tensors(tuned(base(7), 1)).items()})
    held[there.put_file(write(tmp_path / "late", late)).digest] = late
    assert there.usage().stored - before < len(late) // 5
    near = as_safetensors(tensors(tuned(base(), 9)))
    before = there.usage().stored
    blob = there.put_file(write(tmp_path / "near", near))
    assert there.usage().stored - before < len(near) // 5
    assert store.path(blob.digest).read_bytes() == near
    for name in held:
        assert there.delete(name)
    swept = there.sweep()
    assert swept.freed > 0 and [one.needed_by for one in swept.kept] == [(blob.digest,)]
    assert [one.digest for one in store.list()] == [blob.digest]
    out = bytearray(len(near))
    store.read_into(blob.digest, out)
    assert out == near
    store.verify(blob.digest)
    there.delete(blob.digest)
    there.sweep()
    assert bucket.objects(tmp_path) == {}
    store.close()
    there.close()


def test_a_whole_file_in_a_bucket_is_fetched_once(bucket: Bucket, tmp_path: Path) -> None:
    store = opened(bucket, tmp_path, tmp_path / "here")
    content = models.noise(9_000_000)
    blob = store.put([content])
    path = store.path(blob.digest)
    assert path.read_bytes() == content and path.is_relative_to(tmp_path / "here/.pressroom/cache/files")
    assert store.path(blob.digest) == path
    with store.open(blob.digest) as file:
        file.seek(5_000_000)
        assert file.read(10) == content[5_000_000:5_000_010]
        file.seek(100)
        assert file.read() == content[100:]
    assert store.delete(blob.digest)
    assert not path.exists()
    assert digest(content) == blob.digest
    store.close()


def test_a_machine_that_puts_and_one_that_sweeps_wait_for_each_other(bucket: Bucket, tmp_path: Path) -> None:
    here, there = (opened(bucket, tmp_path, tmp_path / name) for name in ("here", "there"))
    blob = here.put_file(models.model_file(tmp_path / "m", base()))
    with here._parts.putting(), pytest.raises(LockedError, match="puts files"), there._parts.sweeping(0.2):
        pass
    said: list[str] = []

    def put() -> None:
        said.append(here.put_file(models.model_file(tmp_path / "n", tuned(base(), 1))).digest)

    with there._parts.sweeping(5):
        thread = threading.Thread(target=put)
        thread.start()
        thread.join(0.3)
        assert said == []
    thread.join()
    there.sweep()
    for name in (blob.digest, *said):
        there.verify(name)
    assert not [name for name in bucket.objects(tmp_path) if name.startswith(("leases", "sweeps"))]
    here.close()
    there.close()


def test_a_lease_of_a_process_that_is_gone_holds_nobody_up(bucket: Bucket, tmp_path: Path) -> None:
    store = opened(bucket, tmp_path, tmp_path / "here")
    store.put_file(models.model_file(tmp_path / "m", base()))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for folder, host, at in (("leases", _host(), time.time()), ("sweeps", "another machine", time.time() - 90_000)):
        said = json.dumps({"host": host, "pid": process.pid, "at": at}).encode()
        store._place.put(f"{folder}/0123", said)
    store._place.put("leases/4567", json.dumps({"host": "another", "pid": 1, "at": time.time() - 90_000}).encode())
    assert store.sweep().freed == 0
    assert not [name for name in bucket.objects(tmp_path) if name.startswith(("leases", "sweeps"))]
    store.close()


def test_a_bucket_with_bad_days(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that do not come, come twice or come cut: it takes longer, and all is as it should be."""
    with faulty.FaultyProxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = opened(bucket, tmp_path, tmp_path / "here")
        contents = [as_safetensors(tensors(base())), as_safetensors(tensors(tuned(base(), 1)))]
        proxy.do(faulty.answer(503), when="PUT*packs", times=2)
        proxy.do(faulty.cut_after, when="PUT*files")
        proxy.do(faulty.twice, when="PUT*files")
        proxy.do(faulty.cut_within, when="GET*files")
        blobs = [store.put_file(write(tmp_path / str(n), data)) for n, data in enumerate(contents)]
        proxy.do(faulty.cut_within, when="GET*packs", times=2)
        proxy.do(faulty.shorter, when="GET*packs")
        proxy.do(faulty.answer(503), when="GET*packs", times=2)
        for blob, data in zip(blobs, contents, strict=True):
            store.verify(blob.digest)
            assert store.path(blob.digest).read_bytes() == data
        assert proxy.planned_left == 0
        assert store.usage().stored < 0.9 * len(contents[0])
        store.close()
