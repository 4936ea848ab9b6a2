"""On which line of a file of TOML something stands: the parser of the standard library does not say."""

from __future__ import annotations

import re

_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*[=.]""")


class Places:
    """The lines of a file by table, number of the table where there are several, and key. A line is found by its
    beginning, so that a table written inline has the line that it begins on."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, int, str], int] = {}
        counts: dict[str, int] = {}
        table, number = "", 0
        for at, line in enumerate(text.splitlines(), 1):
            header = _TABLE.match(line)
            if header:
                table = header[2].strip().strip("\"'")
                counts[table] = counts.get(table, 0) + 1
                number = counts[table]
                self._lines[table, number, ""] = at
                # Tables below a table are found by its name, too: [cache.meaning] is of [cache].
                root, dot, rest = table.partition(".")
                if dot:
                    self._lines.setdefault((root, max(1, counts.get(root, 1)), rest.partition(".")[0]), at)
                continue
            key = _KEY.match(line)
            if key:
                self._lines.setdefault((table, number, key[1] or key[2] or key[3]), at)

    def line(self, table: str = "", number: int = 0, key: str = "") -> int:
        """The line of a key in a table ('' for the top), `number` counting from 1 among tables of that name; of its
        table where the key stands nowhere, and 0 where that does not either."""
        number = number or (1 if table else 0)
        return self._lines.get((table, number, key)) or self._lines.get((table, number, ""), 0)

    def line_of(self, place: str) -> int:
        """The line of a place as errors name it: `[retry] attempts`, `[[rule]] 2: only`, `cache.ttl_s`."""
        found = re.match(r"\[\[(\w+)\]\]\s*(\d+)?(?:\s*:\s*(\w+))?", place)
        if found:
            return self.line(found[1], int(found[2] or 1), found[3] or "")
        found = re.match(r"\[([\w.]+)\]\s*(?:\"([^\"]*)\"|(\w+))?", place)
        if found:
            return self.line(found[1], 1, found[2] or found[3] or "")
        while place:
            table, _, key = place.rpartition(".")
            line = self.line(table, 1 if table else 0, key)
            if line:
                return line
            place = table  # it may be written within the line of what it belongs to
        return 0
