"""Models in the form that an engine loads: GGUF for llama.cpp, safetensors for transformers, whole numbers for vLLM.

done = export(workspace, version, target="vllm", scheme="w4a16", name="small-vllm", text=words)
gguf = as_gguf(workspace, version)          # of a folder of safetensors, so that it can be compressed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.export._packed import Layer
    from pressroom.compress.export._schemes import SCHEMES
    from pressroom.compress.export.exporting import TARGETS, Exported, as_gguf, check_export, export

__all__ = ["SCHEMES", "TARGETS", "Exported", "Layer", "as_gguf", "check_export", "export"]

__getattr__ = _lazily(
    __name__,
    {
        "SCHEMES": "_schemes",
        "TARGETS": "exporting",
        "Exported": "exporting",
        "Layer": "_packed",
        "as_gguf": "exporting",
        "check_export": "exporting",
        "export": "exporting",
    },
)
