"""What should run, and getting there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pressroom.deploy.base import Cluster, Deployment, Observed, Phase, Replica, Running, check_format, log_file

if TYPE_CHECKING:
    from pressroom.deploy.deployments import Deployments
    from pressroom.deploy.server import Server, ServerInfo, running_server, start_detached, stop_server
    from pressroom.deploy.waiting import wait_until

__all__ = [
    "Cluster",
    "Deployment",
    "Deployments",
    "Observed",
    "Phase",
    "Replica",
    "Running",
    "Server",
    "ServerInfo",
    "check_format",
    "log_file",
    "running_server",
    "start_detached",
    "stop_server",
    "wait_until",
]

# Where each name is that needs the database or the gateway: loaded when used.
_LAZY = {
    "Deployments": "deployments",
    "Server": "server",
    "ServerInfo": "server",
    "running_server": "server",
    "start_detached": "server",
    "stop_server": "server",
    "wait_until": "waiting",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
