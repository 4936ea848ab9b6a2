"""`press bench` on a real server with echo engines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.cli._app import run
from pressroom.cli._bench_svg import bench_svg
from pressroom.deploy import Deployments, Phase, Server, wait_until
from pressroom.gateway.bench import Round, Spread
from pressroom.kernel import Workspace

_SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace whose server runs two echoes: parrot, and zoo/slow, which takes a while for each word."""
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\ngrpc_port = -1\ndrain_s = 1.0\n")
    monkeypatch.chdir(tmp_path)
    with Workspace.open(tmp_path) as workspace, Server(workspace):
        deployments = Deployments(workspace)
        for name, delay_s in (("parrot", 0.0), ("zoo/slow", 0.05)):
            made = deployments.put(name, ref="x:1", digest="", engine="echo", options={"delay_s": delay_s})
            wait_until(deployments, made, Phase.READY, timeout_s=60)
        yield tmp_path


def bench(*arguments: str) -> int:
    return run(["bench", *arguments])


def test_json_has_everything_and_the_drawing_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--clients", "1,2", "--requests", "6", "--tokens", "4", "--prompt-tokens", "20", "--slo", "ttft=60000"]
    assert bench("parrot", *arguments, "--svg", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["deployment"] == "parrot" and record["settings"]["clients"] == [1, 2]
    assert [one["clients"] for one in record["rounds"]] == [1, 2]
    for one in record["rounds"]:
        assert one["requests"] == 6 and one["errors"] == {} and one["output_tokens"] == 4
        assert one["goodput_per_s"] == one["requests_per_s"] > 0
        assert one["ttft_ms"]["p50"] <= one["ttft_ms"]["p90"] <= one["ttft_ms"]["p99"] <= one["e2e_ms"]["highest"]
    assert record["svg"] == "bench-parrot.svg"
    drawing = ElementTree.parse(folder / "bench-parrot.svg").getroot()
    assert drawing.tag == f"{_SVG}svg" and len(drawing.findall(f"{_SVG}g")) == 4


def test_people_get_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("zoo/slow", "--clients", "3", "--seconds", "0.5", "--tokens", "3", "--svg", "here.svg") == 0
    output = capsys.readouterr()
    heading, throughput, figures, _, latencies, times, drawn = output.out.splitlines()
    assert heading.startswith("zoo/slow: 128 tokens asked, 3 answered")
    assert "output tok/s" in throughput and "goodput" not in throughput and figures.split()[0] == "3"
    assert "first token p50" in latencies and float(times.split()[-1]) >= 99
    assert drawn == "drawn to here.svg" and (folder / "here.svg").read_text().startswith("<svg")


def test_without_svg_nothing_is_written(folder: Path) -> None:
    assert bench("parrot", "--clients", "1", "--requests", "1", "--json") == 0
    assert list(folder.glob("*.svg")) == []


def test_an_interrupt_shows_what_was_measured(folder: Path) -> None:
    arguments = ["zoo/slow", "--clients", "2,4", "--seconds", "3600", "--tokens", "2", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pressroom", "bench", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Workspace.open(folder) as workspace:
        deployments = Deployments(workspace)
        engine = deployments.observed(deployments.get("zoo/slow")).url
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with urllib.request.urlopen(f"{engine}/health") as health:
            if json.load(health)["active"] == 2:
                break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    rounds = json.loads(output)["rounds"]
    assert [one["clients"] for one in rounds] == [2] and rounds[0]["interrupted"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients", "0"], "list of numbers"),
        (["--clients", "1,x"], "list of numbers"),
        (["--clients", "1,,2"], "list of numbers"),
        (["--slo", "ttft=-1"], "milliseconds"),
        (["--slo", "speed=1"], "milliseconds"),
        (["--seconds", "1", "--requests", "1"], "not both"),
        (["--seconds", "nan"], "is not a number"),
        (["--seconds", "inf"], "in the range"),
        (["--seed", str(10**20)], "in the range"),
    ],
)
def test_wrong_usage_is_said(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench("parrot", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_drawing_that_cannot_be_made_is_said_before_the_load(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, said in (("nowhere/x.svg", "no folder nowhere"), (".", "cannot be written")):
        assert bench("parrot", "--clients", "1", "--seconds", "3600", "--svg", path) == 1
        assert said in capsys.readouterr().err


def test_the_prompts_of_one_run_are_not_those_of_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def seed(*more: str) -> int:
        assert bench("parrot", "--clients", "1", "--requests", "1", "--json", *more) == 0
        return int(json.loads(capsys.readouterr().out)["settings"]["seed"])

    assert seed() != seed()
    assert seed("--seed", "7") == 7


def test_what_does_not_exist_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench("nonesuch") == 1
    assert "nonesuch" in capsys.readouterr().err


def made(clients: int, value: float, *, streamed: bool = True) -> Round:
    spread = Spread(value, 2 * value, 3 * value, value, 4 * value)
    return Round(
        clients=clients, seconds=1, requests=1, requests_per_s=1, output_tokens_per_s=value,
        total_tokens_per_s=2 * value, prompt_tokens=1, cached_tokens=0, output_tokens=1,
        ttft_ms=spread if streamed else None, itl_ms=None,
        tpot_ms=spread if streamed else None, e2e_ms=spread, goodput_per_s=None,
    )  # fmt: skip


def test_the_drawing_has_a_panel_for_what_was_measured_and_its_words_are_safe() -> None:
    drawing = ElementTree.fromstring(bench_svg([made(1, 10.0), made(64, 70.0)], heading='a<b>&"c"\x00'))
    assert len(drawing.findall(f"{_SVG}g")) == 4 and drawing.find(f"{_SVG}title").text == 'a<b>&"c"'  # type: ignore[union-attr]
    plain = ElementTree.fromstring(bench_svg([made(1, 10.0, streamed=False)], heading="m"))
    assert len(plain.findall(f"{_SVG}g")) == 2


def test_the_drawing_is_to_scale() -> None:
    drawing = ElementTree.fromstring(bench_svg([made(1, 25.0), made(4, 100.0)], heading="m"))
    [throughput, *_] = drawing.findall(f"{_SVG}g")
    [output, total] = throughput.findall(f"{_SVG}polyline")
    floor = float(throughput.find(f"{_SVG}path[@class='axis']").get("d").split()[1])  # type: ignore[union-attr]
    heights = [
        floor - float(point.split(",")[1]) for line in (output, total) for point in line.get("points", "").split()
    ]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.5) and heights[3] == pytest.approx(2 * heights[1], abs=0.5)


def test_an_idle_round_does_not_break_the_drawing() -> None:
    ElementTree.fromstring(bench_svg([made(1, 0.0)], heading="m"))
