"""What every place must keep to, as tests: subclass `PlaceContract`, say where the place is, and run pytest.

class TestMyPlace(PlaceContract):
    def url(self, tmp_path: Path) -> str:
        return f"mine://{tmp_path}/pieces"
"""

from __future__ import annotations

import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from pressroom.kernel import NotFoundError, StoreError
from pressroom.store.places import Place, open_place

# Larger than whatever a place sends or reads in one go.
LARGE = (11 << 20) + 7
_NOT_NAMES = [
    "",
    "/",
    "/etc/passwd",
    "../up",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    ".hidden",
    "a/.hidden",
    "-option",
    "a/-option",
    "a b",
    "a\n",
    "a\0b",
    "a?b",
    "a#b",
    "a%2fb",
    "ä",
    "a\\b",
]
# Puts pieces under the names in argv, each its own bytes, and says so: another process that uses the same place.
_PUTTER = """
import sys
from pathlib import Path
from pressroom.store.places import open_place
from pressroom.testing.place_contract import some_bytes

place = open_place(sys.argv[1], Path(sys.argv[2]))
sys.stdin.readline()
for name in sys.argv[3:]:
    place.put(name, some_bytes(name, 300_000))
    print(name, flush=True)
place.close()
"""
# Is about to be killed: says when it has written a piece but not all of it, when it commits, and when it is through.
_KILLED = """
import sys
from pathlib import Path
from pressroom.store.places import open_place
from pressroom.testing.place_contract import some_bytes

place = open_place(sys.argv[1], Path(sys.argv[2]))
data = some_bytes("killed", int(sys.argv[3]))
with place.write() as writer:
    writer.write(data[: len(data) // 2])
    print("writing", flush=True)
    sys.stdin.readline()
    writer.write(data[len(data) // 2 :])
    print("committing", flush=True)
    writer.commit("killed/piece")
    print("committed", flush=True)
    sys.stdin.readline()
"""


def some_bytes(seed: object, size: int) -> bytes:
    """As many bytes without a pattern, always the same ones for a seed."""
    return blake3(str(seed).encode()).digest(length=size)


class PlaceContract(ABC):
    """Every test gets an empty place at `url`. Tests open it more than once, also in other processes."""

    @abstractmethod
    def url(self, tmp_path: Path) -> str:
        """The URL of an empty place; the same for the same `tmp_path`, which is also the root it is opened with."""

    def left_over(self, tmp_path: Path) -> list[str]:
        """What is there beside the pieces: of writers that are at work, or were killed."""
        return []

    def open(self, tmp_path: Path) -> Place:
        return open_place(self.url(tmp_path), tmp_path)

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        place = self.open(tmp_path)
        yield place
        place.close()

    @pytest.mark.parametrize("size", [0, 1, 1000, 5 << 20, (5 << 20) + 1, LARGE])
    def test_gives_back_what_was_put(self, place: Place, tmp_path: Path, size: int) -> None:
        content = some_bytes(size, size)
        place.put("a/piece", content)
        assert place.size("a/piece") == size
        assert place.read("a/piece", 0, size) == content
        assert place.read("a/piece", size // 3, size // 2) == content[size // 3 :][: size // 2]
        assert place.read("a/piece", size, 0) == b""
        out = bytearray(size)
        place.read_into("a/piece", 0, memoryview(out))
        assert out == content
        assert list(place.list("")) == [("a/piece", size)]
        assert self.left_over(tmp_path) == []
        local = place.local("a/piece")
        if local is not None:
            assert local.read_bytes() == content
            assert not local.stat().st_mode & 0o222

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_takes_bytes_of_every_kind_and_does_not_keep_them(self, place: Place, kind: type) -> None:
        content = bytearray(some_bytes("kind", 4000))
        given = kind(content)
        with place.write() as writer:
            writer.write(given)
            writer.write(memoryview(content)[:0])
            writer.write(memoryview(content).cast("I"))
            content[:4] = b"----"  # the caller uses its buffer again
            writer.commit("b")
        assert place.read("b", 4, 3996) == bytes(content)[4:]
        assert place.read("b", 4000, 4) != b"----"
        assert place.size("b") == 8000

    def test_many_small_writes_are_one_piece(self, place: Place) -> None:
        content = some_bytes("small", 7_000_000)
        with place.write(size=len(content)) as writer:
            for at in range(0, len(content), 99_991):
                writer.write(content[at : at + 99_991])
            assert list(place.list("")) == []
            writer.commit("c")
        assert place.read("c", 0, len(content)) == content

    @pytest.mark.parametrize("size", [1000, LARGE])
    def test_without_commit_nothing_is_kept(self, place: Place, tmp_path: Path, size: int) -> None:
        with place.write() as writer:
            writer.write(bytes(size))
        with pytest.raises(KeyError), place.write(size=size) as writer:
            writer.write(bytes(size))
            raise KeyError
        assert list(place.list("")) == []
        assert self.left_over(tmp_path) == []

    @pytest.mark.parametrize("size", [1000, LARGE])
    def test_a_name_keeps_its_bytes(self, place: Place, tmp_path: Path, size: int) -> None:
        first, second = some_bytes(1, size), some_bytes(2, size)
        place.put("kept", first)
        place.put("kept", first)
        assert place.read("kept", 0, size) == first
        place.put("kept", second)
        assert place.read("kept", 0, size) == first
        assert self.left_over(tmp_path) == []
        assert place.delete("kept")
        place.put("kept", second)
        assert place.read("kept", 0, size) == second

    def test_a_range_into_a_buffer(self, place: Place) -> None:
        content = some_bytes("range", LARGE)
        place.put("d", content)
        out = bytearray(10 << 20)
        place.read_into("d", 1000, memoryview(out)[100:-100])
        assert out[100:-100] == content[1000:][: len(out) - 200]
        assert out[:100] == out[-100:] == bytes(100)
        place.read_into("d", 0, memoryview(out)[:0])

    def test_more_than_there_is(self, place: Place) -> None:
        place.put("short", b"0123456789")
        for offset, length in ((0, 11), (5, 6), (10, 1), (11, 1), (1 << 40, 5)):
            with pytest.raises(StoreError) as caught:
                place.read("short", offset, length)
            assert "10 bytes" in str(caught.value)
            with pytest.raises(StoreError, match="10 bytes"):
                place.read_into("short", offset, memoryview(bytearray(length)))
        place.put("large", bytes(LARGE))
        with pytest.raises(StoreError, match=f"{LARGE} bytes"):
            place.read_into("large", 1, memoryview(bytearray(LARGE)))

    def test_what_is_not_there(self, place: Place) -> None:
        place.put("folder/piece", b"x")
        for name in ("nothing", "folder", "folder/other", "folder/piece/under"):
            assert place.size(name) is None
            assert place.delete(name) is False
            for ask in (
                lambda name=name: place.read(name, 0, 1),
                lambda name=name: place.read(name, 0, 0),
                lambda name=name: place.read_into(name, 0, memoryview(bytearray(1))),
                lambda name=name: place.read_into(name, 0, memoryview(bytearray(LARGE))),
                lambda name=name: place.local(name),
            ):
                with pytest.raises(NotFoundError) as caught:
                    ask()
                assert caught.value.facts["asked"] == name
                assert caught.value.hint
        assert list(place.list("")) == [("folder/piece", 1)]

    @pytest.mark.parametrize("name", _NOT_NAMES)
    def test_what_is_not_a_name_is_refused(self, place: Place, name: str) -> None:
        for ask in (
            lambda: place.put(name, b"x"),
            lambda: place.put(name, bytes(6 << 20)),
            lambda: place.read(name, 0, 1),
            lambda: place.read_into(name, 0, memoryview(bytearray(1))),
            lambda: place.local(name),
            lambda: place.size(name),
            lambda: place.delete(name),
        ):
            with pytest.raises(StoreError) as caught:
                ask()
            assert repr(name) in str(caught.value)
        assert list(place.list("")) == []

    def test_list_by_the_beginning_of_names(self, place: Place) -> None:
        names = {f"packs/{n:02}.pack": n for n in range(20)} | {
            "packs2/x": 3,
            "pack": 1,
            "blobs/ab/abc": 2,
            "blobs/ac/x": 4,
        }
        assert list(place.list("packs/")) == []
        for name, size in names.items():
            place.put(name, bytes(size))
        assert dict(place.list("")) == names
        for prefix in (
            "packs/",
            "packs",
            "pack",
            "packs/1",
            "packs/00.pack",
            "blobs/",
            "blobs/ab/",
            "blobs/a",
            "nothing/",
        ):
            expected = {name: size for name, size in names.items() if name.startswith(prefix)}
            assert sorted(place.list(prefix)) == sorted(expected.items())

    def test_a_list_goes_on_while_pieces_come_and_go(self, place: Place) -> None:
        for number in range(30):
            place.put(f"z/{number:02}", b"x")
        seen = set()
        for at, (name, _) in enumerate(place.list("z/")):
            seen.add(name)
            if at == 3:
                place.delete("z/29" if name != "z/29" else "z/28")
                place.put("z/30", b"x")
        assert len(seen) >= 28

    def test_delete(self, place: Place, tmp_path: Path) -> None:
        place.put("a/gone", b"1")
        place.put("a/kept", b"2")
        assert place.delete("a/gone") is True
        assert place.delete("a/gone") is False
        assert place.size("a/gone") is None
        assert list(place.list("a/")) == [("a/kept", 1)]
        with pytest.raises(NotFoundError):
            place.local("a/gone")
        other = self.open(tmp_path)
        assert other.size("a/gone") is None
        other.close()

    def test_a_place_opened_again_holds_the_same(self, place: Place, tmp_path: Path) -> None:
        place.put("a", b"kept")
        place.close()
        again = self.open(tmp_path)
        assert again.read("a", 0, 4) == b"kept"
        again.close()

    def test_threads_that_put_and_read_at_once(self, place: Place, tmp_path: Path) -> None:
        shared = some_bytes("shared", 6 << 20)
        out_of = threading.Barrier(6)

        def work(number: int) -> None:
            out_of.wait()
            place.put("shared", shared)
            for turn in range(3):
                content = some_bytes((number, turn), 200_000)
                place.put(f"own/{number}-{turn}", content)
                assert place.read(f"own/{number}-{turn}", 0, len(content)) == content
            out = bytearray(len(shared))
            place.read_into("shared", 0, memoryview(out))
            assert out == shared

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(work, range(6))) == [None] * 6
        assert len(list(place.list(""))) == 6 * 3 + 1
        assert self.left_over(tmp_path) == []

    def test_processes_that_put_at_once(self, place: Place, tmp_path: Path) -> None:
        names = [[f"p/{n}" for n in (1, 2, 3, 100 + number)] for number in range(3)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _PUTTER, self.url(tmp_path), str(tmp_path), *own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for own in names
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process, own in zip(processes, names, strict=True):
            out, _ = process.communicate()
            assert process.returncode == 0
            assert out.split() == own
        held = dict(place.list("p/"))
        assert set(held) == {name for own in names for name in own}
        for name in held:
            assert place.read(name, 0, 300_000) == some_bytes(name, 300_000)

    def killed(self, tmp_path: Path, size: int) -> subprocess.Popen[str]:
        """A process that has written half of `killed/piece`, and goes on when it gets a line."""
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, self.url(tmp_path), str(tmp_path), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    @pytest.mark.parametrize("size", [1000, LARGE * 2])
    def test_kill_minus_9_while_writing(self, place: Place, tmp_path: Path, size: int) -> None:
        process = self.killed(tmp_path, size)
        assert list(place.list("")) == []
        process.kill()
        process.communicate()
        again = self.open(tmp_path)
        assert list(again.list("")) == []
        assert self.left_over(tmp_path) == []
        again.put("killed/piece", b"another try")
        assert again.read("killed/piece", 0, 11) == b"another try"
        again.close()

    @pytest.mark.parametrize("size", [1000, LARGE * 2])
    def test_kill_minus_9_after_the_commit(self, place: Place, tmp_path: Path, size: int) -> None:
        process = self.killed(tmp_path, size)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "committing\n"
        assert process.stdout.readline() == "committed\n"
        process.kill()
        process.communicate()
        again = self.open(tmp_path)
        assert again.read("killed/piece", 0, size) == some_bytes("killed", size)
        assert self.left_over(tmp_path) == []
        again.close()

    def test_opening_leaves_living_writers_alone(self, place: Place, tmp_path: Path) -> None:
        process = self.killed(tmp_path, LARGE)
        self.open(tmp_path).close()
        out, _ = process.communicate("\n\n")
        assert out.split() == ["committing", "committed"]
        assert place.read("killed/piece", 0, LARGE) == some_bytes("killed", LARGE)
