"""What should run, and getting there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.deploy.base import (
    AUTO,
    MAIN,
    Cluster,
    Deployment,
    Observed,
    Phase,
    Replica,
    Rollout,
    RouteWish,
    Running,
    Standing,
    Variant,
    Verdict,
    check_format,
    log_file,
)
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.deploy.checks import CheckError, Checks
    from pressroom.deploy.deployments import Deployments
    from pressroom.deploy.file import DeploymentFile, DeploymentFileError, read_deployment
    from pressroom.deploy.planning import Change, Kind, Plan, plan
    from pressroom.deploy.rolling_back import WayBack, roll_back, wait_for_switch, way_back
    from pressroom.deploy.server import Server, ServerInfo, running_server, start_detached, stop_server
    from pressroom.deploy.waiting import wait_until
    from pressroom.deploy.wishes import apply, make_route, make_wish

__all__ = [
    "AUTO",
    "MAIN",
    "Change",
    "CheckError",
    "Checks",
    "Cluster",
    "Deployment",
    "DeploymentFile",
    "DeploymentFileError",
    "Deployments",
    "Kind",
    "Observed",
    "Phase",
    "Plan",
    "Replica",
    "Rollout",
    "RouteWish",
    "Running",
    "Server",
    "ServerInfo",
    "Standing",
    "Variant",
    "Verdict",
    "WayBack",
    "apply",
    "check_format",
    "log_file",
    "make_route",
    "make_wish",
    "plan",
    "read_deployment",
    "roll_back",
    "running_server",
    "start_detached",
    "stop_server",
    "wait_for_switch",
    "wait_until",
    "way_back",
]

# Where each name is that needs the database or the gateway: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Change": "planning",
        "CheckError": "checks",
        "Checks": "checks",
        "DeploymentFile": "file",
        "DeploymentFileError": "file",
        "Deployments": "deployments",
        "Kind": "planning",
        "Plan": "planning",
        "Server": "server",
        "ServerInfo": "server",
        "WayBack": "rolling_back",
        "apply": "wishes",
        "make_route": "wishes",
        "make_wish": "wishes",
        "plan": "planning",
        "read_deployment": "file",
        "roll_back": "rolling_back",
        "running_server": "server",
        "start_detached": "server",
        "stop_server": "server",
        "wait_for_switch": "rolling_back",
        "wait_until": "waiting",
        "way_back": "rolling_back",
    },
)
