"""Every error Pressroom raises on purpose, in one tree.

    PressroomError
    ├── SettingsError              a setting in pressroom.toml or the environment is wrong
    ├── WorkspaceError             the workspace cannot be used
    │   ├── LockedError            another process holds what was asked for
    │   └── MigrationError         the database belongs to a newer or an unfinished version
    ├── RefError                   a reference is malformed
    ├── NotFoundError              a well-formed name that nothing answers to
    ├── InUseError                 it cannot be removed while something holds it
    ├── PluginError                a backend or source that does not exist or does not load
    │   └── MissingDependencyError a library that an extra would install
    ├── AccessError *              a key is missing, wrong, or may not do this
    ├── StoreError                 bytes could not be kept or given back
    │   ├── DigestMismatchError    bytes are not what they were declared to be
    │   ├── DamagedError *         encoded bytes were altered, or need a parent that is not the one they were made from
    │   └── StoreFullError         no room on the disk
    ├── WeightsError               a file is not usable as weights
    │   ├── UnsafeWeightsError     reading it could run code (pickle in any dress)
    │   └── MalformedWeightsError  truncated, altered, or a header that lies
    ├── SourceError                a source could not be read
    │   ├── OfflineError           it would need the network, and `offline` is on
    │   └── NetworkError           the network did not answer
    ├── AnnotationError *          a tag, a description or a run cannot be kept
    ├── FloorError *               a bound is not well written, or nothing can meet it
    ├── PromotionError *           an alias may not move so; the refusal is on record
    ├── ArchiveError *             a file of versions is cut, altered or not one
    ├── HubError *                 the hub refuses a request, with an HTTP status
    ├── TrackError *               runs could not be written down or read
    │   └── ParamChangedError *    a param of a run was given another value
    ├── BatchError *               a file or a batch of requests cannot be taken, kept or run
    ├── BenchError *               a load cannot be put on a deployment
    ├── BudgetError *              an amount, or whose it is, is not well written
    ├── RecipeError                a recipe, or what it asks for, cannot be done
    ├── PriceError *               a price that is not well written, or that nobody knows
    ├── FeedError *                messages could not be read, answered or published
    │   ├── FeedAddressError *     the address of a broker is not one
    │   └── TooLargeError *        a broker does not take a message of this size
    ├── EngineError                an engine failed
    │   ├── EngineStartError       it did not come up
    │   └── CapabilityError        it was asked for something it cannot do
    └── DeployError                a deployment could not be brought to what was asked
        ├── DeploymentFileError *  a file of a deployment cannot be followed; it says where
        ├── CheckError *           the checks of a roll-out are not well written
        └── PortInUseError         the gateway's address is taken

Those with * are defined by the part that raises them: `kernel.rights`, `store.codec`, `registry`, `registry.hub`,
`track`, `cost`, `deploy`, or `batches`, `bench`, `feeds` and `money` of `gateway`.

A message says what was asked and what was found; `hint` says what is allowed and what to do; `facts` carry the same as
data, so that the command line and the gateway can each render it their own way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class PressroomError(Exception):
    """The root of all errors raised on purpose.

    `hint` is one sentence on what to do next; `facts` are JSON-ready values about this case.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def as_dict(self) -> dict[str, Any]:
        """The error as a JSON-ready record: code, message, hint and facts."""
        return {"code": self.code, "message": self.message, "hint": self.hint, **self.facts}


class SettingsError(PressroomError):
    code = "settings"


class WorkspaceError(PressroomError):
    code = "workspace"


class LockedError(WorkspaceError):
    code = "locked"


class MigrationError(WorkspaceError):
    code = "migration"


class RefError(PressroomError):
    code = "ref"


class NotFoundError(PressroomError):
    code = "not_found"


class InUseError(PressroomError):
    code = "in_use"


class PluginError(PressroomError):
    code = "plugin"


class MissingDependencyError(PluginError):
    code = "missing_dependency"


class StoreError(PressroomError):
    code = "store"


class DigestMismatchError(StoreError):
    code = "digest_mismatch"


class StoreFullError(StoreError):
    code = "store_full"


class WeightsError(PressroomError):
    code = "weights"


class UnsafeWeightsError(WeightsError):
    code = "unsafe_weights"


class MalformedWeightsError(WeightsError):
    code = "malformed_weights"


class SourceError(PressroomError):
    code = "source"


class OfflineError(SourceError):
    code = "offline"


class NetworkError(SourceError):
    code = "network"


class RecipeError(PressroomError):
    """A recipe of compression, or what it asks for, cannot be done."""

    code = "recipe"


class EngineError(PressroomError):
    code = "engine"


class EngineStartError(EngineError):
    code = "engine_start"


class CapabilityError(EngineError):
    code = "capability"


class DeployError(PressroomError):
    code = "deploy"


class PortInUseError(DeployError):
    code = "port_in_use"


def nearest(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """The known words closest to `word`, best first; empty when none is close."""
    return difflib.get_close_matches(word, list(known), n=most, cutoff=0.5)


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """A hint naming the closest known words, or `otherwise` when none is close."""
    close = nearest(word, known)
    return f"Did you mean {' or '.join(close)}?" if close else otherwise
