"""Running the checks against a deployment, and the table of what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pressroom.testing.conformance._asking import Door, Failed, Refused
from pressroom.testing.conformance._checks import CHECKS, Check


class Outcome(StrEnum):
    """`passed`: as the protocol says. `refused`: a 400 says that this engine cannot. `failed`: neither."""

    PASSED = "passed"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of one check; `detail` says why, where it did not pass."""

    check: str
    title: str
    outcome: Outcome
    detail: str = ""


def conformance(
    url: str,
    model: str,
    *,
    grpc: str = "",
    key: str = "",
    only: Iterable[str] = (),
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run every check (or `only` some, by name) against `model` behind the gateway at `url`, in order.

    A model that embeds is asked only what such a one answers.
    `grpc` is the address of the gRPC door; without it the checks of all doors leave that one out. `key` is the secret
    to ask with ('' for none). An error of the connection or of Python within a check counts as failed.
    """
    door = Door(url, model, grpc=grpc, key=key)
    wanted = set(only)
    if not wanted and door.embeds():
        wanted = {check.name for check in CHECKS if check.needs == "embeddings"}
    found = []
    for check in CHECKS:
        if not wanted or check.name in wanted:
            result = _run(door, check)
            on_result(result)
            found.append(result)
    return found


def _run(door: Door, check: Check) -> Result:
    outcome, detail = Outcome.PASSED, ""
    try:
        check.run(door)
    except Refused as refused:
        outcome, detail = Outcome.REFUSED, str(refused)
    except Failed as failed:
        outcome, detail = Outcome.FAILED, str(failed)
    except Exception as error:  # whatever an answer that is not one leads to  # noqa: BLE001
        outcome, detail = Outcome.FAILED, f"{type(error).__name__}: {error}"
    return Result(check=check.name, title=check.title, outcome=outcome, detail=detail)


_MARKS = {Outcome.PASSED: "yes", Outcome.REFUSED: "400", Outcome.FAILED: "**fails**"}


def matrix(results: Mapping[str, Iterable[Result]]) -> str:
    """A Markdown table: a line a check, a column a model (by what it is called in `results`)."""
    columns = {name: {result.check: result for result in found} for name, found in results.items()}
    lines = ["| | " + " | ".join(f"`{name}`" for name in columns) + " |", "|---|" + "---|" * len(columns)]
    for check in CHECKS:
        cells = [_MARKS[column[check.name].outcome] if check.name in column else "" for column in columns.values()]
        lines.append(f"| {check.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
