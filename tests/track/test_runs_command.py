"""`press runs`: the list, one run, several side by side, and the link between a run and a version."""

from __future__ import annotations

import json
import math
import re
import socket
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pressroom.cli._runs_svg import metric_svg
from pressroom.cli.runs import runs
from pressroom.kernel import PressroomError, Workspace
from pressroom.registry import FileEntry, Registry
from pressroom.testing.tracker_contract import BASE
from pressroom.track import Dataset, Point, Tracker, open_tracker

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def workspace(tmp_path: Path, prepared: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


@pytest.fixture
def tracker(workspace: Workspace) -> Iterator[Tracker]:
    with open_tracker(workspace) as opened:
        yield opened


def press(*arguments: str) -> Result:
    done = CliRunner().invoke(runs, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def as_json(*arguments: str) -> object:
    done = press(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def two_runs(tracker: Tracker) -> list[str]:
    ids = []
    for name, rate, losses in (("slow", 0.1, (3.0, 2.0, 1.0)), ("fast", 0.5, (3.0, math.nan, 4.0))):
        with tracker.start(name, params={"lr": rate, "epochs": 3}, started_from=BASE) as run:
            for step, loss in enumerate(losses):
                run.log_metrics({"loss": loss}, step=step)
        ids.append(run.id)
    return ids


def test_every_command_has_json_debug_and_an_example() -> None:
    for name, command in [("runs", runs), *((f"runs {name}", each) for name, each in runs.commands.items())]:
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--debug"} <= options
        assert f"press {name}" in (command.epilog or "")


def test_the_list(workspace: Workspace, tracker: Tracker) -> None:
    assert "No runs yet" in press().output
    ids = two_runs(tracker)
    lines = press().output.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATUS", "STARTED", "DURATION", "METRICS", "VERSION"]
    assert {line.split()[0] for line in lines[1:]} == {id[:8] for id in ids}
    listed = as_json("--most", "1")
    assert isinstance(listed, list) and [each["name"] for each in listed] == ["fast"]
    assert listed[0]["metrics"] == {"loss": 4.0}
    assert "slow" not in press("--status", "failed").output


def test_one_run(workspace: Workspace, tracker: Tracker) -> None:
    data = Dataset(name="dialogues", digest="blake3-" + "a" * 64, source="pypi:d==1", rows=1200)
    with tracker.start("tuned", params={"text": "a\x1b[31m" + "x" * 300}, datasets=[data], started_from=BASE) as run:
        run.log_metrics({"bleu": 12.5})
        run.log_text("x", "notes.txt")
    out = press("show", "tuned").output
    for part in ("finished", run.id, BASE, "bleu", "12.5", "dialogues", "1,200", "notes.txt", "…"):
        assert part in out
    assert "\x1b[31m" not in out
    record = as_json("show", run.id[:10])
    assert isinstance(record, dict)
    assert record["artifacts"] == [{"path": "notes.txt", "size": 1}]
    assert record["params"]["text"].endswith("x" * 300)


def test_side_by_side_with_a_drawing(workspace: Workspace, tracker: Tracker, tmp_path: Path) -> None:
    two_runs(tracker)
    out = press("compare", "slow", "fast", "--svg", "loss.svg").output
    assert re.search(r"lr +0\.1 +0\.5", out)
    assert re.search(r"loss +1 +4 \(\+3\)", out)
    assert "1 param is the same: epochs" in out
    drawn = ElementTree.parse(tmp_path / "loss.svg")
    texts = [text.text or "" for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "loss over steps" in texts and any(text.startswith("slow (") for text in texts)
    found = as_json("compare", "slow", "fast")
    assert isinstance(found, dict)
    assert found["params"] == {"lr": ["0.1", "0.5"]}
    assert (found["metrics"], found["differences"]) == ({"loss": [1.0, 4.0]}, {"loss": [0.0, 3.0]})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "slow"], "two runs"),
        (["compare", "slow", "fast", "--metric", "loss"], "--svg"),
        (["compare", "slow", "fast", "--metric", "los", "--svg", "x.svg"], "'los'"),
        (["show", "nothing"], "nothing"),
        (["--experiment", "nothing"], "nothing"),
        (["link", "slow", "nobody:1"], "nobody"),
    ],
)
def test_what_cannot_be_done_says_so(
    workspace: Workspace, tracker: Tracker, arguments: list[str], said: str, tmp_path: Path
) -> None:
    two_runs(tracker)
    try:
        done = press(*arguments)
    except PressroomError as error:
        assert said in error.message
    else:
        assert done.exit_code == 2 and said in done.output
    assert not (tmp_path / "x.svg").exists()


def test_a_run_and_a_version_know_each_other(workspace: Workspace, tracker: Tracker) -> None:
    registry = Registry(workspace)
    blob = registry.store.put([b"weights"])
    version = registry.register("tiny", [FileEntry(path="tiny.gguf", blob=blob.digest, size=blob.size)])
    with tracker.start("maker") as run:
        pass
    for _ in range(2):  # again, after a cut, does no harm
        assert as_json("link", "maker", "tiny") == {"run": run.id, "version": str(version.ref)}
    assert registry.get("tiny:1").run == run.id
    assert tracker.get(run.id).versions == (str(version.ref),)
    assert "tiny:1" in press().output


def test_a_taken_port_is_said_before_anything_starts(workspace: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PressroomError, match="is taken"):
            press("ui", "--port", str(taken.getsockname()[1]))


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(0, math.nan, 0.0)],
        [Point(5, 1.0, 0.0)],
        [Point(0, 2.0, 0.0), Point(1, 2.0, 1.0)],
        [Point(0, 1e-300, 0.0), Point(1, 1e300, 1.0), Point(2, math.inf, 2.0)],
        [Point(-3, -1e-9, 0.0), Point(2**40, 1e-9, 1.0)],
        [Point(step, math.sin(step / 50), float(step)) for step in range(5000)],
    ],
    ids=["none", "nan", "one", "flat", "wide", "negative", "many"],
)
def test_any_metric_can_be_drawn(points: list[Point]) -> None:
    drawn = metric_svg("loss <&\"'\x00>", {"a <run>": points, "b": points})
    root = ElementTree.fromstring(drawn)
    numbers = [
        float(number)
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
        for number in re.findall(r"-?[\d.]+", line.get("points", ""))
    ]
    assert all(0 <= number <= 900 for number in numbers)
    assert len(drawn) < 100_000


def test_thinning_keeps_the_extremes() -> None:
    points = [Point(step, 0.0, float(step)) for step in range(10_000)]
    points[4321] = Point(4321, 100.0, 4321.0)
    root = ElementTree.fromstring(metric_svg("loss", {"a": points}))
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    heights = [float(pair.split(",")[1]) for pair in (line.get("points") or "").split()]
    assert min(heights) == pytest.approx(56.0)
    assert len(heights) < 2000
