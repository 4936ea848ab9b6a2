"""LiteLLM's proxy, as shipped and as its own guide for production says.

Without a database and without Redis, which its guide asks for only where keys are kept and several instances share
them: both would only slow it down. Its Rust core takes over requests to Anthropic and Bedrock, not to an engine that
speaks OpenAI's protocol.
"""

from __future__ import annotations

import os

from _gateway_peers import Launch, Peer, Place, Way
from _gateway_running import key

_PACKAGES = ("litellm[proxy]==1.106.2",)
_MODEL = """\
model_list:
  - model_name: echo
    litellm_params:
      model: openai/echo
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: none
"""
# `callbacks` and `num_retries` are those of its own benchmark.
_TUNED = """\
litellm_settings:
  set_verbose: false
  callbacks: []
  num_retries: 0
  request_timeout: 600
"""
# It refuses to start without a key, and would fetch its list of prices from the network while it starts.
_NEEDED = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
_PRODUCTION = {**_NEEDED, "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
# A worker takes longer to load than uvicorn lets it be silent: without this it is ended before it is up, for ever.
_PATIENT = ("--timeout_worker_healthcheck", "60")
_QUIET = "LITELLM_LOG=ERROR (no access log either), LITELLM_MODE=PRODUCTION, callbacks [], num_retries 0"


def _shipped(place: Place) -> Launch:
    config = place.write("config.yaml", _MODEL.format(upstream=place.upstream))
    return Launch(command=_command(place, config), environ={**_NEEDED, "LITELLM_MASTER_KEY": key()})


def _tuned(workers: int, *more: str) -> Way:
    def launch(place: Place) -> Launch:
        config = place.write("config.yaml", _MODEL.format(upstream=place.upstream) + _TUNED)
        command = [*_command(place, config), "--num_workers", str(workers), *more]
        return Launch(command=command, environ={**_PRODUCTION, "LITELLM_MASTER_KEY": key()})

    return Way(said=f"--num_workers {workers} {' '.join(more)}".strip() + f", {_QUIET}", launch=launch)


def _command(place: Place, config: str) -> list[str]:
    return [str(place.binaries / "litellm"), "--config", config, "--host", "127.0.0.1", "--port", str(place.port)]


_CORES = os.cpu_count() or 1
_HEALTH = "/health/liveliness"
PEERS = (
    Peer(
        name="litellm",
        environment="litellm",
        packages=_PACKAGES,
        health=_HEALTH,
        ways=(Way(said="its defaults: one worker, its logging", launch=_shipped),),
    ),
    Peer(
        name="litellm_tuned",
        environment="litellm",
        packages=_PACKAGES,
        health=_HEALTH,
        ways=(_tuned(1), _tuned(2, *_PATIENT), _tuned(1, "--run_granian"), _tuned(2, "--run_granian")),
        all_cores=(_tuned(_CORES, *_PATIENT), _tuned(_CORES, "--run_granian")),
    ),
)
