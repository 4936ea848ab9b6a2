"""What every place of the store must keep to, as tests: subclass `PlaceContract` and say where it is.

class TestMyPlace(PlaceContract):
    def url(self, tmp_path: Path) -> str:
        return f"mine://{tmp_path}/place"
"""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from pressroom.kernel import NotFoundError, StoreError
from pressroom.store.places import Place, open_place

# Says when it has begun to write, and would write for ever.
_ENDLESS = """
import sys
from pathlib import Path
from pressroom.store.places import open_place

place = open_place(sys.argv[1], Path(sys.argv[2]))
with place.write() as writer:
    for _ in range(10**9):
        writer.write(bytes(1 << 16))
        print("on its way", flush=True)
"""
_NOT_NAMES = ["", "/a", "../a", "a/../b", "a//b", "a/", ".a", "a/.b", "-a", "a b", "a\n", "a\0", "ä", "a\\b"]


def some_bytes(seed: object, size: int) -> bytes:
    """As many bytes without a pattern, always the same ones for a seed."""
    return blake3(str(seed).encode()).digest(length=size)


class PlaceContract(ABC):
    """Every test gets an empty place at `url`."""

    @abstractmethod
    def url(self, tmp_path: Path) -> str:
        """Names an empty place; the same for the same `tmp_path`."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return open_place(self.url(tmp_path), tmp_path)

    @pytest.mark.parametrize("size", [0, 1, 4096, 3_000_000, 20_000_000])
    def test_what_is_put_is_read(self, place: Place, size: int) -> None:
        content = some_bytes(size, size)
        place.put("packs/one.pack", content)
        assert place.size("packs/one.pack") == size
        assert place.read("packs/one.pack", 0, size) == content
        out = bytearray(size)
        place.read_into("packs/one.pack", 0, memoryview(out))
        assert out == content

    def test_parts_are_read(self, place: Place) -> None:
        content = some_bytes("parts", 100_000)
        place.put("a/b/c", content)
        for offset, length in ((0, 0), (0, 1), (1, 99_999), (50_000, 7), (99_999, 1)):
            assert place.read("a/b/c", offset, length) == content[offset : offset + length]
        for offset, length in ((99_999, 2), (100_000, 1), (0, 100_001)):
            with pytest.raises(StoreError):
                place.read("a/b/c", offset, length)

    def test_a_local_file_is_the_piece(self, place: Place) -> None:
        place.put("a", b"content")
        found = place.local("a")
        assert found is None or found.read_bytes() == b"content"
        with pytest.raises(NotFoundError):
            place.local("b")

    def test_what_is_not_there_is_said(self, place: Place) -> None:
        assert place.size("nothing") is None
        assert place.delete("nothing") is False
        with pytest.raises(NotFoundError, match="nothing"):
            place.read("nothing", 0, 1)

    def test_pieces_are_listed_by_how_their_names_begin(self, place: Place) -> None:
        for name in ("files/ab/one", "files/ac/two", "files.txt", "packs/p"):
            place.put(name, name.encode())
        assert sorted(place.list("")) == [
            ("files.txt", 9), ("files/ab/one", 12), ("files/ac/two", 12), ("packs/p", 7)
        ]  # fmt: skip
        assert sorted(name for name, _ in place.list("files/")) == ["files/ab/one", "files/ac/two"]
        assert sorted(name for name, _ in place.list("files/a")) == ["files/ab/one", "files/ac/two"]
        assert [name for name, _ in place.list("files/ab/")] == ["files/ab/one"]
        assert list(place.list("none/")) == []

    def test_deleting(self, place: Place) -> None:
        place.put("a/one", b"1")
        assert place.delete("a/one") is True
        assert place.size("a/one") is None and list(place.list("")) == []
        place.put("a/one", b"1")
        assert place.read("a/one", 0, 1) == b"1"

    def test_nothing_is_seen_before_it_is_whole(self, place: Place) -> None:
        with place.write() as writer:
            writer.write(b"begun")
            assert place.size("late") is None
            assert list(place.list("")) == []
            writer.write(b", done")
            writer.commit("late")
        assert place.read("late", 0, 11) == b"begun, done"

    def test_what_is_not_committed_is_dropped(self, place: Place) -> None:
        with place.write() as writer:
            writer.write(b"never")
        with pytest.raises(ZeroDivisionError), place.write(size=5) as writer:
            writer.write(b"never")
            raise ZeroDivisionError
        assert list(place.list("")) == []

    def test_putting_again_changes_nothing(self, place: Place) -> None:
        place.put("a", b"the same")
        place.put("a", b"the same")
        assert place.read("a", 0, 8) == b"the same" and list(place.list("")) == [("a", 8)]

    def test_many_at_once(self, place: Place) -> None:
        def there_and_back(number: int) -> bool:
            content = some_bytes(number % 5, 50_000)
            place.put(f"a/{number % 5}", content)
            return place.read(f"a/{number % 5}", 0, 50_000) == content

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(there_and_back, range(20)))
        assert len(list(place.list(""))) == 5

    @pytest.mark.parametrize("name", _NOT_NAMES)
    def test_what_is_no_name_is_refused(self, place: Place, name: str) -> None:
        for use in (place.size, place.local, place.delete, lambda n: place.read(n, 0, 1), lambda n: place.put(n, b"")):
            with pytest.raises(StoreError, match="cannot name a piece"):
                use(name)

    def test_a_killed_writer_leaves_nothing_that_is_seen(self, tmp_path: Path) -> None:
        url = self.url(tmp_path)
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        writing = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, url, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writing.stdout is not None
        with writing:
            for _ in range(50):
                assert writing.stdout.readline() == "on its way\n"
            writing.kill()
        place = open_place(url, tmp_path)
        assert list(place.list("")) == []
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
