"""Prompts that no cache knows: different from their first word on, and about as long as was asked for."""

from __future__ import annotations

import random

# Common words, each one token of most vocabularies.
_WORDS = (
    b"river stone market garden letter window winter summer engine copper silver paper music story island forest "
    b"mountain village harbour bridge station teacher doctor farmer captain soldier painter writer morning evening "
    b"yellow green black white small large early later inside outside under above between behind quickly slowly "
    b"always never often water bread fruit table chair house street field ocean cloud thunder light shadow silent "
    b"bright heavy narrow open closed broken simple strange familiar distant number answer question reason result "
    b"method system machine signal current pressure weight metal glass leather cotton wheel hammer basket lantern"
).split()
_SHARED = 0.75


class Prompts:
    """Makes the bodies of requests. `words` is how long a prompt is; `fields` is the JSON of the other fields."""

    def __init__(self, *, model: str, endpoint: str, seed: int, same_prefix: bool) -> None:
        import orjson

        self._random = random.Random(seed)  # noqa: S311  nothing secret
        self._name = orjson.dumps(model)
        self._chat = endpoint == "chat"
        self._shared: list[bytes] = []
        self._same_prefix = same_prefix
        self.words = 100

    def body(self, fields: bytes) -> bytes:
        """The next request; `fields` are the inside of a JSON object."""
        text = b" ".join(self._next())
        form = b'"messages":[{"role":"user","content":"%b"}]' if self._chat else b'"prompt":"%b"'
        said = form % text
        return b'{"model":%b,%b,%b}' % (self._name, said, fields)

    def _next(self) -> list[bytes]:
        shared = int(self.words * _SHARED) if self._same_prefix else 0
        if len(self._shared) < shared:
            self._shared = random.Random(shared).choices(_WORDS, k=shared)  # noqa: S311  nothing secret
        return self._shared[:shared] + self._random.choices(_WORDS, k=max(1, self.words - shared))
