"""`press formats`: the table, the bits of a block, and weights before and after; the drawings are read as XML."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pressroom.cli._formats_svg import layout_svg, values_svg
from pressroom.cli._formats_told import code_bits, levels_of, told
from pressroom.cli._weights_svg import BeforeAfter, weights_svg
from pressroom.cli.formats import formats as command
from pressroom.compress.numbers import Uniform, formats, number_format
from pressroom.kernel import PressroomError, Workspace
from pressroom.registry import Registry, pull
from tests.compress.weights.gguf_files import tiny

NAMES = [*(form.name for form in formats()), *Uniform.examples]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pressroom.toml").write_text("", encoding="utf-8")
    with Workspace.open(tmp_path) as workspace:
        pull(workspace, str(tiny().write(tmp_path / "tiny.gguf")), name="tiny")
    return tmp_path


def said(*arguments: str) -> str:
    found = CliRunner().invoke(command, [*arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def read(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json"))


def texts(drawing: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def test_the_table(tmp_path: Path) -> None:
    rows = read()["formats"]
    assert {row["name"] for row in rows} == set(NAMES)
    assert [row["bits"] for row in rows] == sorted((row["bits"] for row in rows), reverse=True)
    assert all(row["values"] and row["run_by"] for row in rows)
    shown = said("--svg", str(tmp_path / "values.svg"))
    assert "int4-g64-asym" in shown and "llama.cpp" in shown
    names = texts((tmp_path / "values.svg").read_text())
    assert {"q4_0", "nf4", "t2-g128"} <= set(names) and "f16" not in names


@pytest.mark.parametrize("name", NAMES)
def test_one_format(name: str, tmp_path: Path) -> None:
    found = read(name, "--svg", str(tmp_path / "bits.svg"))
    assert found["name"] == name
    form = number_format(name)
    if form.block:
        assert sum(piece["bits"] for piece in found["layout"]) == 8 * form.nbytes
    assert found["values"] in said(name)
    drawing = (tmp_path / "bits.svg").read_text()
    within_the_picture(drawing)
    if form.block > 1:
        # As many bits are drawn as there are.
        widths = [
            float(one.get("width", "0"))
            for one in ElementTree.fromstring(drawing).iter(f"{SVG}rect")
            if one.get("height") == "30"
        ]
        lengths = {round(width / piece["bits"], 1) for width, piece in zip(widths, found["layout"], strict=True)}
        assert len(lengths) == 1


def within_the_picture(drawing: str) -> None:
    root = ElementTree.fromstring(drawing)
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for one in root.iter():
        if one.tag in (f"{SVG}rect", f"{SVG}text"):
            x, y = float(one.get("x", "0")), float(one.get("y", "0"))
            assert 0 <= x <= width and 0 <= y <= height, one.attrib
            if one.tag == f"{SVG}rect":
                assert x + float(one.get("width", "0")) <= width + 0.1
            elif one.get("text-anchor") is None:
                # A letter takes up to 0.62 of its size.
                size = 16 if one.get("class") == "heading" else 12
                assert x + len("".join(one.itertext())) * size * 0.62 <= width + 60, "".join(one.itertext())
    numbers = [float(number) for number in re.findall(r"M(-?[\d.]+)", drawing)]
    assert all(0 <= number <= width for number in numbers)


def test_labels_do_not_lie_on_each_other() -> None:
    for name in ("q3_k", "q4_k", "q6_k", "tq1_0", "nf4", "int3-g32-asym"):
        root = ElementTree.fromstring(layout_svg(number_format(name)))
        rows: dict[str, list[tuple[float, float]]] = {}
        for one in root.iter(f"{SVG}text"):
            if one.get("class", "").startswith("bit"):
                half = len("".join(one.itertext())) * (5.0 if "small" in one.get("class", "") else 6.0) / 2
                x = float(one.get("x", "0"))
                rows.setdefault(one.get("y", ""), []).append((x - half, x + half))
        for ends in rows.values():
            ends.sort()
            assert all(before[1] <= after[0] + 0.5 for before, after in pairwise(ends)), name


def test_levels() -> None:
    assert levels_of(number_format("t2-g128")).tolist() == [-1, 0, 1]
    assert levels_of(number_format("tq2_0")).tolist() == [-1, 0, 1]
    assert levels_of(number_format("q4_0")) == pytest.approx(np.arange(-8, 8) / 8)
    assert levels_of(number_format("int3-g32")) == pytest.approx(np.arange(-4, 4) / 4)
    assert len(levels_of(number_format("nf4"))) == 16 and levels_of(number_format("nf4"))[7] == 0
    assert len(levels_of(number_format("q8_0"))) == 255
    for name in NAMES:
        form = number_format(name)
        if form.block != 1:
            bound = form.bound(np.zeros((1, form.block or 64), np.float32))
            assert len(levels_of(form)) <= 1 << code_bits(bound) or name == "tq1_0"
            assert np.abs(levels_of(form)).max() == 1
    assert told(number_format("int4-channel")).block == "a row"
    within_the_picture(values_svg([number_format(name) for name in NAMES if number_format(name).block != 1]))


def test_rounded_to_a_format(here: Path) -> None:
    found = read("int4", "--weights", "tiny", "--svg", "weights.svg")
    assert found["after"] == "q4_0" and found["bits"] == 4.5 and found["tensor"].startswith("blk.0.")
    assert 0 < found["error_share"] < 0.02 and found["weights"] == found["looked_at"]
    within_the_picture((here / "weights.svg").read_text())
    coarse = read("t2-g32", "--weights", "tiny", "--tensor", found["tensor"])
    assert coarse["error_share"] > 10 * found["error_share"] and coarse["zeros"] > 0.2
    assert "lost of their squares" in said("int8-tensor", "--weights", "tiny")


def test_a_version_beside_the_one_it_was_made_from(here: Path) -> None:
    with Workspace.open(here) as workspace:
        registry = Registry(workspace)
        parent = registry.get("tiny")
        name = "blk.0.ffn_up.weight"
        made = tiny()
        array = made.tensors[name]
        assert array.number == 0
        array.data = (np.frombuffer(array.data, "<f4") * np.float32(1.25)).astype("<f4").tobytes()
        pull(workspace, str(made.write(here / "other.gguf")), name="other", kind="fine-tune", parent=str(parent.ref))
    found = read("--weights", "other", "--tensor", name, "--svg", "weights.svg")
    assert found["before"] == "tiny:1 (F32)" and found["after"] == "other:1 (F32)"
    assert found["error_share"] == pytest.approx(0.0625)
    assert read("--weights", "other", "--tensor", "blk.0.ffn_down.weight")["error_share"] == 0


def test_refused(here: Path) -> None:
    for arguments, message in (
        (["q4_o"], "q4_o"),
        (["--tensor", "blk.0.ffn_up.weight"], "--tensor"),
        (["--weights", "tiny"], "made from no version"),
        (["q4_0", "--weights", "tony"], "tony"),
        (["q4_0", "--weights", "tiny", "--tensor", "blk.9.ffn_up.weight"], "no tensor"),
        (["q4_k", "--weights", "tiny"], "q4_k"),
        (["--svg", "no/such/folder.svg"], "folder"),
    ):
        with pytest.raises(PressroomError, match=message):
            CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_awkward_weights_can_be_drawn() -> None:
    zeros = np.zeros((2, 8), np.float32)
    for first, second in ((zeros, zeros), (zeros + 1, zeros), (np.eye(4, dtype=np.float32) * 1e30, np.eye(4) * 0)):
        found = BeforeAfter(
            name="<b>&", before='"x"', after="y", first=first, second=second.astype(np.float32), of=first.size
        )
        within_the_picture(weights_svg(found))
        json.dumps(found.as_dict(), allow_nan=False)
