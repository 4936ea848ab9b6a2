"""Family storage: a tensor is stored once per content, and one that is near its parent's as the difference from it.

| file | what it is about |
|---|---|
| `_store` | the store in front of all the rest |
| `_writing`, `_adding`, `_coding`, `_source`, `_spool` | taking a file in |
| `_sketch`, `_parents`, `_guessing`, `_predicting` | what its tensors are told from |
| `_restoring`, `_decoding`, `_pieces`, `_stream`, `_cache` | giving it back |
| `_packs`, `_manifests`, `_plain`, `_objects` | what lies in the place |
| `_index`, `_schema`, `_queries`, `_filling`, `_rebuilding` | the index of that |
| `_sweeping`, `_checking`, `_costs`, `_parts` | space, damage, figures |
| `_guard`, `_leases` | who may be at work at once |

docs/store.md says what it does, docs/store-format.md what the bytes are.
"""

from __future__ import annotations

from pressroom.store.family._store import FamilyStore

__all__ = ["FamilyStore"]
