"""Loading models and letting them go, as a client of the gateway may ask: wishes, like those of `press deploy`."""

from __future__ import annotations

from pressroom.deploy.base import Deployment, Observed, Phase
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.waiting import wait_until
from pressroom.gateway import Servable, Standing
from pressroom.kernel import Ref, Workspace

# Longer than an engine takes to end its requests and then itself.
_STOP_S = 90.0
_STANDINGS = {
    Phase.READY: Standing.READY,
    Phase.STARTING: Standing.LOADING,
    Phase.BACKOFF: Standing.LOADING,
    Phase.WAITING: Standing.LOADING,
    # It answers: the request that finds it asleep wakes it.
    Phase.ASLEEP: Standing.READY,
    Phase.FAILED: Standing.UNAVAILABLE,
    Phase.STOPPED: Standing.UNAVAILABLE,
}


class Control:
    """What may be loaded is what was deployed before: a stopped deployment keeps its wish. Thread-safe."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._deployments = Deployments(workspace)

    def index(self) -> list[Servable]:
        """Every deployment, running or not."""
        return [_servable(wish, self._deployments.observed(wish)) for wish in self._deployments.list()]

    def metadata(self, name: str) -> Servable:
        """The deployment called `name`. Raises NotFoundError."""
        wish = self._deployments.get(name)
        return _servable(wish, self._deployments.observed(wish))

    def load(self, name: str) -> None:
        """Start a deployment and return when it answers.

        Raises:
            NotFoundError: there is none of this name.
            DeployError: it does not come up, or not in time.
        """
        wish = self._deployments.start(name)
        if self._deployments.observed(wish).phase in (Phase.FAILED, Phase.ASLEEP):
            wish = self._deployments.retry(name)
        timeout_s = self._workspace.settings.engines.start_timeout_s
        wait_until(self._deployments, wish, Phase.READY, timeout_s=timeout_s)

    def unload(self, name: str) -> None:
        """Stop a deployment and return when its engines are gone. Raises NotFoundError, DeployError."""
        wait_until(self._deployments, self._deployments.stop(name), Phase.STOPPED, timeout_s=_STOP_S)


def _servable(wish: Deployment, seen: Observed) -> Servable:
    standing = _STANDINGS[seen.phase]
    number = Ref.parse(wish.ref).version
    return Servable(
        name=wish.name,
        version=str(number or "1"),
        standing=standing,
        reason="" if standing is Standing.READY else seen.detail or seen.phase.value,
        platform=wish.engine,
    )
