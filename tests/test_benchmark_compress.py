"""What `benchmarks/compress.py` is made of: texts, types, the model, scores, sums and the picture."""

from __future__ import annotations

import json
import math
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_MODULES = ("compress", "_family", "_gateway_peers", "_gateway_running")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    yield
    for name in [*sys.modules]:
        if name in _MODULES or name.startswith("_compress_"):
            sys.modules.pop(name)


def serialised(value: Any, names: list[str] | None = None) -> bytes:
    """As R's `serialize` writes it, in its version 3."""

    def text(given: str) -> bytes:
        return struct.pack(">ii", 0x00040009, len(given.encode())) + given.encode()

    def item(given: Any, names: list[str] | None = None) -> bytes:
        flags = 0x200 if names else 0
        if given and isinstance(given[0], str):
            made = struct.pack(">ii", flags | 16, len(given)) + b"".join(map(text, given))
        elif given and isinstance(given[0], int):
            made = struct.pack(f">ii{len(given)}i", flags | 13, len(given), *given)
        else:
            made = struct.pack(">ii", flags | 19, len(given)) + b"".join(given)
        if names:
            made += struct.pack(">ii", 0x402, 1) + text("names") + item(names) + struct.pack(">i", 254)
        return made

    parts = [item(*one) if isinstance(one, tuple) else one for one in value] if isinstance(value, list) else value
    return b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8" + item(parts, names)


def test_lazy_data_of_r_is_read() -> None:
    from _compress_texts import lazy_data, unserialised

    lines = ["EMMA", "", "Émma Woodhouse, handsome,"]
    assert unserialised(serialised(lines)) == lines
    packed = zlib.compress(serialised(lines))
    data = b"before" + struct.pack(">i", len(serialised(lines))) + packed
    places = serialised([([6, len(packed) + 4],)], ["emma"])
    inner = places[14 + 4 + 5 :]
    header = places[: 14 + 4 + 5]
    index = header + struct.pack(">ii", 0x200 | 19, 1) + inner
    index += struct.pack(">ii", 0x402, 1) + struct.pack(">ii", 0x40009, 5) + b"names"
    index += struct.pack(">iiii", 16, 1, 0x40009, 9) + b"variables" + struct.pack(">i", 254)
    assert dict(lazy_data(zlib.compress(index), data)) == {"emma": lines}


def test_a_text_has_pages_of_its_sources_in_turn_and_of_no_others() -> None:
    from _compress_texts import _PAGES, mixed

    sources = {
        name: (letter * 10 * _PAGES) + letter.upper() * 10 * _PAGES
        for name, letter in zip(
            ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "jargon"),
            "emnpqj",
            strict=True,
        )
    }
    evaluation = mixed(sources, "evaluation").split("\n\n")
    assert [page[0].lower() for page in evaluation[:4]] == ["p", "n", "j", "p"]
    assert {len(page) for page in evaluation} == {_PAGES}
    assert {*"".join(evaluation)} == {*"pPnNJ"}
    assert {*mixed(sources, "training")} == {*"eEmMj\n"}
    assert {*mixed(sources, "calibration")} == {*"qQJ\n"}


def test_what_a_debian_package_holds_is_found() -> None:
    from _compress_texts import _member

    def file(name: str, data: bytes) -> bytes:
        return f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)

    archive = (
        b"!<arch>\n" + file("debian-binary", b"2.0\n") + file("control.tar.xz", b"abc") + file("data.tar.xz", b"x")
    )
    assert _member(archive, b"data.tar") == b"x"
    with pytest.raises(SystemExit, match=r"no data\.zip"):
        _member(archive, b"data.zip")


def tensors(columns: int, layers: int) -> list[Any]:
    from pressroom.compress.weights import Role, Tensor

    def tensor(name: str, role: Any, layer: int | None, part: str) -> Any:
        return Tensor(
            name=name,
            shape=(64, columns),
            type="BF16",
            number=30,
            offset=0,
            nbytes=128 * columns,
            role=role,
            layer=layer,
            part=part,
        )

    parts = ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down")
    return [
        tensor("token_embd.weight", Role.EMBEDDING, None, "token_embd"),
        *(tensor(f"blk.{layer}.{part}.weight", Role.LINEAR, layer, part) for layer in range(layers) for part in parts),
        tensor("output_norm.weight", Role.NORM, None, "output_norm"),
    ]


def test_anchors_have_the_types_that_llamacpp_gives() -> None:
    from _compress_anchors import ANCHORS, LOW_BIT, types

    wide = types("Q4_K_M", tensors(512, 16), layers=16, shared=3)
    assert wide["token_embd.weight"] == "q6_k"
    assert "output_norm.weight" not in wide
    assert wide["blk.7.ffn_up.weight"] == "q4_k"
    # The first and the last eighth, and every third between.
    more = [layer for layer in range(16) if wide[f"blk.{layer}.ffn_down.weight"] == "q6_k"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    narrow = types("Q4_K_M", tensors(576, 16), layers=16, shared=3)
    assert {*narrow.values()} == {"q5_0", "q8_0"}
    assert narrow["token_embd.weight"] == narrow["blk.0.attn_v.weight"] == "q8_0"
    assert types("Q3_K_M", tensors(576, 32), layers=32, shared=3)["blk.9.attn_q.weight"] == "iq4_nl"
    assert types("IQ4_NL", tensors(576, 4), layers=4, shared=3)["blk.1.attn_v.weight"] == "iq4_nl"
    assert types("IQ4_NL+", tensors(576, 4), layers=4, shared=3)["blk.1.attn_v.weight"] == "q5_1"
    assert types("Q4_0", tensors(576, 16), layers=16, shared=3)["blk.1.ffn_down.weight"] == "q4_1"
    for anchor in {*ANCHORS, *LOW_BIT}:  # none is in a type that rows of 576 have no blocks of
        found = {*types(anchor, tensors(576, 8), layers=8, shared=3).values()}
        assert found <= {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"}


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    from _compress_figures import interval, student

    # Tables of Student's t.
    for freedom, quantile in ((4, 2.7764), (9, 2.2622), (30, 2.0423), (79, 1.9905), (1000, 1.9623)):
        assert student(freedom) == pytest.approx(quantile, rel=0.01)
    random = np.random.default_rng(3)
    held = 0
    for _ in range(1000):
        low, high = interval(random.standard_normal(12) + 5)
        held += low <= 5 <= high
    assert 930 <= held <= 970
    assert interval(np.array([2.0])) == (2.0, 2.0)


def scores(offset: float, *, mb: float = 1.0) -> Any:
    from _compress_figures import Scored

    random = np.random.default_rng(5)
    windows = np.abs(random.standard_normal((8, 1))) + 1  # that windows differ is common to both
    kl = windows + np.abs(random.standard_normal((8, 4))) * 0.01 + offset
    return Scored(mb=mb, kl=kl, loss=kl + 2, same=np.tile([1.0, 1.0, 1.0, 0.0], (8, 1)))


def test_differences_are_taken_window_by_window() -> None:
    from _compress_figures import difference

    ours, theirs = scores(-0.1), scores(0.0)
    assert ours.figures()["kl_high"] > theirs.figures()["kl_low"]  # each by itself, they cannot be told apart
    found = difference(ours, theirs)
    assert found["kl_difference"] == pytest.approx(-0.1)
    assert found["kl_difference_high"] < -0.09
    figures = ours.figures()
    assert figures["kl_low"] < figures["kl"] < figures["kl_high"] <= figures["kl_p99"] + 1
    assert figures["top1"] == 0.75
    assert figures["perplexity"] == pytest.approx(math.exp(ours.loss.mean()), abs=1e-3)


def test_a_score_is_what_press_measure_says() -> None:
    from _compress_score import compared

    from pressroom.engines._llama import divergences, log_softmax_at

    random = np.random.default_rng(9)
    theirs = (random.standard_normal((40, 5000)) * 4 - 20).astype(np.float32)
    ours = (theirs + random.standard_normal(theirs.shape) * 0.05).astype(np.float32)
    targets = random.integers(0, 5000, 40).astype(np.int32)
    kl, loss, same = compared(theirs, ours, targets)
    assert np.abs(kl - divergences(theirs, ours)).max() < 2e-6  # of about 1e-3
    assert np.abs(loss + log_softmax_at(ours, targets)).max() < 1e-5
    assert same.sum() == (theirs.argmax(axis=1) == ours.argmax(axis=1)).sum()


def test_targets_are_judged_on_what_is_within_their_bytes() -> None:
    from compress import judged, point

    theirs = {"Q4_0": scores(0.5, mb=0.9), "Q8_0": scores(0.0, mb=1.5)}
    points = [
        point(scores(0.3, mb=0.89), theirs, budget=900_000, told={"seconds": 1.0}),
        point(scores(0.0, mb=1.49), theirs, budget=1_500_000, told={}),
    ]
    assert [one["anchor"] for one in points] == ["Q4_0", "Q8_0"]
    assert points[0]["anchor_mb"] == 0.9
    assert {"mb", "kl", "kl_low", "kl_high", "anchor_kl", "anchor_kl_low", "kl_difference_high"} <= points[0].keys()
    small, large = points[0]["kl"], points[1]["kl"]
    found = judged(
        {
            "met": (1.0, small * 1.01, "Q4_0"),
            "not": (1.0, small * 0.99, "Q4_0"),
            "large": (1.6, large * 1.01, "Q8_0"),
            "match": (1.6, None, "Q8_0"),
            "none": (0.1, 1.0, "Q4_0"),
        },
        points,
    )
    assert {name: one["met"] for name, one in found.items()} == {
        "met": True,
        "not": False,
        "large": True,
        "match": True,
        "none": None,
    }
    assert found["met"]["surely"] is False  # its interval is not below as a whole
    alone = point(scores(0.0), {}, budget=2_000_000, told={})
    assert alone["anchor"] is None


def test_the_reference_is_off_the_grid_and_healed_back(tmp_path: Path) -> None:
    from _compress_reference import dithered, permuted

    from pressroom.compress.numbers import number_format
    from pressroom.compress.weights import Changed, open_weights, write

    bare = small_model(tmp_path)
    with open_weights(bare) as source:
        q4_1 = number_format("q4_1")
        name = "blk.0.attn_q.weight"
        write(tmp_path / "grid.gguf", source, {name: Changed(q4_1, q4_1.encode(source.rows(name)))})
    with open_weights(tmp_path / "grid.gguf") as source:
        random = np.random.default_rng(1)
        values = dithered(source, source.tensors[name], random)
        before = source.rows(name)
        blocks = np.frombuffer(source.raw(name), np.uint8).reshape(-1, 20)[:, :2].copy().view("<f2").astype(np.float32)
        moved = (values - before).reshape(-1, 32) / np.abs(blocks)
        assert np.abs(moved).max() <= 0.5001
        assert moved.std() == pytest.approx(1 / math.sqrt(12), rel=0.02)
        norm = source.tensors["output_norm.weight"]
        assert np.array_equal(dithered(source, norm, random), source.rows(norm.name).reshape(norm.shape))
        for heads in ((4, 2), (8, 2)):
            there = permuted(values, name, heads, back=False)
            assert not np.array_equal(there, values)
            assert np.array_equal(permuted(there, name, heads, back=True), values)


def small_model(folder: Path) -> Path:
    from _compress_small import small

    text = folder / "training.txt"
    text.write_text("It was not what it was. " * 100, encoding="utf-8")
    return small(text, folder / "small.gguf", steps=1, layers=1)


def test_the_small_model_reads_as_llamacpp_does(tmp_path: Path) -> None:
    """What the torch model is trained on is what llama.cpp will be asked."""
    from _compress_small import tokens

    from pressroom.engines._llama import Llama

    model = Llama(small_model(tmp_path), window=64, threads=1)
    said = "It was, “perhaps”, 12 o'clock;\nno more."
    assert model.tokens(said).tolist() == tokens(said).tolist()


def test_scoring_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    from _compress_figures import scored

    model = small_model(tmp_path)
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes())
    text = tmp_path / "evaluation.txt"
    text.write_text("All that glisters is not gold. " * 80, encoding="utf-8")
    places = {"reference": model, "text": text, "threads": 1, "cache": tmp_path / "scores"}
    first = scored({"one": other}, windows=2, **places)["one"]
    assert first.kl.shape == first.loss.shape == first.same.shape == (2, 255)
    assert np.abs(first.kl).max() < 1e-5  # it is the reference itself
    assert first.same.all()
    whole = scored({"one": other}, windows=4, **places)["one"]
    assert np.array_equal(whole.loss[:2], first.loss)
    assert np.array_equal(scored({"one": other}, windows=3, **places)["one"].loss, whole.loss[:3])
    with pytest.raises(SystemExit, match="has 4 windows of 512 tokens, not 5"):
        scored({"one": other}, windows=5, **places)


@pytest.mark.slow
def test_the_quick_form_ends_in_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import compress

    for name in ("evaluation", "calibration", "training"):
        words = f"{name}: the quick brown fox did jump over the lazy dog, and then some.\n" * 60
        (tmp_path / f"{name}.txt").write_text(words, encoding="utf-8")
    svg = tmp_path / "drawn.svg"
    places = ["--texts", str(tmp_path), "--cache", str(tmp_path / "cache"), "--environments", str(tmp_path / "none")]
    compress.main(["--quick", *places, "--svg", str(svg), "--threads", "1"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["quick"] is True
    assert "without --quick makes it" in told["anchors_not_measured"]["Q3_K_M"]
    (one,) = told["points"]
    assert 0.7 * one["budget_mb"] < one["mb"] <= one["budget_mb"]
    assert one["kl_low"] <= one["kl"] <= one["kl_high"]
    ElementTree.fromstring(svg.read_text(encoding="utf-8"))


def test_the_picture_shows_every_file_and_target() -> None:
    from _compress_picture import draw

    def one(mb: float, kl: float) -> dict[str, Any]:
        return {"mb": mb, "kl": kl, "kl_low": kl * 0.9, "kl_high": kl * 1.1}

    found = {
        "points": [one(91.7, 0.05), one(105.4, 0.02), one(144.0, 0.001)],
        "anchors": {"Q4_0": one(91.7, 0.15), "Q8_0": one(144.8, 0.0015)},
        "targets": {"one": {"mb": 105.5, "kl": 0.028}, "other": {"mb": 112.3, "kl": None}},
        "scored_tokens": 20400,
    }
    drawn = draw({"smollm2": found}, {"date": "2026-11-22", "machine": "a <machine>", "quick": False})
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    circles = [mark.attrib for mark in root.iter(f"{space}circle")]
    assert len(circles) == 2 + 3 + 2  # the legend's, ours, theirs
    ours = [mark for mark in circles if mark["fill"] == "#2563a8"][1:]
    assert [float(a["cx"]) for a in ours] == sorted(float(a["cx"]) for a in ours)
    assert [float(a["cy"]) for a in ours] == sorted(float(a["cy"]) for a in ours)  # less is lower
    texts = {text.text for text in root.iter(f"{space}text")}
    assert {"Q4_0", "Q8_0", "0.01", "targets"} <= texts
