"""A text without what is personal or secret in it: a mark stands in its place."""

from __future__ import annotations

from pressroom.text.findings import Finding, disjoint
from pressroom.text.personal import personal_data
from pressroom.text.secret_words import secrets_in


def redacted(text: str) -> str:
    """The text with every finding of `personal_data` and `secrets_in` replaced by its kind: `[EMAIL]`, `[CARD]`,
    `[SECRET]` for all secrets. Redacting what was redacted changes nothing."""
    # Once more where something was found: a mark may end what kept its neighbour from being found. Marks themselves are
    # never found, so this ends.
    while found := _found(text):
        parts: list[str] = []
        end = 0
        for finding in found:
            parts += (text[end : finding.start], "[", finding.kind.upper().replace("-", "_"), "]")
            end = finding.end
        parts.append(text[end:])
        text = "".join(parts)
    return text


def _found(text: str) -> list[Finding]:
    secret = secrets_in(text)
    personal = personal_data(text)
    # All secrets have one mark; where one looks like something personal as well, it is a secret if it begins first.
    return disjoint([Finding("secret", one.start, one.end) for one in secret] + personal) if secret else personal
