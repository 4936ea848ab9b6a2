"""MLflow's gateway with a file of endpoints: the form without a database, which is its fastest."""

from __future__ import annotations

from _gateway_peers import Launch, Peer, Place, Way

_CONFIG = """\
endpoints:
  - name: echo
    endpoint_type: llm/v1/chat
    model:
      provider: openai
      name: echo
      config:
        openai_api_key: none
        openai_api_base: http://127.0.0.1:{upstream}/v1
"""


def _with(workers: int | None) -> Way:
    def launch(place: Place) -> Launch:
        config = place.write("config.yaml", _CONFIG.format(upstream=place.upstream))
        command = [str(place.binaries / "mlflow"), "gateway", "start", "--config-path", config]
        command += ["--host", "127.0.0.1", "--port", str(place.port)]
        return Launch(command=command if workers is None else [*command, "--workers", str(workers)])

    return Way(said="its defaults: two workers" if workers is None else f"--workers {workers}", launch=launch)


PEERS = (
    Peer(
        name="mlflow",
        environment="mlflow",
        packages=("mlflow[gateway]==3.17.2",),
        health="/health",
        ways=(_with(None), _with(1)),
    ),
)
