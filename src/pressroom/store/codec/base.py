"""What both paths of the codec share."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pressroom.kernel.errors import StoreError

Array = NDArray[Any]

# Raw bytes of a block: small enough to be decoded in a core's cache and fetched alone, large enough that its tables and
# states weigh nothing.
BLOCK = 2 << 20


class DamagedError(StoreError):
    """Stored bytes that no encoder wrote, or that do not fit the place they are read for."""

    code = "damaged"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(
            message,
            hint="The store was altered or the disk is failing. `press verify` names what is affected; pull it again.",
            **facts,
        )
