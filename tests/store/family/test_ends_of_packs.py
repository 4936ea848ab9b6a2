"""The tables at the ends of packs: verify looks at them while the index lives, and a sweep writes them anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pressroom.kernel import DigestMismatchError, Settings, Workspace
from pressroom.store import open_store


def safetensors(seed: int, elements: int) -> bytes:
    """One tensor of bf16 values that can be made smaller."""
    import json
    import struct

    values = (np.random.default_rng(seed).standard_normal((elements // 64, 64)) * 0.05).astype(np.float32)
    body = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    head = {"w": {"dtype": "BF16", "shape": [elements // 64, 64], "data_offsets": [0, len(body)]}}
    header = json.dumps(head).encode().ljust(96)
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_table_that_only_a_rebuild_needs_is_checked_and_mended(tmp_path: Path, harm: str) -> None:
    workspace = Workspace(tmp_path, Settings())
    store = open_store(workspace)
    content = safetensors(1, 1 << 18)
    (tmp_path / "model.safetensors").write_bytes(content)
    blob = store.put_file(tmp_path / "model.safetensors")
    (pack,) = (tmp_path / ".pressroom/store/packs").iterdir()
    raw = bytearray(pack.read_bytes())
    raw[-50] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(raw[:-100] if harm == "cut" else raw)
    with pytest.raises(DigestMismatchError, match="not without the index") as caught:
        store.verify(blob.digest)
    assert "press gc" in caught.value.hint
    store.sweep()
    store.verify(blob.digest)
    store.close()
    for index in (tmp_path / ".pressroom/store").glob("index.db*"):
        index.unlink()
    again = open_store(workspace)
    again.verify(blob.digest)
    with again.open(blob.digest) as file:
        assert file.read() == content
