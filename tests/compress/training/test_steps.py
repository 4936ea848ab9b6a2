"""The steps that train, on a tiny model: what they promise is measured on the files that they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress.models import load
from pressroom.compress.numbers import number_format
from pressroom.compress.steps import step
from pressroom.compress.weights import New, open_weights, rebuild
from pressroom.engines import perplexity
from pressroom.kernel import RecipeError
from tests.compress.calibrate.tiny_llama import TinyLlama

from .conftest import TEXT, Job, Run, figure, unread


def far(path: Path, teacher: Path) -> float:
    """Its divergence from the teacher on text that nobody was trained on."""
    found = unread(path, teacher).divergence
    assert found is not None
    return found


def test_distillation_brings_a_pruned_student_back(run: Run, narrowed: Path, teacher: Path) -> None:
    report, path = run("distil", source=narrowed, steps=30, rate=1e-3, alpha=0.9)
    before, after = figure(report, "teacher_kl_before"), figure(report, "teacher_kl")
    assert after < 0.5 * before
    assert figure(report, "train_tokens") == 30 * 4 * 64
    with open_weights(narrowed) as pruned, open_weights(path) as found:
        for tensor in pruned.linears:
            was, now = pruned.rows(tensor.name), found.rows(tensor.name)
            assert ((now == 0) == (was == 0)).mean() > 0.999 and (now[was == 0] == 0).all()
            assert not np.array_equal(was, now)
    assert report.notes == ["14 matrices kept their zeros"]
    assert far(path, teacher) < 0.5 * far(narrowed, teacher)


def test_zeros_are_given_up_where_they_need_not_be_kept(run: Run, narrowed: Path) -> None:
    report, path = run("distil", source=narrowed, steps=2, keep_zeros=False)
    with open_weights(path) as found:
        assert all((found.rows(tensor.name) == 0).mean() < 0.1 for tensor in found.linears)
    assert not report.notes


@pytest.mark.parametrize("architecture", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_student_from_scratch(run: Run, teacher: Path, architecture: str) -> None:
    report, path = run(
        "distil", student="scratch", layers=1, hidden=64, ffn=96, architecture=architecture, steps=40, rate=5e-3
    )
    assert figure(report, "teacher_kl") < 0.7 * figure(report, "teacher_kl_before")
    with open_weights(path) as found:
        assert found.architecture == architecture and found.value(f"{architecture}.block_count") == 1
        assert found.tensor("blk.0.ffn_up.weight").shape == (96, 64)
        assert {one.type for one in found.tensors.values()} == {"F16", "F32"}
    assert unread(path, teacher).loss < 3  # of log 288 = 5.7 nats


def test_what_the_outline_says_is_what_is_written(run: Run, teacher: Path) -> None:
    for method, options in (
        ("distil", {"student": "scratch", "layers": 1, "hidden": 64}),
        ("qat", {"to": "q4_0", "refresh": 1, "checkpoint": 0, "targets": r"blk\.0\..*"}),
        ("prune-training", {"ratio": 0.5, "every": 1, "checkpoint": 0, "train": r".*ffn.*"}),
        ("distil-sequence", {"student": "scratch", "layers": 1, "sequences": 8, "answer": 12}),
    ):
        made = step(method, {"steps": 2, **options})
        with open_weights(teacher) as source:
            outline = made.outline(source)
            assert outline is not None
            _, path = run(method, steps=2, **options)
            with open_weights(path) as found:
                assert list(outline.tensors) == list(found.tensors)
                for name, said in outline.tensors.items():
                    like = source.tensor(said) if isinstance(said, str) else None
                    expected = (like.type.lower(), like.shape) if like is not None else said
                    assert (found.tensor(name).type.lower(), found.tensor(name).shape) == expected, name
                for key, value in outline.metadata.items():
                    assert found.value(key) == value


def test_the_teachers_own_texts(run: Run, teacher: Path) -> None:
    options: dict[str, Any] = {"student": "scratch", "hidden": 64, "layers": 1, "steps": 30, "rate": 5e-3}
    report, path = run("distil-sequence", sequences=32, prompt=16, answer=40, sampling=0.7, **options)
    assert figure(report, "held_loss") < 0.75 * figure(report, "held_loss_before")
    assert 0 < figure(report, "teacher_answers_kept") <= 32 == figure(report, "teacher_answers")
    assert unread(path, teacher).loss < 3.5


@pytest.mark.parametrize(
    ("to", "rate", "share"), [("tq2_0", 5e-4, 0.7), pytest.param("q2_k", 1e-4, 0.8, marks=pytest.mark.slow)]
)
def test_training_on_the_grid_beats_rounding_after(run: Run, teacher: Path, to: str, rate: float, share: float) -> None:
    report, path = run("qat", to=to, steps=30, rate=rate, alpha=1.0, refresh=5, checkpoint=0)
    form = number_format(to)
    with open_weights(teacher) as source, open_weights(path) as found:
        assert {found.tensor(one.name).type for one in source.linears} == {to.upper()}
        rounded: dict[str, str | New] = {
            name: New(form, tensor.shape, form.encode(source.rows(name))) if tensor.role == "linear" else name
            for name, tensor in source.tensors.items()
        }
        plain = path.with_name("plain.gguf")
        rebuild(plain, source, rounded)
        assert len(report.tensors) == 14
    assert far(path, teacher) < share * far(plain, teacher)
    # llama.cpp runs it, and finds it nearer to the teacher, too.
    first, then = (perplexity(one, TEXT, windows=1, threads=1, reference=teacher).kl for one in (plain, path))
    assert first is not None and then is not None and then < first
    assert figure(report, "teacher_kl") < share * figure(report, "teacher_kl_before")


@pytest.mark.slow
def test_pruning_while_training_beats_pruning_after(run: Run, narrowed: Path, teacher: Path) -> None:
    report, path = run("prune-training", ratio=0.7, steps=30, rate=1e-3, alpha=1.0, every=3, checkpoint=0)
    with open_weights(path) as found:
        shares = [float((found.rows(one.name) == 0).mean()) for one in found.linears]
    assert all(abs(share - 0.7) < 0.001 for share in shares)
    assert figure(report, "zeros") == pytest.approx(0.7, abs=0.001)
    assert far(path, teacher) < 0.5 * far(narrowed, teacher)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("distil", {"alpha": 2.0, "steps": 0}, "steps = 0 is not from 1"),
        ("distil", {"alpha": 2.0, "steps": 0}, "alpha = 2.0 is not from 0.0 to 1.0"),
        ("distil", {"layers": 1}, "layers: sizes are those of a student = 'scratch'"),
        ("distil", {"student": "scratch", "hidden": 100, "heads": 7}, "hidden = 100 cannot be cut into 7 heads"),
        ("distil", {"student": "scratch", "architecture": "gpt2"}, "none of llama, qwen2, qwen3"),
        ("distil", {"train": "("}, "is not a regular expression"),
        ("distil", {"train": "nothing"}, "means none of the tensors"),
        ("distil", {"text": "/nowhere/text"}, "there is no text"),
        ("distil", {"window": 1024}, "more than the 512 tokens"),
        ("distil", {"device": "gpu"}, "is none of cpu, cuda"),
        ("qat", {}, "to is missing"),
        ("qat", {"to": "f16"}, "not a format of GGUF with blocks"),
        ("qat", {"to": "nf4"}, "not a format of GGUF with blocks"),
        ("qat", {"to": "q4_0", "refresh": 7}, "no multiple of refresh"),
        ("qat", {"to": "q4_0", "targets": "x"}, "means none of the linear layers"),
        ("prune-training", {"ratio": 1.5}, "ratio = 1.5 is not above 0 and below 1"),
        ("prune-training", {"ratio": 0.5, "steps": 4}, "take more steps"),
        ("distil-sequence", {"top_p": 0.0}, "top_p = 0.0"),
    ],
)
def test_bad_options(teacher: Path, method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as raised, open_weights(teacher) as source:
        step(method, options).check(source)
    assert said in raised.value.message


def test_rows_that_are_no_blocks(tmp_path: Path) -> None:
    from tests.compress.weights.gguf_files import tiny

    with (
        open_weights(tiny().write(tmp_path / "a.gguf")) as source,
        pytest.raises(RecipeError, match=r"rows of 14 tensors are no whole blocks of 256, as tq2_0 has them: blk\.0"),
    ):
        step("qat", {"to": "tq2_0"}).check(source)


def test_a_student_that_is_the_teacher(run: Run) -> None:
    with pytest.raises(RecipeError, match="nothing to learn"):
        run("distil", steps=2)


def test_a_teacher_of_another_vocabulary(run: Run, narrowed: Path, tmp_path: Path) -> None:
    with open_weights(narrowed) as source:
        other = tmp_path / "other.gguf"
        rows = source.rows("token_embd.weight")
        tensors: dict[str, str | New] = {name: name for name in source.tensors}
        tensors["token_embd.weight"] = New.of(np.concatenate([rows, rows[:8]]))
        rebuild(other, source, tensors)
        with open_weights(other) as made:
            assert load(made).shape.vocabulary == len(rows) + 8
    with pytest.raises(RecipeError, match="the teacher has 296 tokens, and the student 288"):
        run("distil", source=narrowed, job=Job(other, tmp_path), steps=2)


@pytest.mark.slow
def test_the_real_model_without_two_layers(smollm2: Path, tmp_path: Path) -> None:
    with open_weights(smollm2) as source:
        left = [layer for layer in range(30) if layer not in (14, 17)]
        tensors: dict[str, str | New] = {}
        for name, tensor in source.tensors.items():
            if tensor.layer is None:
                tensors[name] = name
            elif tensor.layer in left:
                tensors[name.replace(f"blk.{tensor.layer}.", f"blk.{left.index(tensor.layer)}.")] = name
        rebuild(tmp_path / "short.gguf", source, tensors, metadata={"llama.block_count": 28})
    made = step("distil", {"steps": 8, "batch": 2, "window": 256, "alpha": 1.0, "checkpoint": 0})
    with open_weights(tmp_path / "short.gguf") as source:
        made.check(source)
        report = made.run(source, tmp_path / "out.gguf", Job(smollm2, tmp_path))
    assert figure(report, "teacher_kl") < 0.95 * figure(report, "teacher_kl_before")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("distil", {}),
        pytest.param("qat", {"to": "q4_0", "refresh": 2}, marks=pytest.mark.slow),
        pytest.param("prune-training", {"ratio": 0.5, "every": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_same_bytes_again_and_after_a_kill(
    run: Run, narrowed: Path, teacher: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    options = {**options, "source": narrowed, "steps": 8, "checkpoint": 4, "batch": 1}
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    _, one = run(method, job=Job(teacher, folders[0]), **options)
    _, two = run(method, job=Job(teacher, folders[1]), **options)
    with pytest.raises(KeyboardInterrupt):
        run(method, job=Job(teacher, folders[2], stop_at=6), **options)
    job = Job(teacher, folders[2])
    report, three = run(method, job=job, **options)
    assert job.done[0] == 4 and "the training was taken up at step 4 of 8" in job.said
    assert figure(report, "train_tokens") == 8 * 64
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()


def test_experts_are_trained_and_keep_their_zeros(tmp_path: Path) -> None:
    teacher = TinyLlama(experts=4).write(tmp_path / "teacher.gguf")
    with open_weights(teacher) as source:
        tensors: dict[str, str | New] = {name: name for name in source.tensors}
        for part in ("gate", "up"):
            name = f"blk.0.ffn_{part}_exps.weight"
            values = source.rows(name).reshape(source.tensor(name).shape).copy()
            values[:, ::2] = 0
            tensors[name] = New.of(values, like=source.tensor(name))
        rebuild(tmp_path / "pruned.gguf", source, tensors)
    made = step("distil", {"steps": 20, "batch": 4, "window": 32, "rate": 3e-3, "alpha": 1.0, "checkpoint": 0})
    with open_weights(tmp_path / "pruned.gguf") as source:
        report = made.run(source, tmp_path / "out.gguf", Job(teacher, tmp_path))
        assert figure(report, "teacher_kl") < 0.9 * figure(report, "teacher_kl_before")
        with open_weights(tmp_path / "out.gguf") as found:
            for tensor in source.tensors.values():
                was, now = source.rows(tensor.name), found.rows(tensor.name)
                assert not np.array_equal(was, now) and (now[was == 0] == 0).all(), tensor.name
