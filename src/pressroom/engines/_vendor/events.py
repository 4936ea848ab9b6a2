"""Server-sent events, read from bytes that are cut anywhere."""

from __future__ import annotations

from pressroom.engines._vendor.refusals import malformed

# One event of a text model is a few hundred bytes; a whole tool call in one is still far below this.
_MOST_BYTES = 8 << 20


class EventReader:
    """`feed` gives the data of the events that are complete. Names, ids and comments of events are left out: what
    vendors send says in the data what it is."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Raises Refusal where an event is longer than 8 MiB."""
        *lines, self._rest = (self._rest + received).split(b"\n") if self._rest else received.split(b"\n")
        events: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                value = line[5:].removeprefix(b" ")
                self._data.append(value)
                self._size += len(value)
        if self._size + len(self._rest) > _MOST_BYTES:
            raise malformed(f"an event is longer than {_MOST_BYTES} bytes")
        return events

    def end(self) -> list[bytes]:
        """What the stream ended with, should its last event lack its empty line."""
        return self.feed(b"\n\n")
