"""A GGUF file's weights as a model of transformers that can be trained, and back.

    with open_weights(path) as source:
        check(source)                              # says what stands in the way, in no time
        bridge = load(source)                      # float32, the very numbers of the file
        ...                                        # bridge.model is a causal language model of transformers
        save(target, source, bridge.store())       # the file with these weights

`scratch` makes a smaller file of untrained weights with the same tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.models._architectures import ARCHITECTURES
    from pressroom.compress.models._bridge import Bridge, load
    from pressroom.compress.models._saving import save
    from pressroom.compress.models._scratch import Sizes, scratch
    from pressroom.compress.models._shape import Shape, check

__all__ = ["ARCHITECTURES", "Bridge", "Shape", "Sizes", "check", "load", "save", "scratch"]

__getattr__ = _lazily(
    __name__,
    {
        "ARCHITECTURES": "_architectures",
        "Bridge": "_bridge",
        "Shape": "_shape",
        "Sizes": "_scratch",
        "check": "_shape",
        "load": "_bridge",
        "save": "_saving",
        "scratch": "_scratch",
    },
)
