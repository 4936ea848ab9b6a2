"""The search for the best file within a budget: what each tensor loses in each format, how much that matters, the best
choice for all of them together, and then the file itself, written and measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.numbers import number_format
from pressroom.compress.search._allocating import Choice, allocate, cheapest
from pressroom.compress.search._errors import Errors, fitting
from pressroom.compress.search._roundings import Roundings
from pressroom.compress.search._weighing import groups, probe, weigh
from pressroom.compress.search.base import Clock, Goal, Measure, Score, Tried
from pressroom.compress.weights import Changed, check, write
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.weights import Tensor, Weights

#: Changes when what is kept between runs is made otherwise.
SCHEMA = 1
# How often the allocation is done again because the file that came of it was not within the goal, or could be nearer.
_MOST_TRIES = 6
# How often the worst groups are weighed anew, how many they are, and by how much that may change what they weigh.
_MOST_REPAIRS = 3
_WORST = 8
_MOST_CHANGE = 3.0
# What stands for the formats that tensors are in, among the speeds of formats.
_AS_IT_IS = "as it is"
# A file of less loss than was allowed is good enough when it is this near to it, relatively.
_NEAR = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What a search is done with: `measure` a file's divergence on the text for searching and, for probes, on less of
    it (`glance`); `clock` the milliseconds of a token. `on_progress` gets (what, done, total, unit), and `on_tried`
    every file that was measured."""

    measure: Measure
    glance: Measure
    clock: Clock | None = None
    on_progress: Callable[[str, int, int, str], None] = lambda *_: None
    on_tried: Callable[[Tried], None] = lambda _: None


class Search:
    """One search on one file of weights. `folder` keeps what was found out, under `key`, so that one that was killed
    goes on, and the next one on the same file and texts, for another goal, begins with it."""

    def __init__(self, source: Weights, calibration: Calibration, tools: Tools, folder: Path, *, key: str) -> None:
        self._source = source
        self._tools = tools
        name = hashlib.sha256(json.dumps([SCHEMA, key]).encode()).hexdigest()[:32]
        self._folder = folder / f"search-{name}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / "found.json"
        self._found = self._read()
        self._errors = Errors(source, calibration, self._found["errors"])
        self.roundings = Roundings(source, self._errors, self._folder / "rounded")
        self._tensors = [one for one in source.tensors.values() if one.role.compressible and fitting(one)]
        self._groups = groups(self._tensors)

    def run(self, goal: Goal) -> tuple[Tried, list[Tried]]:
        """The best file that keeps to the goal, and all that were tried.

        Raises:
            RecipeError: the goal cannot be kept; it says what the nearest is.
        """
        must_be_possible(self._source, goal)
        losses = self._losses()
        tried: list[Tried] = []
        if goal.unit == "bytes":
            self._within_bytes(goal, losses, tried)
        elif goal.unit == "ms":
            self._within_ms(goal, losses, tried)
        else:
            self._within_loss(goal, losses, tried)
        good = [one for one in tried if self._kept_to(goal, one)]
        if not good:
            raise self._unreached(goal, tried)
        best = min(good, key=lambda one: (one.size if goal.unit == "loss" else one.score.kl, one.number))
        return best, tried

    def done(self) -> None:
        """Remove what only this search needed: the rounded tensors. What was learnt of the model stays."""
        self.roundings.remove()
        for path in self._folder.glob("*.gguf"):
            path.unlink(missing_ok=True)

    # What there is to choose from.

    def _losses(self) -> dict[str, dict[str, float]]:
        """For each tensor and format worth having the divergence that is expected of it."""

        def progress(done: int, total: int) -> None:
            self._tools.on_progress("trying formats", done, total, "tensors")
            if done % 16 == 0 or done == total:
                self._keep()

        table = self._errors.table(self._tensors, progress)
        weights = self._weights()
        return {
            name: {format: weights[name] * error for format, error in found.items()} for name, found in table.items()
        }

    def _weights(self) -> dict[str, float]:
        probes: dict[str, list[float]] = self._found["probes"]
        path = self._folder / "probe.gguf"
        for done, (name, members) in enumerate(self._groups.items(), start=1):
            if name not in probes:
                lost = probe(path, self._source, members, self._errors)
                probes[name] = [self._tools.glance(path).kl, lost]
                path.unlink(missing_ok=True)
                self._keep()
            self._tools.on_progress("weighing layers", done, len(self._groups), "groups")
        return weigh({name: (found[0], found[1]) for name, found in probes.items()}, self._groups)

    def _choices(
        self, losses: Mapping[str, Mapping[str, float]], cost: Callable[[Tensor, str], int]
    ) -> dict[str, list[Choice]]:
        """What every tensor can be kept as, and as it is."""
        return {
            tensor.name: [
                Choice("", cost(tensor, ""), 0.0),
                *(Choice(format, cost(tensor, format), loss) for format, loss in losses[tensor.name].items()),
            ]
            for tensor in self._tensors
        }

    @property
    def _rest(self) -> int:
        """The bytes of the file that do not change."""
        return self._source.size - sum(one.nbytes for one in self._tensors)

    # The three kinds of goals.

    def _within_bytes(self, goal: Goal, losses: Mapping[str, Mapping[str, float]], tried: list[Tried]) -> None:
        """The best predicted; then, as long as that helps, with the groups that lose most weighed in that file."""
        found = self._fitting(losses, int(goal.limit))
        if found is None:
            return
        best = self._try(found, "the best predicted", tried)
        for _ in range(_MOST_REPAIRS):
            losses = self._weighed_again(losses, best)
            found = self._fitting(losses, int(goal.limit))
            assert found is not None  # the same limit and the same sizes
            if dict(best.formats) == _formats(found):
                return
            repaired = self._try(found, "the worst groups repaired", tried)
            if repaired.score.kl >= best.score.kl:
                return
            best = repaired

    def _fitting(self, losses: Mapping[str, Mapping[str, float]], most: int) -> dict[str, Choice] | None:
        """The best choices whose file has at most so many bytes, with all that lies between its tensors."""
        limit = most - self._rest
        while True:
            found = allocate(self._choices(losses, bytes_in), limit)
            if found is None:
                return None
            over = check(self._source, _formats(found)).size - most
            if over <= 0:
                return found
            limit -= over

    def _weighed_again(self, losses: Mapping[str, Mapping[str, float]], at: Tried) -> dict[str, dict[str, float]]:
        """What is expected of each tensor and format, after the groups that were expected to lose most were measured in
        this file: what it gains when one of them is left as it is. The others are scaled by what that says on average.
        """
        expected = {
            name: sum(losses[one.name].get(at.formats.get(one.name, ""), 0.0) for one in members)
            for name, members in self._groups.items()
        }
        worst = sorted((name for name in expected if expected[name] > 0), key=lambda name: (-expected[name], name))
        worst = worst[:_WORST]
        path = self._folder / "part.gguf"
        whole = self._glanced(path, at.formats)
        gains = {}
        for done, name in enumerate(worst, start=1):
            spared = {one.name for one in self._groups[name]}
            less = self._glanced(path, {one: format for one, format in at.formats.items() if one not in spared})
            gains[name] = max(whole - less, 0.0)
            self._tools.on_progress("weighing the worst groups", done, len(worst), "groups")
        usual = sum(gains.values()) / sum(expected[name] for name in worst) if worst else 1.0
        scale = {
            name: min(_MOST_CHANGE, max(1 / _MOST_CHANGE, gains[name] / expected[name] / usual)) if usual > 0 else 1.0
            for name in worst
        }
        return {
            one.name: {format: scale.get(name, 1.0) * loss for format, loss in losses[one.name].items()}
            for name, members in self._groups.items()
            for one in members
        }

    def _glanced(self, path: Path, formats: Mapping[str, str]) -> float:
        """The divergence of the file with these formats, on the few windows of a probe; measured once."""
        key = "glance " + _key(formats)
        kept: dict[str, float] = self._found["glances"]
        if key not in kept:
            self.roundings.write(path, formats)
            try:
                kept[key] = self._tools.glance(path).kl
            finally:
                path.unlink(missing_ok=True)
            self._keep()
        return kept[key]

    def _within_ms(self, goal: Goal, losses: Mapping[str, Mapping[str, float]], tried: list[Tried]) -> None:
        speeds = self._speeds()
        own = speeds[_AS_IT_IS] * sum(one.elements for one in self._tensors)
        if own <= goal.limit:
            raise RecipeError(
                f"{self._source.called} takes {own:.2f} ms a token, which is within {goal} already",
                hint="Ask for less time.",
                ms=own,
            )

        def cost(tensor: Tensor, format: str) -> int:
            return round(1e6 * tensor.elements * speeds[format or tensor.type.lower()])

        usable = {name: {format: loss for format, loss in found.items() if format in speeds}
                  for name, found in losses.items()}  # fmt: skip
        choices = self._choices(usable, cost)
        limit = goal.limit
        for _ in range(_MOST_TRIES):
            found = allocate(choices, round(1e6 * limit))
            if found is None:
                found = allocate(choices, sum(min(one.cost for one in each) for each in choices.values()))
                assert found is not None
            one = self._try(found, f"predicted to take {sum(c.cost for c in found.values()) / 1e6:.2f} ms", tried)
            assert one.ms is not None
            if one.ms <= goal.limit:
                return
            slower = limit * goal.limit / one.ms * 0.99
            if slower >= limit or all(c.cost == min(o.cost for o in choices[name]) for name, c in found.items()):
                return
            limit = slower

    def _within_loss(self, goal: Goal, losses: Mapping[str, Mapping[str, float]], tried: list[Tried]) -> None:
        """Perplexity rises with the divergence, by and large in proportion: the share is found from file to file."""
        choices = self._choices(losses, bytes_in)
        low, high = 0.0, float("inf")  # divergences that were predicted of files within the goal, and not
        aim = goal.limit
        for _ in range(_MOST_TRIES):
            found = cheapest(choices, aim)
            one = self._try(found, f"the smallest predicted to diverge by {aim:.4f}", tried)
            good = one.score.loss <= goal.limit
            if good and one.score.loss >= goal.limit * (1 - _NEAR):
                return
            if good and all(c.cost == min(o.cost for o in choices[name]) for name, c in found.items()):
                return
            low, high = (max(low, aim), high) if good else (low, min(high, one.predicted))
            ratio = goal.limit / one.score.loss if one.score.loss > 0 else 4.0
            aim = one.predicted * min(4.0, max(0.25, ratio))
            if not low < aim < high:
                aim = (low + high) / 2 if high < float("inf") else 2 * low
            if high - low < 0.02 * high or (one.predicted == 0.0 and not good):
                return

    def _kept_to(self, goal: Goal, one: Tried) -> bool:
        if goal.unit == "bytes":
            return one.size <= goal.limit
        if goal.unit == "ms":
            return one.ms is not None and one.ms <= goal.limit
        return one.score.loss <= goal.limit

    # Files.

    def _try(self, found: Mapping[str, Choice], why: str, tried: list[Tried]) -> Tried:
        formats = _formats(found)
        for before in tried:
            if before.formats == formats:
                return before
        number = len(tried) + 1
        path = self._folder / "tried.gguf"

        def progress(done: int, total: int) -> None:
            self._tools.on_progress(f"rounding file {number}", done, total, "tensors")

        self.roundings.round(formats, progress)
        size = self.roundings.write(path, formats)
        try:
            score = self._scored(path, formats)
            ms = self._tools.clock(path) if self._tools.clock is not None else None
        finally:
            path.unlink(missing_ok=True)
        predicted = sum(choice.loss for choice in found.values())
        one = Tried(number=number, why=why, formats=formats, size=size, predicted=predicted, score=score, ms=ms)
        tried.append(one)
        self._tools.on_tried(one)
        return one

    def _scored(self, path: Path, formats: Mapping[str, str]) -> Score:
        """How far the file is, measured once for the same formats."""
        key = _key(formats)
        kept: dict[str, Any] = self._found["scores"]
        if key not in kept:
            kept[key] = dataclasses.asdict(self._tools.measure(path))
            self._keep()
        return Score(**{**kept[key], "kl_of_windows": tuple(kept[key]["kl_of_windows"])})

    def _speeds(self) -> dict[str, float]:
        """Milliseconds a token for each weight in a format: of files that are in one format as far as it fits."""
        assert self._tools.clock is not None
        found: dict[str, float] = self._found["speeds"]
        names = sorted({one.name for tensor in self._tensors for one in fitting(tensor)})
        own = {one.type.lower() for one in self._tensors}
        path = self._folder / "clocked.gguf"
        for done, name in enumerate(["", *names], start=1):
            key = name or _AS_IT_IS
            if key not in found:
                fit = [one for one in self._tensors if name and name in {each.name for each in fitting(one)}]
                write_plainly(path, self._source, {one.name: name for one in fit})
                taken = self._tools.clock(path)
                path.unlink(missing_ok=True)
                all_weights = sum(one.elements for one in self._tensors)
                rest = all_weights - sum(one.elements for one in fit)
                found[key] = (
                    max(0.0, taken - rest * found[_AS_IT_IS]) / (all_weights - rest) if name else taken / all_weights
                )
                self._keep()
            self._tools.on_progress("timing formats", done, len(names) + 1, "formats")
        return {**dict.fromkeys((*own, _AS_IT_IS), found[_AS_IT_IS]), **{name: found[name] for name in names}}

    # What is kept.

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"errors": {}, "probes": {}, "glances": {}, "scores": {}, "speeds": {}}
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return empty
        return found if isinstance(found, dict) and found.keys() == empty.keys() else empty

    def _keep(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._found))
        part.replace(self._file)

    def _unreached(self, goal: Goal, tried: list[Tried]) -> RecipeError:
        if goal.unit == "ms":
            nearest = min((one.ms for one in tried if one.ms is not None), default=None)
            says = "" if nearest is None else f"the fastest file takes {nearest:.2f} ms a token"
        elif goal.unit == "loss":
            nearest = min(one.score.loss for one in tried)
            says = f"the nearest file loses {nearest:.2%} of perplexity"
        else:
            nearest = min(one.size for one in tried)
            says = f"the smallest file has {nearest / 1e6:.2f} MB"
        return RecipeError(f"nothing keeps to {goal}: {says}", hint="Ask for that, or less.", nearest=nearest)


def _formats(found: Mapping[str, Choice]) -> dict[str, str]:
    """The formats of the tensors that change."""
    return {name: choice.name for name, choice in found.items() if choice.name}


def _key(formats: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(formats.items())).encode()).hexdigest()[:32]


def bytes_in(tensor: Tensor, format: str) -> int:
    """The bytes of a tensor in a format; '' is its own."""
    if not format:
        return tensor.nbytes
    found = number_format(format)
    return tensor.elements // found.block * found.nbytes


def must_be_possible(source: Weights, goal: Goal) -> None:
    """Say at once what no search can find. Raises RecipeError."""
    tensors = [one for one in source.tensors.values() if one.role.compressible]
    ways = {one.name: list(fitting(one)) for one in tensors}
    if not any(ways.values()):
        sizes = ", ".join(sorted({str(one.columns) for one in tensors}))
        raise RecipeError(
            f"no tensor of {source.called} can be put in a smaller format: its rows of {sizes} weights are no whole "
            "blocks of one, or are in the smallest already",
            hint="A model whose rows are a multiple of 32 can be compressed.",
        )
    if goal.unit != "bytes":
        return
    if goal.limit >= source.size:
        raise RecipeError(
            f"{source.called} has {source.size / 1e6:.2f} MB, which is within {goal} already",
            hint="Ask for fewer bytes.",
            bytes=source.size,
        )
    least = source.size - sum(
        one.nbytes - min([one.nbytes, *(bytes_in(one, each.name) for each in ways[one.name])]) for one in tensors
    )
    if goal.limit < least:
        raise RecipeError(
            f"{source.called} cannot be put in {goal}: with every tensor in the smallest format that its rows allow it "
            f"has {least / 1e6:.2f} MB",
            hint=f"Ask for {least / 1e6 + 0.01:.2f}MB or more; or take layers out first (docs/pruning.md).",
            smallest=least,
        )


def write_plainly(path: Path, source: Weights, formats: Mapping[str, str]) -> None:
    """Write the source with tensors rounded plainly: for looking at how fast it is, not at what it says."""
    changed = {}
    for name, format in formats.items():
        tensor, kind = source.tensor(name), number_format(format)
        # Any codes run as fast as the right ones: a few rows, over and over.
        rows = source.rows(name, 0, min(64, tensor.rows))
        data = kind.encode(rows)
        times = -(-tensor.rows // len(data))
        changed[name] = Changed(kind, partial(_repeated, data, times, tensor))
    write(path, source, changed)


def _repeated(data: Any, times: int, tensor: Tensor) -> Any:
    left = tensor.rows
    for _ in range(times):
        yield data[:left]
        left -= len(data[:left])
