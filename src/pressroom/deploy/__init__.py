"""What should run, and getting there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.deploy.base import (
    AUTO,
    Cluster,
    Deployment,
    Observed,
    Phase,
    Replica,
    Running,
    Variant,
    check_format,
    log_file,
)
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.deploy.deployments import Deployments
    from pressroom.deploy.server import Server, ServerInfo, running_server, start_detached, stop_server
    from pressroom.deploy.waiting import wait_until
    from pressroom.deploy.wishes import make_wish

__all__ = [
    "AUTO",
    "Cluster",
    "Deployment",
    "Deployments",
    "Observed",
    "Phase",
    "Replica",
    "Running",
    "Server",
    "ServerInfo",
    "Variant",
    "check_format",
    "log_file",
    "make_wish",
    "running_server",
    "start_detached",
    "stop_server",
    "wait_until",
]

# Where each name is that needs the database or the gateway: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Deployments": "deployments",
        "make_wish": "wishes",
        "Server": "server",
        "ServerInfo": "server",
        "running_server": "server",
        "start_detached": "server",
        "stop_server": "server",
        "wait_until": "waiting",
    },
)
