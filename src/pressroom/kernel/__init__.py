"""What every part may use: errors, settings, the workspace with its database and locks, refs, plugins, events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.errors import (
    CapabilityError,
    DeployError,
    DigestMismatchError,
    EngineError,
    EngineStartError,
    InUseError,
    LockedError,
    MalformedWeightsError,
    MigrationError,
    MissingDependencyError,
    NetworkError,
    NotFoundError,
    OfflineError,
    PluginError,
    PortInUseError,
    PressroomError,
    RecipeError,
    RefError,
    SettingsError,
    SourceError,
    StoreError,
    StoreFullError,
    UnsafeWeightsError,
    WeightsError,
    WorkspaceError,
    did_you_mean,
    nearest,
)
from pressroom.kernel.events import Event, Events, Note, Progress
from pressroom.kernel.lazy import lazily as _lazily
from pressroom.kernel.machine import Machine, this_machine
from pressroom.kernel.refs import Ref, is_name
from pressroom.kernel.settings import (
    BatchSettings,
    CostSettings,
    EnginesSettings,
    GatewaySettings,
    HubSettings,
    LedgerSettings,
    MeasureSettings,
    RolloutSettings,
    Settings,
    StorageSettings,
)
from pressroom.kernel.workspace import Workspace

if TYPE_CHECKING:
    from pressroom.kernel.keys import AccessError, Key, Keys

__all__ = [
    "AccessError",
    "BatchSettings",
    "CapabilityError",
    "CostSettings",
    "DeployError",
    "DigestMismatchError",
    "EngineError",
    "EngineStartError",
    "EnginesSettings",
    "Event",
    "Events",
    "GatewaySettings",
    "HubSettings",
    "InUseError",
    "Key",
    "Keys",
    "LedgerSettings",
    "LockedError",
    "Machine",
    "MalformedWeightsError",
    "MeasureSettings",
    "MigrationError",
    "MissingDependencyError",
    "NetworkError",
    "NotFoundError",
    "Note",
    "OfflineError",
    "PluginError",
    "PortInUseError",
    "PressroomError",
    "Progress",
    "RecipeError",
    "Ref",
    "RefError",
    "RolloutSettings",
    "Settings",
    "SettingsError",
    "SourceError",
    "StorageSettings",
    "StoreError",
    "StoreFullError",
    "UnsafeWeightsError",
    "WeightsError",
    "Workspace",
    "WorkspaceError",
    "did_you_mean",
    "is_name",
    "nearest",
    "this_machine",
]

# Keys are in the database, and SQLAlchemy takes 0.13 s to import: loaded when used.
__getattr__ = _lazily(__name__, {"AccessError": "keys", "Key": "keys", "Keys": "keys"})
