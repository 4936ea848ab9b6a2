"""Server-sent events in OpenAI's shape: taken apart as they come, and made."""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"[DONE]"
_END = b"\n\n"
# No event of an engine comes near it; a stream without ends would grow for ever.
_EVENT_LIMIT = 16 * 2**20


class Events:
    """The data of events, from bytes that are cut anywhere."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is complete with these bytes; comments are left out.

        Raises:
            ValueError: an event does not end.
        """
        if self._held:
            data = self._held + data
        *events, self._held = data.replace(b"\r\n", b"\n").split(_END)
        if len(self._held) > _EVENT_LIMIT:
            raise ValueError(f"an event is over {_EVENT_LIMIT} bytes")
        found = []
        for event in events:
            if event.startswith(b"data:") and b"\n" not in event:
                found.append(event[5:].strip())
            else:
                lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
                if lines:
                    found.append(b"\n".join(lines))
        return found


def event(value: Any) -> bytes:
    """`value` as an event."""
    return framed(orjson.dumps(value))


def framed(data: bytes) -> bytes:
    """JSON as an event."""
    return b"data: " + data + _END


LAST = b"data: " + DONE + _END
