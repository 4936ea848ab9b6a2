"""The model card: what the front matter of README.md says."""

from __future__ import annotations

from typing import Any

#: Front matter is a few lines; what is longer is not looked at.
MOST_CARD = 64 << 10
_MOST_VALUES = 50
_MOST_TEXT = 300
# How the Hub calls the way from the base model, and what the registry calls what came of it.
_KINDS = {"adapter": "adapter", "finetune": "fine-tune", "merge": "merged", "quantized": "quantised"}


def front_matter(readme: bytes) -> dict[str, Any]:
    """The values between the first two `---` lines: text, numbers, and lists of these. Empty where there are none.

    Raises:
        ValueError: it is not YAML, or not a mapping; the message says where.
    """
    text = readme[:MOST_CARD].decode("utf-8", errors="replace").lstrip("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    body, found, _ = text[4:].partition("\n---")
    if not found:
        return {}
    import yaml  # type: ignore[import-untyped]  # comes with huggingface-hub, its stubs do not

    try:
        values = yaml.safe_load(body)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that no calendar has
        raise ValueError(f"the front matter is not YAML: {' '.join(str(error).split())[:_MOST_TEXT]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError("the front matter is not a mapping of names to values")
    # Only what is flat: an alias in YAML can make a small text a huge value.
    return {key: value for key, value in values.items() if isinstance(key, str) and _is_flat(value)}


def base_models(card: dict[str, Any]) -> list[str]:
    """The models that the card names as its base."""
    value = card.get("base_model")
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name]


def kind_of(card: dict[str, Any]) -> str | None:
    """The kind that `base_model_relation` says, or None."""
    value = card.get("base_model_relation")
    return _KINDS.get(value.lower()) if isinstance(value, str) else None


def _is_flat(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= _MOST_VALUES and all(_is_flat(each) and not isinstance(each, list) for each in value)
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _MOST_TEXT)
