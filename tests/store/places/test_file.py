"""The place in a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pressroom.kernel import SettingsError, StoreError, StoreFullError
from pressroom.store.places import open_place
from pressroom.testing.place_contract import PlaceContract


class TestFile(PlaceContract):
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/place"


def test_pieces_are_files_that_nobody_writes_to(tmp_path: Path) -> None:
    place = open_place("file://store", tmp_path)
    place.put("packs/a", b"content")
    assert (tmp_path / "store/packs/a").read_bytes() == b"content"
    assert (tmp_path / "store/packs/a").stat().st_mode & 0o777 == 0o444


def test_room_is_looked_for_before_the_first_byte(tmp_path: Path) -> None:
    place = open_place("file://store", tmp_path)
    with pytest.raises(StoreFullError, match="are needed"), place.write(size=1 << 60):
        pytest.fail("there is no such disk")
    assert list(place.list("")) == []


@pytest.mark.parametrize("url", ["file://", "nothing", "file://a\0b", "file:relative", "ftp://a"])
def test_urls_that_name_no_place(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError):
        open_place(url, tmp_path)


def test_a_file_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises(StoreError, match="is not a directory"):
        open_place("file://store", tmp_path)
    assert (tmp_path / "store").read_text() == "mine"


def test_another_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    place = open_place("file://store", tmp_path)
    with place.write() as writer:
        writer.write(b"slow")
        open_place("file://store", tmp_path)  # sweeps
        writer.commit("a")
    assert place.read("a", 0, 4) == b"slow"
    assert os.listdir(tmp_path / "store/tmp") == []
