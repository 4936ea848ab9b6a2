"""Tags, aliases, floors, keys, families, differences, space and transfer from the command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pressroom.cli._app import run
from pressroom.deploy import Deployments
from pressroom.kernel import Workspace
from pressroom.registry import Figure, FileEntry, Registry


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PRESS_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models(here: Path) -> Path:
    """m:1 is the base of m:2 and m:3; m:3 is better and smaller."""
    with Workspace.open(here) as workspace:
        registry = Registry(workspace)

        def make(content: bytes, **more: Any) -> str:
            blob = registry.store.put([content])
            entry = FileEntry(path="notes.txt", blob=blob.digest, size=blob.size)
            return registry.register("m", [entry], **more).digest

        base = make(b"base" * 100, figures=[Figure(name="perplexity", value=20.0)])
        make(b"worse" * 80, kind="fine-tune", parent=base, figures=[Figure(name="perplexity", value=24.0)])
        make(
            b"small",
            kind="quantised",
            parent=base,
            figures=[Figure(name="perplexity", value=20.4), Figure(name="kl_mean", value=0.0125)],
        )
    return here


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run([*arguments]) == code, capsys.readouterr()
    return capsys.readouterr().out


def read(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(said(capsys, *arguments, "--json", code=code))


def test_tags_and_descriptions(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "reviewed=yes  team=search" in said(capsys, "tag", "m:1", "team=search", "reviewed=yes")
    assert read(capsys, "tag", "m:1", "reviewed=", "a=b=c")["tags"] == {"team": "search", "a": "b=c"}
    assert "For the phones" in said(capsys, "describe", "m:1", "For the phones")
    shown = said(capsys, "show", "m:1")
    assert "For the phones" in shown and "a=b=c  team=search" in shown
    assert read(capsys, "show", "m:1")["description"] == "For the phones"
    assert run(["tag", "m:1", "team"]) == 2
    assert read(capsys, "tag", "m:1", "=x", code=1)["error"]["code"] == "annotation"


def test_promotion_from_floor_to_history(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No floor" in said(capsys, "floor", "m")
    assert "Nothing yet" in said(capsys, "history")
    floor = said(
        capsys, "floor", "m", "production", "--max", "perplexity=+3%parent", "--max", "bytes=10kB", "--why", "so"
    )
    assert "parent+3%" in floor
    assert read(capsys, "floor", "m")["floors"]["production"] == [
        {"figure": "bytes", "sense": "max", "bound": "10kB"},
        {"figure": "perplexity", "sense": "max", "bound": "parent+3%"},
    ]
    error = read(capsys, "promote", "m:2", "production", code=1)["error"]
    assert error["code"] == "promotion" and "perplexity is 24" in error["message"] and error["hint"]
    assert "m:production → m:3" in said(capsys, "promote", "m:3", "production", "--why", "small and good")
    assert "already" in said(capsys, "promote", "m:3", "production")
    assert "production" in said(capsys, "list")
    assert read(capsys, "show", "m:production")["version"] == 3
    error = read(capsys, "rm", "m:production", code=1)["error"]
    assert error["code"] == "in_use" and "press demote m production" in error["message"]
    assert "m:production is gone" in said(capsys, "demote", "m", "production")
    table = said(capsys, "history", "m")
    assert [line.endswith("no reason given") for line in table.splitlines()] == [False] * 4 + [True]
    assert "small and good" in table and "perplexity is 24" in table and "max bytes=10kB" in table
    assert [move["action"] for move in read(capsys, "history", "m", "production")] == [
        "floor set",
        "refused",
        "promoted",
        "demoted",
    ]
    assert run(["floor", "m", "--max", "bytes=1"]) == 2
    assert "no sheet of m has speed yet" in run_err(capsys, "floor", "m", "production", "--min", "speed=3")
    said(capsys, "floor", "m", "production", "--remove", "speed", "--remove", "bytes")
    said(capsys, "promote", "m:2", "canary")
    below = run_err(capsys, "floor", "m", "canary", "--max", "bytes=10")
    assert "m:canary points to m:2, which does not meet it: bytes is 400" in below
    assert len(read(capsys, "floor", "m", "production")["floors"]["production"]) == 1


def run_err(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run([*arguments]) == 0
    return capsys.readouterr().err


def test_keys_and_the_right_to_promote(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No keys" in said(capsys, "keys")
    made = read(capsys, "keys", "create", "ci", "--right", "promote:m", "--right", "write:m*")
    secret = made["secret"]
    assert made["rights"] == ["promote:m", "write:m*"] and secret.startswith("pr-")
    assert read(capsys, "keys") == read(capsys, "keys", "list")
    assert secret not in said(capsys, "keys", "list")
    assert read(capsys, "promote", "m:1", "production", code=1)["error"]["code"] == "access"
    monkeypatch.setenv("PRESS_KEY", secret)
    assert "by key:ci" in said(capsys, "promote", "m:1", "production")
    monkeypatch.delenv("PRESS_KEY")
    assert read(capsys, "demote", "m", "production", "--key", secret)["who"] == "key:ci"
    assert "ci is revoked" in said(capsys, "keys", "revoke", "ci")
    assert read(capsys, "promote", "m:1", "production", "--key", secret, code=1)["error"]["code"] == "access"
    assert read(capsys, "keys", "list", "--revoked")[0]["revoked"] > 0
    assert "REVOKED" in said(capsys, "keys", "list", "--revoked")
    error = read(capsys, "keys", "create", "x", "--right", "own", code=1)["error"]
    assert "own" in error["message"] and "promote" in error["hint"]
    assert run(["keys", "create", "x"]) == 2
    captured = run(["keys", "create", "plain", "--right", "read"]), capsys.readouterr()
    assert captured[1].out.startswith("pr-") and len(captured[1].out.split()) == 1  # the secret alone, for a script


def test_the_family(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Workspace.open(models) as workspace:
        registry = Registry(workspace)
        registry.promote("m:3", "production")
        version = registry.get("m:3")
        Deployments(workspace).put("chat", ref="m:3", digest=version.digest, engine="echo")
        frees = registry.store.cost(version.files[0].blob)
    tree = said(capsys, "lineage", "m:2", "--svg", "family.svg").splitlines()
    assert tree[0].startswith("m:1  base, 400 B") and "◀" in tree[1] and "m:2" in tree[1]
    assert tree[3].startswith("└── m:3  quantised, 5 B") and "production, deployed as chat" in tree[3]
    assert "−395 B" in tree[4] and "20 → 20.4 (+2.0%)" in tree[4] and "KL 0.0125" in tree[4]
    drawing = ElementTree.parse(models / "family.svg").getroot()
    words = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"m:1", "m:2", "m:3", "KL 0.0125", "production, deployed as chat"} <= set(words)
    found = read(capsys, "lineage", "m:2")
    assert [member["refs"] for member in found["members"]] == [["m:1"], ["m:2"], ["m:3"]]
    assert tree[-1].startswith("◀ is what you asked for")
    child = found["members"][2]
    assert child["frees_bytes"] == frees and child["step"]["bytes"] == -395 and child["deployed"] == ["chat"]
    assert child["step"]["perplexity"]["percent"] == pytest.approx(2.0) and child["step"]["kl_mean"] == 0.0125


def test_long_names_in_a_drawing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["support-tickets-finetuned-2026-10-rank-64-checkpoint-000400-of-001200", "M" * 60]
    with Workspace.open(here) as workspace:
        registry = Registry(workspace)
        parent = None
        for number, name in enumerate(names):
            blob = registry.store.put([b"x" * (number + 1)])
            entry = FileEntry(path="notes.txt", blob=blob.digest, size=blob.size)
            parent = registry.register(name, [entry], parent=parent).digest
    said(capsys, "lineage", names[0], "--svg", "family.svg")
    drawing = ElementTree.parse(here / "family.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    for name, card in zip(names, drawing.findall(f"{space}g"), strict=True):
        title, shown = card.findtext(f"{space}title"), card.findtext(f"{space}text[@class='name']")
        assert title is not None and title.startswith(f"{name}:1 / sha256-")
        assert shown is not None and "…" in shown
        beginning, end = shown.split("…")
        assert name.startswith(beginning) and f"{name}:1".endswith(end) and abs(len(beginning) - len(end)) <= 1
        width = float(next(card.iter(f"{space}rect")).attrib["width"])
        assert 14 * 0.6 * len(shown) < width - 24  # as wide as letters are on average, in a bold font of 14 pixels
    assert 14 * 1.0 * len(shown) < width - 24  # and this one as wide as an M is


@pytest.mark.parametrize("taken", [False, True])
def test_a_drawing_that_cannot_be_written(models: Path, capsys: pytest.CaptureFixture[str], taken: bool) -> None:
    (models / "old.svg").write_text("old")
    if taken:  # a file where the folder should be
        (models / "there").write_text("")
    error = read(capsys, "lineage", "m:2", "--svg", "there/family.svg", code=1)["error"]
    assert (
        error["code"] == "store"
        and "there/family.svg" in error["message"]
        and "name a file in" in error["hint"].lower()
    )
    assert "Errno" not in error["message"]
    if not taken:
        assert "mkdir -p there" in error["hint"]
    said(capsys, "lineage", "m:2", "--svg", "old.svg")
    assert (models / "old.svg").read_text().startswith("<svg")
    assert not [*models.glob(".*.partial")]


def test_differences(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "diff", "m:1", "m:3")
    assert "notes.txt  changed, 400 B → 5 B" in shown
    assert said(capsys, "diff", "m:1", "m:1") == "m:1 is m:1: there is nothing to compare.\n"
    with Workspace.open(models) as workspace:
        registry = Registry(workspace)
        registry.register("copy", registry.get("m:1").files)
    assert "m:1 and copy:1 are the same: they have the same files" in said(capsys, "diff", "m:1", "copy:1")
    assert read(capsys, "diff", "m:1", "m:3")["files"][0]["what"] == "changed"


def test_tensors_in_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save

    with Workspace.open(here) as workspace:
        registry = Registry(workspace)
        for step in (0.0, 0.5):
            tensors = {f"layer.{n}": torch.ones(4, 4) + step * n for n in range(30)}
            blob = registry.store.put([save(tensors)])
            entry = FileEntry(path="model.safetensors", blob=blob.digest, size=blob.size)
            registry.register("w", [entry], metadata={"layers": 30 + step})
    shown = said(capsys, "diff", "w:1", "w:2")
    assert "29 tensors differ, 1 is the same" in shown and "and 9 more" in shown
    rows = shown.splitlines()
    assert rows[2].split() == ["layer.29", "values", "F32", "4×4", "100%", "14.5", "14.5"]
    assert "layers: 30.0 → 30.5" in shown
    assert "layer.1 " in said(capsys, "diff", "w:1", "w:2", "--all")


def test_space_is_given_back(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Workspace.open(models) as workspace:
        Registry(workspace).store.put([b"loose" * 1000])
    assert "would be let go of: 1 file that no version has, 5.0 kB" in said(capsys, "gc", "--dry-run")
    found = read(capsys, "gc")
    assert (found["loose_files"], found["loose_bytes"], found["versions"]) == (1, 5000, 3)
    assert found["usage"]["files"] == 3 and found["usage"]["logical"] == 805
    assert read(capsys, "gc")["loose_bytes"] == 0
    assert "3 versions, 3 files: 805 B" in said(capsys, "gc")


def test_a_lost_database_does_not_cost_the_bytes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for left in (models / ".pressroom").glob("pressroom.db*"):
        left.unlink()
    assert "3 files that no version has" in said(capsys, "gc", "--dry-run")
    assert "Was the database lost?" in said(capsys, "list")
    error = read(capsys, "gc", code=1)["error"]
    assert error["loose_files"] == 3 and "lost" in error["hint"] and "--all-of-it" in error["hint"]
    with Workspace.open(models) as workspace:
        assert len(Registry(workspace).loose()) == 3
    assert read(capsys, "gc", "--all-of-it")["loose_files"] == 3
    # Where there were versions once, nothing is lost: they were removed.
    with Workspace.open(models) as workspace:
        registry = Registry(workspace)
        blob = registry.store.put([b"one"])
        registry.register("m", [FileEntry(path="notes.txt", blob=blob.digest, size=blob.size)])
        registry.delete("m:1")
        registry.store.put([b"loose"])
    assert read(capsys, "gc")["loose_files"] == 1
    assert "lost" not in said(capsys, "list")


_FULL = """
import os, sys
from pathlib import Path
from pressroom.cli._app import run

os.chdir(sys.argv[1])
for name in ("a", "b"):
    assert run(["pull", str(Path(sys.argv[2]) / name)]) == 0
with open("fill", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
assert run(["list", "--json"]) == 1
assert run(["rm", "a"]) == 0
assert run(["gc", "--json"]) == 0
assert run(["show", "b", "--json"]) == 0
assert Path(".pressroom/reserve").exists()
os.unlink(".pressroom/reserve")
"""


def test_room_can_be_made_on_a_full_disk(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    header = b'{"w": {"dtype": "U8", "shape": [8000000], "data_offsets": [0, 8000000]}}'
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        content = len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(8_000_000)
        (tmp_path / name / "model.safetensors").write_bytes(content)
    disk = tmp_path / "disk"
    disk.mkdir()
    # In a mount namespace of its own: the small disk is gone with the process.
    command = 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$1" -c "$2" "$0" "$3"'
    done = subprocess.run(
        [*unshare, "bash", "-c", command, str(disk), sys.executable, _FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "its disk is full" in done.stdout and "press rm REF" in done.stdout


def test_verify_ends_with_one_where_something_is_wrong(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "3 files of 3 versions whole" in said(capsys, "verify")
    assert read(capsys, "verify", "m:1")["sound"] is True
    with Workspace.open(models) as workspace:
        registry = Registry(workspace)
        registry.store.delete(registry.get("m:2").files[0].blob)
    report = said(capsys, "verify", code=1)
    assert "missing  m:2  notes.txt\n" in report and "1 problem\n" in report
    assert [problem["kind"] for problem in read(capsys, "verify", "m:2", code=1)["problems"]] == ["missing"]
    assert said(capsys, "verify", "m:3")


def test_from_one_workspace_to_another(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = read(capsys, "export", "m:3", str(tmp_path / "usb"), "--with-parents")
    assert [version["ref"] for version in made["versions"]] == ["m:1", "m:3"]
    assert "press import" in said(capsys, "export", "m:1", "m:2", str(tmp_path / "usb"))
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setenv("PRESSROOM_WORKSPACE", str(there))
    assert "is whole" in said(capsys, "import", made["path"], "--check")
    assert read(capsys, "import", made["path"], "--check")["blake3"] == made["blake3"]
    assert read(capsys, "list") == []
    done = read(capsys, "import", made["path"])
    assert [(one["there"], one["ref"], one["known"]) for one in done] == [("m:1", "m:1", False), ("m:3", "m:3", False)]
    assert "was here already" in said(capsys, "import", made["path"])
    content = Path(made["path"]).read_bytes()
    (tmp_path / "cut").write_bytes(content[:-1])
    error = read(capsys, "import", str(tmp_path / "cut"), code=1)["error"]
    assert error["code"] == "archive" and error["hint"]
    assert read(capsys, "import", str(tmp_path / "nothing"), code=1)["error"]["code"] == "not_found"
    for begins, words in (
        (b"\x80\x04\x95", "it begins with other bytes"),
        (b"hello, world", "it begins with 'hello, world'"),
        (b"", "it is empty"),
        (b"PRESSROOM-ARCHIVE 2\n", "in a format that this Pressroom does not read"),
    ):
        (tmp_path / "other").write_bytes(begins)
        error = read(capsys, "import", str(tmp_path / "other"), code=1)["error"]
        assert words in error["message"] and "b'" not in error["message"] and error["hint"]


def test_plain_files_are_given_back(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 file, 5 B written and checked" in said(capsys, "get", "m:3", "out")
    assert (models / "out" / "notes.txt").read_bytes() == b"small"
    assert "1 file there already" in said(capsys, "get", "m:3", "out")
    error = read(capsys, "get", "m:1", "out", code=1)["error"]
    assert error["files"] == ["notes.txt"] and "--force" in error["hint"]
    found = read(capsys, "get", "m:1", "out", "--force")
    assert (found["ref"], found["bytes"]) == ("m:1", 400)
    assert [(file["path"], file["written"]) for file in found["files"]] == [("notes.txt", True)]
    assert (models / "out" / "notes.txt").read_bytes() == b"base" * 100
    assert read(capsys, "get", "m:9", "out", code=1)["error"]["code"] == "not_found"


def test_nothing_heavy_loads_for_the_help() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pressroom", "--help"], capture_output=True, text=True, check=True
    )
    assert all(f"  {name}" in done.stdout for name in ("promote", "lineage", "gc", "keys", "import"))
    assert not any(f"| {' ' * depth}{name}\n" in done.stderr for name in ("sqlalchemy", "numpy") for depth in range(20))
