"""Vectors of texts, by a sentence encoder."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import torch

from pressroom.engines._transformers._fields import token_ids
from pressroom.engines._transformers.folder import Pooling
from pressroom.engines._transformers.refusal import Refusal, failed, too_long, unsupported, wrong
from pressroom.engines._transformers.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

# OpenAI's bounds of one request.
_MOST_INPUTS = 2048
# Tokens, with the padding, that go through the model at once.
_TOGETHER = 8192
# Inputs that are sorted by length before they are put together.
_SORTED = 512
_MOST_WAITING = 32_768
# Characters of one input, for each token of the context: far more than any text has.
_MOST_CHARACTERS = 1000
_HARMLESS = frozenset(("model", "user"))
_KNOWN = _HARMLESS | {"input", "encoding_format", "dimensions", "add_special_tokens"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A request: its inputs as tokens, and the form its vectors are given in."""

    inputs: list[list[int]]
    packed: bool


class Encoder:
    """The model, and how its tokens' vectors become one. Used by one thread."""

    def __init__(
        self, model: Any, vocabulary: Vocabulary, pooling: Pooling, context: int, device: torch.device
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.pooling = pooling
        self.context = context
        self.device = device
        self.size = int(model.config.get_text_config().hidden_size)

    def read(self, fields: Any) -> Wanted:
        """Check a request; raises Refusal."""
        if type(fields) is not dict:
            raise Refusal("The body of the request must be a JSON object.")
        fields = {name: value for name, value in fields.items() if value is not None}
        for name in fields:
            if name not in _KNOWN:
                raise unsupported(name[:200], f"the engine of this model does not know '{name[:200]}'.")
        if "input" not in fields:
            raise wrong("input", "Missing required parameter: 'input'.", "missing_required_parameter")
        form = fields.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise wrong("encoding_format", "'encoding_format' is 'float' or 'base64'.")
        dimensions = fields.get("dimensions", self.size)
        if type(dimensions) is not int or dimensions != self.size:
            raise unsupported("dimensions", f"this model gives vectors of {self.size} numbers, and no shorter ones.")
        return Wanted(inputs=self._inputs(fields["input"], fields), packed=form == "base64")

    def _inputs(self, value: Any, fields: dict[str, Any]) -> list[list[int]]:
        special = fields.get("add_special_tokens", True)
        if type(special) is not bool:
            raise wrong("add_special_tokens", "'add_special_tokens' must be a boolean.", "invalid_type")
        if type(value) is str or (type(value) is list and value and type(value[0]) is int):
            value = [value]
        if type(value) is not list or not value:
            raise wrong(
                "input", "'input' must be a string, an array of strings, or of arrays of tokens.", "invalid_type"
            )
        if len(value) > _MOST_INPUTS:
            raise wrong("input", f"'input' has {len(value)} entries; at most {_MOST_INPUTS} are allowed.")
        inputs = []
        for each in value:
            if type(each) is str:
                tokens = self._tokens(each, special=special)
            else:
                tokens = list(token_ids({"input": each}, "input", self.vocabulary.size) or ())
            if not tokens:
                raise wrong("input", "'input' holds an empty text.", "empty_string")
            if len(tokens) > self.context:
                raise too_long(len(tokens), self.context, param="input")
            inputs.append(tokens)
        return inputs

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        if not text:
            return []
        # Tokenizers of encoders drop spaces and accents: what is counted is what cannot vanish in them.
        surplus = sum(map(len, text.split())) // self.vocabulary.longest
        if surplus > 4 * self.context:
            raise too_long(surplus, self.context, param="input", at_least=True)
        if len(text) > _MOST_CHARACTERS * self.context:
            most = _MOST_CHARACTERS * self.context
            message = f"An input has {len(text)} characters, most of them spaces; at most {most} are read."
            raise wrong("input", message, "string_above_max_length")
        return self.vocabulary.encode(text, special=special)

    def encode(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        """The vectors, [inputs, size] in float32 on the CPU."""
        width = max(map(len, inputs))
        tokens = torch.full((len(inputs), width), self.vocabulary.tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros((len(inputs), width), dtype=torch.long)
        for row, each in enumerate(inputs):
            tokens[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        with torch.inference_mode():
            mask = mask.to(self.device)
            hidden = self.model(input_ids=tokens.to(self.device), attention_mask=mask).last_hidden_state.float()
            vectors = _pooled(hidden, mask, self.pooling.mode)
            if self.pooling.normal:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.cpu()


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "cls":
        return hidden[:, 0]
    if mode == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    real = mask[:, :, None].bool()
    if mode == "max":
        return hidden.masked_fill(~real, float("-inf")).amax(dim=1)
    return hidden.masked_fill(~real, 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class Job:
    """A request while its vectors are computed; `gone` is set by the server's thread."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.vectors: list[Any] = [None] * len(wanted.inputs)
        self.missing = len(wanted.inputs)
        self.gone = False

    def body(self, model: str) -> dict[str, Any]:
        """The answer."""
        data = [
            {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(self.vectors)
        ]
        tokens = sum(map(len, self.wanted.inputs))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": model, "usage": usage}


class EncoderThread:
    """Runs the model: inputs of all requests together, sorted by length so that little is padding. `tell` is called
    with a job and its answer, or with the Refusal where it failed."""

    def __init__(self, encoder: Encoder, tell: Callable[[Job, bytes | Refusal], None], name: str) -> None:
        self._encoder = encoder
        self._tell = tell
        self._name = name
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Job, int]] = deque()
        self._working = 0
        threading.Thread(target=self._run, name="model", daemon=True).start()

    @property
    def counts(self) -> dict[str, int]:
        """For /health: inputs."""
        return {"running": self._working, "waiting": len(self._waiting)}

    def submit(self, job: Job) -> bool:
        """Let it be done; False where too much waits already."""
        with self._changed:
            if len(self._waiting) + job.missing > _MOST_WAITING:
                return False
            self._waiting.extend((job, index) for index in range(job.missing))
            self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                taken = [self._waiting.popleft() for _ in range(min(_SORTED, len(self._waiting)))]
            taken.sort(key=lambda each: len(each[0].wanted.inputs[each[1]]))
            self._working = len(taken)
            for group in _groups(taken):
                self._encode([each for each in group if not each[0].gone])
                self._working -= len(group)

    def _encode(self, group: list[tuple[Job, int]]) -> None:
        if not group:
            return
        try:
            vectors = self._encoder.encode([job.wanted.inputs[index] for job, index in group]).numpy()
        except Exception as error:  # noqa: BLE001
            # The edge of this process: these requests fail, the engine lives on.
            _log.exception("a step of the model failed")
            for job in {id(job): job for job, _ in group}.values():
                job.gone = True
                self._tell(job, failed(f"the model failed: {type(error).__name__}: {str(error)[:300]}"))
            time.sleep(0.05)
            return
        for (job, index), vector in zip(group, vectors.astype("<f4"), strict=True):
            if job.wanted.packed:
                job.vectors[index] = base64.b64encode(vector.tobytes()).decode()
            else:
                job.vectors[index] = vector.copy()
            job.missing -= 1
            if not job.missing:
                self._tell(job, orjson.dumps(job.body(self._name), option=orjson.OPT_SERIALIZE_NUMPY))


def _groups(sorted_inputs: list[tuple[Job, int]]) -> list[list[tuple[Job, int]]]:
    groups: list[list[tuple[Job, int]]] = []
    for each in sorted_inputs:
        width = len(each[0].wanted.inputs[each[1]])
        if not groups or (len(groups[-1]) + 1) * width > _TOGETHER:
            groups.append([])
        groups[-1].append(each)
    return groups
