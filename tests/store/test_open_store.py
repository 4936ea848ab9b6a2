"""The store that the settings name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pressroom.kernel import Settings, SettingsError, Workspace
from pressroom.store import open_store
from pressroom.store.backends.file import Backend


def test_the_default_is_a_directory_of_the_workspace(tmp_path: Path) -> None:
    store = open_store(Workspace(tmp_path, Settings()))
    assert isinstance(store, Backend)
    assert store.path(store.put([b"x"]).digest).is_relative_to(tmp_path / ".pressroom/store")


@pytest.mark.parametrize(
    "url", ["s33://bucket", "fil://store", "store", "file:store", "://x", "file://", "_x://y", "base://y"]
)
def test_a_store_that_nothing_serves(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(Workspace(tmp_path, Settings(store=url)))
    assert repr(url) in str(caught.value)
    assert ("s3" if url.startswith("s33") else "file") in caught.value.hint
