"""Text as language: what it is written in, and what in it is personal or secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.text.findings import Finding, in_pieces
    from pressroom.text.languages import language_of
    from pressroom.text.marks import redacted
    from pressroom.text.personal import personal_data
    from pressroom.text.secret_words import secrets_in

__all__ = ["Finding", "in_pieces", "language_of", "personal_data", "redacted", "secrets_in"]

__getattr__ = _lazily(
    __name__,
    {
        "Finding": "findings",
        "in_pieces": "findings",
        "language_of": "languages",
        "personal_data": "personal",
        "redacted": "marks",
        "secrets_in": "secret_words",
    },
)
