"""What goes into every linear layer of a model on a text: which columns of its weights matter, and which together.

found = calibrate(model, text, tokens=8192, folder=cache)
found.moments["blk.0.ffn_down.weight"]     # the mean square of each input column
found.hessians["blk.0.ffn_down.weight"]    # the mean of x xᵀ, mapped from a file
"""

from __future__ import annotations

from pressroom.compress.calibrate._blocks import Blocks, least_blocks
from pressroom.compress.calibrate._file import load, save
from pressroom.compress.calibrate._run import calibrate
from pressroom.compress.calibrate.base import Calibration
from pressroom.compress.calibrate.imatrix import Importance, read_imatrix, write_imatrix

__all__ = [
    "Blocks",
    "Calibration",
    "Importance",
    "calibrate",
    "least_blocks",
    "load",
    "read_imatrix",
    "save",
    "write_imatrix",
]
