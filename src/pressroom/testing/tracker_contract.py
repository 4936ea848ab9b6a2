"""What every tracker must keep to, as tests: subclass `TrackerContract`, say how one is opened, and run pytest.

class TestMyTracker(TrackerContract):
    def open(self, root: Path) -> Tracker:
        return Backend("mine://place", root=root)
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pressroom.kernel import NotFoundError
from pressroom.track import Dataset, ParamChangedError, Tracker, TrackError, compare_runs

BASE = "smollm2:1@sha256-" + "1" * 64
TUNED = "smollm2-tuned:{}@sha256-" + "2" * 64


class TrackerContract(ABC):
    """The checks. Each test has a place of its own."""

    @abstractmethod
    def open(self, root: Path) -> Tracker:
        """The tracker of this place; asked again, it finds what was tracked there before."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path

    @pytest.fixture
    def tracker(self, root: Path) -> Iterator[Tracker]:
        with self.open(root) as opened:
            yield opened

    def test_what_a_run_was_told_is_there_for_the_next_who_opens_it(self, tracker: Tracker, root: Path) -> None:
        data = Dataset(name="dialogues", digest="blake3-" + "a" * 64, source="pypi:dialogues==1.0", rows=1200)
        with tracker.start(
            "tuned", params={"lr": 1e-4, "epochs": 3}, tags={"team": "search"}, datasets=[data], started_from=BASE
        ) as run:
            run.log_metrics({"rouge1": 0.41, "bleu": 12.5, "perplexity": 18.2}, step=10, at=1_700_000_000.5)
            run.log_metrics({"perplexity": 17.9}, step=20)
            run.link(TUNED.format(1))
            assert tracker.get(run.id).status == "running"
        with self.open(root) as again:
            record = again.get(run.id)
        assert (record.name, record.experiment, record.status) == ("tuned", "pressroom", "finished")
        assert record.params == {"lr": "0.0001", "epochs": "3"}
        assert record.metrics == {"rouge1": 0.41, "bleu": 12.5, "perplexity": 17.9}
        assert record.tags["team"] == "search"
        assert record.datasets == (data,)
        assert (record.started_from, record.versions) == (BASE, (TUNED.format(1),))
        assert record.seconds is not None and 0 <= record.seconds < 600
        assert record.pid is not None and record.host and record.user

    def test_the_history_of_a_metric_is_in_the_order_of_its_steps(self, tracker: Tracker) -> None:
        with tracker.start() as run:
            for step in (3, 1, 2):
                run.log_metrics({"loss": 1 / step}, step=step, at=1_700_000_000.25 + step)
        points = tracker.history(run.id, "loss")
        assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert [point.at for point in points] == [1_700_000_001.25, 1_700_000_002.25, 1_700_000_003.25]
        with pytest.raises(NotFoundError, match="los"):
            tracker.history(run.id, "los")

    def test_more_than_fits_one_write(self, tracker: Tracker) -> None:
        with tracker.start(params={f"p{n}": n for n in range(250)}) as run:
            run.tag({f"t{n}": str(n) for n in range(250)})
            run.log_metrics({f"m{n}": n / 7 for n in range(1200)})
            for step in range(1500):
                run.log_metrics({"loss": step * 0.5}, step=step)
        record = tracker.get(run.id)
        assert record.params == {f"p{n}": str(n) for n in range(250)}
        assert {f"t{n}": str(n) for n in range(250)}.items() <= record.tags.items()
        assert all(record.metrics[f"m{n}"] == n / 7 for n in range(1200))
        assert [point.value for point in tracker.history(run.id, "loss")] == [step * 0.5 for step in range(1500)]

    def test_not_a_number_and_infinity_stay_what_they_are(self, tracker: Tracker) -> None:
        values = [1.0, math.nan, math.inf, -math.inf, 2.0]
        with tracker.start() as run:
            for step, value in enumerate(values):
                run.log_metrics({"loss": value}, step=step)
            run.log_metrics({"up": math.inf, "down": -math.inf, "none": math.nan})
        assert str([point.value for point in tracker.history(run.id, "loss")]) == str(values)
        record = tracker.get(run.id)
        assert (record.metrics["up"], record.metrics["down"]) == (math.inf, -math.inf)
        assert math.isnan(record.metrics["none"])
        said = json.loads(json.dumps(record.as_dict(), allow_nan=False))
        assert said["metrics"] == {"loss": 2.0, "up": "inf", "down": "-inf", "none": "nan"}

    @pytest.mark.parametrize("length", [250, 5999, 6000, 6001, 8001, 200_000])
    def test_a_long_param_is_whole(self, tracker: Tracker, length: int) -> None:
        text = ("Ünïcode " * length)[:length]
        with tracker.start(params={"prompt/system": text}) as run:
            run.log_params({"prompt/system": text})  # the same again is nothing new
            with pytest.raises(ParamChangedError):
                run.log_params({"prompt/system": text[:-1] + "x"})
        assert tracker.get(run.id).params["prompt/system"] == text

    def test_a_param_has_one_value(self, tracker: Tracker) -> None:
        with tracker.start(params={"lr": 0.1}) as run:
            run.log_params({"lr": 0.1})
            with pytest.raises(ParamChangedError, match=r"'lr'.*'0\.1'.*'0\.2'"):
                run.log_params({"epochs": 3, "lr": 0.2})
        assert tracker.get(run.id).params == {"lr": "0.1"}

    def test_a_configuration_is_an_artifact_and_its_digest_a_param(self, tracker: Tracker, tmp_path: Path) -> None:
        config = {"model": {"layers": 30, "name": "größer"}, "rates": [1e-4, 5e-5], "none": None}
        with tracker.start(config=config) as run:
            digest = run.log_config(dict(reversed(config.items())))  # equal, written in another order
            with pytest.raises(ParamChangedError):
                run.log_config(config | {"none": 1})
            with pytest.raises(TrackError, match="JSON"):
                run.log_config({"rate": math.nan}, "other")
        assert tracker.get(run.id).params == {"config": digest}
        kept = tracker.fetch(run.id, "config.json", tmp_path / "out")
        assert json.loads(kept.read_text(encoding="utf-8")) == config

    def test_files_folders_and_texts_come_back_as_they_were(self, tracker: Tracker, tmp_path: Path) -> None:
        folder = tmp_path / "plots"
        (folder / "inner").mkdir(parents=True)
        (folder / "a.bin").write_bytes(bytes(range(256)))
        (folder / "inner" / "b.txt").write_text("b")
        with tracker.start() as run:
            run.log_artifact(folder)
            run.log_artifact(folder / "a.bin", "deep/er")
            run.log_text("line\r\nünïcode\n", "notes/read me.txt")
            with pytest.raises(NotFoundError):
                run.log_artifact(tmp_path / "nothing")
        paths = ["deep/er/a.bin", "notes/read me.txt", "plots/a.bin", "plots/inner/b.txt"]
        assert [artifact.path for artifact in tracker.artifacts(run.id)] == paths
        assert tracker.fetch(run.id, "plots/a.bin", tmp_path / "out").read_bytes() == bytes(range(256))
        assert tracker.fetch(run.id, "notes/read me.txt", tmp_path / "out").read_bytes() == "line\r\nünïcode\n".encode()
        with pytest.raises(NotFoundError, match=r"plots/a\.bim"):
            tracker.fetch(run.id, "plots/a.bim", tmp_path / "out")

    def test_data_of_one_name_and_digest_keeps_what_each_run_said_of_it(self, tracker: Tracker) -> None:
        first = Dataset(name="rows", digest="sha256-" + "b" * 64, source="path:/a", rows=10, role="train")
        second = Dataset(name="rows", digest="sha256-" + "b" * 64, source="https://example.org/b", rows=11, role="test")
        unknown = Dataset(name="text", digest="v1")
        records = []
        for datasets in ([first], [second, unknown]):
            with tracker.start(datasets=datasets) as run:
                pass
            records.append(tracker.get(run.id).datasets)
        assert records == [(first,), (second, unknown)]

    def test_a_run_that_fails_is_marked_and_says_why(self, tracker: Tracker, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), tracker.start() as run:
            run.log_metrics({"loss": 1.0})
            1 / 0  # noqa: B018  the fault is the test
        record = tracker.get(run.id)
        assert (record.status, record.metrics) == ("failed", {"loss": 1.0})
        assert "ZeroDivisionError" in record.tags["pressroom.error"]
        assert "1 / 0" in tracker.fetch(run.id, "error.txt", tmp_path).read_text()

    def test_ctrl_c_is_no_failure(self, tracker: Tracker) -> None:
        with pytest.raises(KeyboardInterrupt), tracker.start() as run:
            raise KeyboardInterrupt
        assert tracker.get(run.id).status == "killed"

    def test_a_program_that_ends_well_finishes_its_run(self, tracker: Tracker) -> None:
        with pytest.raises(SystemExit), tracker.start() as run:
            raise SystemExit(0)
        assert tracker.get(run.id).status == "finished"

    def test_nothing_is_added_after_the_end(self, tracker: Tracker) -> None:
        run = tracker.start()
        run.finish("failed")
        run.finish()
        assert tracker.get(run.id).status == "failed"
        with pytest.raises(TrackError, match="failed"):
            run.log_params({"a": 1})
        with pytest.raises(TrackError, match="failed"):
            run.log_metrics({"a": 1})
        with pytest.raises(TrackError, match="failed"):
            run.log_text("a", "a.txt")
        with pytest.raises(TrackError, match="failed"):
            run.tag({"a": "1"})

    @pytest.mark.parametrize("name", ["", "a\nb", "../up", "/top", "a//b", "x" * 251, "tab\t"])
    def test_a_name_that_cannot_be_kept_is_refused(self, tracker: Tracker, name: str) -> None:
        with tracker.start() as run:
            with pytest.raises(TrackError, match="cannot name a param"):
                run.log_params({"fine": 1, name: 1})
            with pytest.raises(TrackError, match="cannot name a metric"):
                run.log_metrics({"fine": 1, name: 1})
            with pytest.raises(TrackError, match="cannot name a tag"):
                run.tag({"fine": "1", name: "1"})
        record = tracker.get(run.id)
        assert (record.params, record.metrics, "fine" in record.tags) == ({}, {}, False)

    def test_a_value_that_cannot_be_kept_is_refused(self, tracker: Tracker) -> None:
        with tracker.start() as run:
            for value in ("text", None, True, object()):
                with pytest.raises(TrackError, match="no number"):
                    run.log_metrics({"fine": 1.0, "loss": value})  # type: ignore[dict-item]
            with pytest.raises(TrackError, match="whole number"):
                run.log_metrics({"loss": 1.0}, step=1.5)  # type: ignore[arg-type]
            with pytest.raises(TrackError, match="8000"):
                run.tag({"long": "x" * 8001})
            with pytest.raises(TrackError):
                run.log_dataset(Dataset(name="n", digest="d", source="s" * 501))
            run.tag({"long": "x" * 8000})
        record = tracker.get(run.id)
        assert (record.metrics, record.datasets, len(record.tags["long"])) == ({}, (), 8000)

    def test_runs_are_found_by_name_and_by_the_beginning_of_their_id(self, tracker: Tracker) -> None:
        made = [tracker.start("only"), tracker.start("twice"), tracker.start("twice")]
        for run in made:
            run.finish()
        assert tracker.get("only").id == made[0].id
        assert tracker.get(made[1].id[:16]).id == made[1].id
        with pytest.raises(TrackError, match="ambiguous"):
            tracker.get("twice")
        with pytest.raises(NotFoundError) as error:
            tracker.get("onyl")
        assert "only" in error.value.hint
        with pytest.raises(NotFoundError):
            tracker.get("0" * 32)

    def test_the_list_is_newest_first_and_can_be_narrowed(self, tracker: Tracker) -> None:
        assert list(tracker.list()) == []
        for name, experiment, status in (("a", "one", "finished"), ("b", "two", "failed"), ("c", "one", "killed")):
            tracker.start(name, experiment=experiment).finish(status)
        open_run = tracker.start("d", experiment="two")
        listed = tracker.list()
        assert {run.name for run in listed} == {"a", "b", "c", "d"}
        assert [run.started for run in listed] == sorted((run.started for run in listed), reverse=True)
        assert {run.name for run in tracker.list(experiment="one")} == {"a", "c"}
        assert [run.name for run in tracker.list(status="failed")] == ["b"]
        assert [run.name for run in tracker.list(status="running")] == ["d"]
        assert len(tracker.list(most=2)) == 2
        with pytest.raises(NotFoundError):
            tracker.list(experiment="ome")
        open_run.finish()

    def test_a_run_may_make_several_versions_also_after_its_end(self, tracker: Tracker) -> None:
        with tracker.start() as run:
            run.link(TUNED.format(1))
            run.link(TUNED.format(1))
        tracker.link(run.id, TUNED.format(2))
        assert set(tracker.get(run.id).versions) == {TUNED.format(1), TUNED.format(2)}
        with pytest.raises(TrackError, match="not a reference"):
            tracker.link(run.id, "no ref' OR 1=1")

    def test_threads_share_a_run(self, tracker: Tracker) -> None:
        def work(number: int) -> None:
            for step in range(100):
                run.log_metrics({f"m{number}": float(step)}, step=step)
            run.log_params({f"p{number}": number})

        with tracker.start() as run, ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(work, number) for number in range(4)]:
                done.result()
        record = tracker.get(run.id)
        assert record.params == {f"p{n}": str(n) for n in range(4)}
        assert all(len(tracker.history(run.id, f"m{n}")) == 100 for n in range(4))

    def test_metrics_are_on_record_once_they_are_flushed(self, tracker: Tracker, root: Path) -> None:
        with tracker.start() as run:
            run.log_metrics({"loss": 0.5})
            run.flush()
            with self.open(root) as other:
                assert other.get(run.id).metrics == {"loss": 0.5}

    def test_runs_side_by_side(self, tracker: Tracker) -> None:
        ids = []
        for name, rate, loss in (("a", 0.1, 2.0), ("b", 0.2, 1.5), ("c", 0.3, math.nan)):
            with tracker.start(name, params={"lr": rate, "epochs": 3}) as run:
                run.log_metrics({"loss": loss})
                if name == "b":
                    run.log_params({"warmup": 10})
            ids.append(run.id)
        found = tracker.compare(ids)
        assert found == compare_runs(found.runs) and [run.name for run in found.runs] == ["a", "b", "c"]
        assert found.differing == {"lr": ("0.1", "0.2", "0.3"), "warmup": (None, "10", None)}
        assert found.same == {"epochs": "3"}
        assert found.metrics["loss"][:2] == (2.0, 1.5)
        assert found.differences == {"loss": (0.0, -0.5, None)}
