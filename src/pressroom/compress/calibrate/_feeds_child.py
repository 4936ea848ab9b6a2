"""Reads a text with a model and keeps what enters its feed-forwards, position by position, in a process of its own as
`_child` does. Started by `experts`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from pressroom.compress.calibrate._child import main
from pressroom.compress.calibrate._windows import windows_of
from pressroom.kernel import RecipeError

_UP = re.compile(r"(?:.*#)?blk\.(\d+)\.ffn_up\.weight(?:#.*)?")
# Tokens of a window that are computed at once.
_PIECE = 512


def _collect(task: dict[str, Any], text: str, answer: Any) -> None:
    from pressroom.compress.calibrate._llama import Llama, Node

    layers, window, width = int(task["layers"]), int(task["window"]), int(task["width"])
    piece = min(window, _PIECE)
    kept = np.memmap(task["path"], np.float16, "r+", shape=(layers, int(task["rows"]), width))
    at, wanted, over = 0, np.empty(0, np.intp), False

    def watch(node: Node, ask: bool) -> bool:
        nonlocal over
        if over or node.op not in llama.multiplied:
            return False
        found = _UP.fullmatch(Node.from_address(node.src[0]).name.decode(errors="replace"))
        if found is None:
            return False
        layer = int(found[1])
        if not ask:
            rows = llama.values(int(node.src[1])).reshape(-1, width)[wanted]
            if not np.isfinite(rows).all() or np.abs(rows).max() > np.finfo(np.float16).max:
                raise RecipeError(
                    f"what enters the feed-forward of layer {layer} is not finite, or beyond what 16 bits hold",
                    hint="The weights are damaged, or the model cannot be computed so; try another text.",
                    layer=layer,
                )
            kept[layer, at : at + len(rows)] = rows
            over = layer == layers - 1  # what comes behind it nobody wants
            return not over
        return True

    llama = Llama(Path(task["model"]), window=window, piece=piece, threads=int(task["threads"]), watch=watch)
    _, parts = windows_of(llama, text, tokens=int(task["tokens"]), window=window)
    windows = len(parts)
    total = windows * window
    # Evenly over the text where there are more positions than rows.
    chosen = np.unique(np.linspace(0, total - 1, min(total, kept.shape[1])).astype(np.int64))
    for number, part in enumerate(parts):
        for first in range(0, window, piece):
            start = number * window + first
            wanted = chosen[(chosen >= start) & (chosen < start + piece)] - start
            over = False
            llama.read(part[first : first + piece], first)
            at += len(wanted)
        answer(done=number + 1, windows=windows)
    kept.flush()
    answer(finished=True, rows=at)


if __name__ == "__main__":
    main(_collect)
