"""The text of a data version."""

from __future__ import annotations

import re

from pressroom.kernel import SourceError, Workspace
from pressroom.registry.base import Version
from pressroom.registry.registry import Registry

# Headings, emphasis and rules of Markdown: marks, not words of the text.
_MARKDOWN = re.compile(r"[#*_]+")


def read_text(workspace: Workspace, version: Version) -> str:
    """The text of a version of one file, in UTF-8. Of a Markdown file the marks `#`, `*` and `_` are taken out, so that
    a play measures as the play.

    Raises:
        SourceError: it has several files, or is not UTF-8.
    """
    if len(version.files) != 1:
        raise SourceError(
            f"{version.ref} has {len(version.files)} files, not one text", hint="Pull one file: SOURCE#FILE --data."
        )
    (entry,) = version.files
    with Registry(workspace).store.open(entry.blob) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{entry.path} of {version.ref} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}",
            hint="Convert it to UTF-8 and pull it again.",
        ) from error
    return _MARKDOWN.sub("", text) if entry.path.lower().endswith((".md", ".markdown")) else text
