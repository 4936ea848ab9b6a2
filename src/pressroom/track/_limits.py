"""What MLflow would cut, refuse later or garble, found before it is sent."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from pressroom.track.base import TrackError

# Characters; MLflow 3 cuts longer values of params and tags, with a warning on standard error only.
MOST_PARAM = 6000
MOST_TAG = 8000
# One call of MLflow's log_batch takes so many.
PARAMS_AT_ONCE = 100
METRICS_AT_ONCE = 1000

_MOST_NAME = 250
_NAME = re.compile(r"[/\w.\- :]+")
_MOST_DATASET_NAME = 500
_MOST_DATASET_WORDS = 500


def checked_name(name: object, what: str) -> str:
    """The name of a param, a metric or a tag, where it can be one. Raises TrackError."""
    if (
        not isinstance(name, str)
        or not _NAME.fullmatch(name)
        or len(name) > _MOST_NAME
        or posixpath.normpath(name) != name
        or name.startswith(("/", ".."))
    ):
        raise TrackError(
            f"{name!r} cannot name a {what}",
            hint=f"Letters, digits, '_', '-', '.', ':', blanks and single '/', at most {_MOST_NAME} characters.",
            asked=str(name),
        )
    return name


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that are kept whole. Raises TrackError."""
    for name, value in tags.items():
        checked_name(name, "tag")
        if not isinstance(value, str) or len(value) > MOST_TAG or "\0" in value:
            raise TrackError(
                f"the tag {name!r} cannot be kept: its value is no text of at most {MOST_TAG} characters",
                hint="Keep long texts with log_text: they become an artifact.",
                tag=name,
                length=len(str(value)),
            )
    return dict(tags)


def checked_metric(name: str, value: object, step: object) -> float:
    """The value as a float. Raises TrackError."""
    checked_name(name, "metric")
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TrackError(f"the metric {name!r} is {value!r}, which is no number", metric=name)
    if isinstance(step, bool) or not isinstance(step, int) or not -(2**63) <= step < 2**63:
        raise TrackError(f"the step {step!r} of the metric {name!r} is no whole number", metric=name)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TrackError(f"the metric {name!r} is {value!r}, which is no number", metric=name) from error


def checked_dataset_words(name: str, digest: str, source: str, role: str) -> None:
    """Raises TrackError where one of them is missing or too long."""
    if not name or not digest or not role:
        raise TrackError(f"a dataset has a name, a digest and a role; got {name!r}, {digest!r} and {role!r}")
    if len(name) > _MOST_DATASET_NAME:
        raise TrackError(f"the name of a dataset has at most {_MOST_DATASET_NAME} characters; got {len(name)}")
    for what, text in (("digest", digest), ("source", source), ("role", role)):
        if len(text) > _MOST_DATASET_WORDS:
            raise TrackError(
                f"the {what} of the dataset {name!r} has {len(text)} characters; {_MOST_DATASET_WORDS} are kept",
                hint="Keep the whole with log_text, and give the name of that artifact.",
                dataset=name,
            )


def canonical(config: Mapping[str, Any], name: str) -> str:
    """The configuration as JSON that is the same for equal configurations. Raises TrackError."""
    try:
        return json.dumps(config, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TrackError(
            f"the configuration {name!r} is not made of JSON's values: {error}",
            hint="Use texts, finite numbers, true, false, null, lists, and mappings with texts as keys.",
        ) from error
