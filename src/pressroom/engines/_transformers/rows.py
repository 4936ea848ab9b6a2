"""The sequences that a model works on at once, and their keys and values.

One buffer a layer, [slots, heads, columns, head size]. All rows end at the same column `end`, so a step writes one
column for every row, and a shorter row has unused columns before it, which the attention mask leaves out: what
`generate` calls left padding. A row joins by a copy of what its prompt left, leaves by a copy of the last row into its
place, and nothing else moves until `end` meets the end of the buffer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

Tensor = torch.Tensor
#: Keys and values of one sequence, a pair for each layer, [heads, tokens, head size].
Kept = list[tuple[Tensor, Tensor]]
_COLUMNS = 256


@dataclass(slots=True)
class Prompt:
    """A sequence to begin: its tokens, and what is known of the first of them."""

    tokens: Sequence[int]
    known: Kept | None = None
    known_tokens: int = 0

    @property
    def new(self) -> int:
        return len(self.tokens) - self.known_tokens


class Reading:
    """Prompts that are read together, in pieces of at most `most` tokens each."""

    def __init__(self, model: Model, prompts: Sequence[Prompt]) -> None:
        self._model = model
        self.prompts = prompts
        self._before = max(prompt.known_tokens for prompt in prompts)
        self._width = max(prompt.new for prompt in prompts)
        self._at = 0
        whole: Any = DynamicLayer
        self._layers: list[Any] = [whole() for _ in range(model.layers)]
        self._cache = Cache(layers=self._layers)
        rows, device = len(prompts), model.device
        tokens = torch.zeros((rows, self._width), dtype=torch.long)
        places = torch.zeros((rows, self._width), dtype=torch.long)
        mask = torch.zeros((rows, self._before + self._width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, self._width - prompt.new :] = torch.tensor(prompt.tokens[prompt.known_tokens :])
            places[row, self._width - prompt.new :] = torch.arange(prompt.known_tokens, len(prompt.tokens))
            mask[row, self._before - prompt.known_tokens : self._before] = 1
            mask[row, self._before + self._width - prompt.new :] = 1
        self._padded = not bool(mask.all())
        self._tokens, self._places, self._mask = tokens.to(device), places.to(device), mask.to(device)
        if self._before:
            self._place_known()

    def _place_known(self) -> None:
        first = next(prompt.known for prompt in self.prompts if prompt.known is not None)
        for index, layer in enumerate(self._layers):
            for which, name in enumerate(("keys", "values")):
                like = first[index][which]
                shape = (len(self.prompts), like.shape[0], self._before, like.shape[2])
                known = like.new_zeros(shape)
                for row, prompt in enumerate(self.prompts):
                    if prompt.known is not None:
                        known[row, :, self._before - prompt.known_tokens :] = prompt.known[index][which]
                setattr(layer, name, known)
            layer.dtype, layer.device, layer.is_initialized = like.dtype, like.device, True

    def step(self, most: int) -> Tensor | None:
        """Read the next piece; the logits after the last token of each prompt [rows, vocabulary] once all is read."""
        upto = min(self._at + most, self._width)
        mask = self._mask[:, : self._before + upto] if self._padded else None
        logits = self._model.forward(
            self._tokens[:, self._at : upto], self._places[:, self._at : upto], mask, self._cache
        )
        self._at = upto
        return logits if upto == self._width else None

    def kept(self, row: int) -> Kept:
        """The keys and values of a prompt that has been read: a copy of its own."""
        prompt, before = self.prompts[row], self._before
        kept: Kept = []
        for layer in self._layers:
            pair = []
            for whole in (layer.keys, layer.values):
                known = whole[row, :, before - prompt.known_tokens : before]
                read = whole[row, :, whole.shape[2] - prompt.new :]
                pair.append(torch.cat((known, read), dim=1) if prompt.known_tokens else read.clone())
            kept.append((pair[0], pair[1]))
        return kept


class Model:
    """A causal model of transformers, and which of its arguments it knows."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        names = set(inspect.signature(model.forward).parameters)
        self._positions = "position_ids" in names
        self._last_only = "logits_to_keep" in names
        # Models without attention have another name for what they remember.
        self._memory = "past_key_values" if "past_key_values" in names else "cache_params"
        self.config = model.config
        kinds = [type(layer) for layer in DynamicCache(config=model.config).layers]
        self.layers = len(kinds)
        self.sliding = DynamicSlidingWindowLayer in kinds
        #: Whether its sequences can be worked on as one batch: all it remembers are keys and values of tokens.
        tokens_only = bool(kinds) and all(kind in (DynamicLayer, DynamicSlidingWindowLayer) for kind in kinds)
        self.batches = tokens_only and {"attention_mask", "past_key_values"} <= names

    def forward(self, tokens: Tensor, places: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """Logits after the last column, [rows, vocabulary], in the dtype of the model."""
        given: dict[str, Any] = {"input_ids": tokens, self._memory: cache, "use_cache": True}
        if mask is not None:
            given["attention_mask"] = mask
        if self._positions:
            given["position_ids"] = places
        if self._last_only:
            given["logits_to_keep"] = 1
        logits: Tensor = self.model(**given).logits
        return logits[:, -1]


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call,unused-ignore]
    """A layer of the batch as the model sees it during one step: writes the new column in place."""

    def __init__(self, rows: Rows, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self._rows = rows
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("the buffers are there before the first step")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, begin, end = self._rows.count, self._rows.begin, self._rows.end
        keys, values = self._rows.buffers[self._index]
        keys[:rows, :, end : end + 1] = key_states
        values[:rows, :, end : end + 1] = value_states
        return keys[:rows, :, begin : end + 1], values[:rows, :, begin : end + 1]

    def get_seq_length(self) -> int:
        return self._rows.end - self._rows.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class Rows:
    """The batch. Rows are numbered from 0; `leave` renumbers the last one."""

    def __init__(self, model: Model, slots: int) -> None:
        self.model = model
        self.slots = slots
        self.lengths: list[int] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.end = 0
        self._columns = 0
        self._cache = Cache(layers=[_Layer(self, index) for index in range(model.layers)])

    @property
    def count(self) -> int:
        return len(self.lengths)

    def read(self, prompts: Sequence[Prompt]) -> Reading:
        """Begin to read these together."""
        return Reading(self.model, prompts)

    @property
    def begin(self) -> int:
        """The first column that a row uses."""
        return self.end - max(self.lengths, default=0)

    def join(self, kept: Kept) -> None:
        """A new last row."""
        assert self.count < self.slots, "there is a slot for every row"
        length = kept[0][0].shape[1]
        self._make_room(kept, length)
        row = self.count
        for (keys, values), (its_keys, its_values) in zip(self.buffers, kept, strict=True):
            keys[row, :, self.end - length : self.end] = its_keys
            values[row, :, self.end - length : self.end] = its_values
        self.lengths.append(length)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One token more for every row; the logits after them, [rows, vocabulary]."""
        self._make_room(None, 0)
        lengths = torch.tensor(self.lengths)
        width = self.end - self.begin
        mask = None
        if min(self.lengths) < width:
            # Columns before a row's own are another's, or nobody's.
            mask = (torch.arange(width + 1) >= (width - lengths)[:, None]).long().to(self.model.device)
        given = torch.tensor(tokens, device=self.model.device)[:, None]
        logits = self.model.forward(given, lengths[:, None].to(self.model.device), mask, self._cache)
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def kept(self, row: int) -> Kept:
        """The keys and values of a row: a copy."""
        begin = self.end - self.lengths[row]
        return [
            (keys[row, :, begin : self.end].clone(), values[row, :, begin : self.end].clone())
            for keys, values in self.buffers
        ]

    def leave(self, row: int, *, wipe: bool = False) -> None:
        """The row is done; the last one takes its number. `wipe` one whose numbers are not finite: a column of it that
        another row leaves out would still spoil that row."""
        last = self.count - 1
        if wipe:
            for pair in self.buffers:
                for each in pair:
                    each[row] = 0
        if row != last:
            begin = self.end - self.lengths[last]
            for pair in self.buffers:
                for each in pair:
                    each[row, :, begin : self.end] = each[last, :, begin : self.end]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.end = 0

    def clear(self) -> None:
        """Forget all rows and give their memory back: after an error nothing in it can be trusted."""
        self.lengths, self.buffers = [], []
        self.end = self._columns = 0

    def _make_room(self, kept: Kept | None, length: int) -> None:
        """A column after `end`, and `length` of them before it."""
        used = max(self.lengths, default=0)
        width = max(used, length)
        if self.buffers and length <= self.end and self.end < self._columns:
            return
        if self.buffers and 2 * width < self._columns and self.end >= self._columns:
            # Half of the buffer is behind every row: move to its beginning, and walk through it again.
            self._move(width)
        elif self.buffers and width < self._columns and self.end < self._columns:
            self._move(width)
        else:
            self._grow(kept, width)

    def _move(self, end: int) -> None:
        """Let the rows end at column `end`."""
        for pair in self.buffers:
            for each in pair:
                for row, length in enumerate(self.lengths):
                    # The two places may overlap.
                    each[row, :, end - length : end] = each[row, :, self.end - length : self.end].clone()
        self.end = end

    def _grow(self, kept: Kept | None, width: int) -> None:
        columns = _COLUMNS * -(-(width + width // 2 + 1) // _COLUMNS)
        like = self.buffers or [(keys[None], values[None]) for keys, values in kept or ()]
        for index, pair in enumerate(like):
            # Zeros, for what is masked is still multiplied: by zero, which a NaN in fresh memory would survive.
            keys, values = (each.new_zeros((self.slots, each.shape[1], columns, each.shape[3])) for each in pair)
            for old, new in zip(pair, (keys, values), strict=True):
                for row, length in enumerate(self.lengths):
                    new[row, :, width - length : width] = old[row, :, self.end - length : self.end]
            # One layer after the other: old and new are never there for all layers at once.
            if index < len(self.buffers):
                self.buffers[index] = (keys, values)
            else:
                self.buffers.append((keys, values))
        self.end, self._columns = width, columns
