"""What a tensor is for, by the name that llama.cpp gives it: all llama-like architectures have the same names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"

_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)")
# Fused ones (phi3, chatglm) and those of experts that every token goes through are linear layers like the others.
_LINEAR = re.compile(r"(attn_q|attn_k|attn_v|attn_qkv|attn_output|(ffn_gate|ffn_up|ffn_down)(_shexp)?)\.weight")
_EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)_exps\.weight")


class Role(StrEnum):
    """What a tensor does. Only linear layers, experts, the embedding and the head are ever put in another format."""

    LINEAR = "linear"
    #: The linear layers of all experts of a layer in one tensor of three dimensions.
    EXPERTS = "experts"
    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"
    #: Routers, tables of positions, and whatever an architecture has of its own.
    OTHER = "other"

    @property
    def compressible(self) -> bool:
        """Whether the format of such a tensor may be changed. llama.cpp wants the others as they are."""
        return self in (Role.LINEAR, Role.EXPERTS, Role.EMBEDDING, Role.HEAD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One tensor of a file of weights.

    `shape` has the outermost dimension first: a linear layer is (outputs, inputs). `type` is ggml's name of the type
    (Q4_1) and `number` its number; the data are `nbytes` bytes from `offset` of the file on. `layer` is None outside of
    the layers, and `part` the name within one: `attn_q` for `blk.3.attn_q.weight`.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    number: int
    offset: int
    nbytes: int
    role: Role
    layer: int | None
    part: str

    @property
    def columns(self) -> int:
        """The weights of a row, which blocks of number formats lie along: the inputs of a linear layer."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """How many rows there are, over all outer dimensions."""
        return self.elements // self.columns

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


def role_of(name: str, shape: tuple[int, ...]) -> tuple[Role, int | None, str]:
    """The role of a tensor, its layer, and its name within that."""
    found = _BLOCK.fullmatch(name)
    layer, rest = (int(found[1]), found[2]) if found else (None, name)
    part = rest.removesuffix(".weight")
    return _role(name, rest, len(shape), in_layer=found is not None), layer, part


def _role(name: str, rest: str, dimensions: int, *, in_layer: bool) -> Role:
    if rest.endswith("_norm.weight"):
        return Role.NORM
    if rest.endswith(".bias"):
        return Role.BIAS
    if in_layer and dimensions == 2 and _LINEAR.fullmatch(rest):
        return Role.LINEAR
    if in_layer and dimensions == 3 and _EXPERTS.fullmatch(rest):
        return Role.EXPERTS
    if dimensions == 2 and name in (EMBEDDING, HEAD):
        return Role.EMBEDDING if name == EMBEDDING else Role.HEAD
    return Role.OTHER
