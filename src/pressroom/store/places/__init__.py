"""Where the store's pieces lie: `file://` a directory, `s3://` a bucket."""

from __future__ import annotations

from pressroom.store.places._opening import open_place
from pressroom.store.places.base import Place, Writer

__all__ = ["Place", "Writer", "open_place"]
