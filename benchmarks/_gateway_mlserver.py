"""MLServer, for KServe's V2 protocol: a runtime that gives `text_input` back (`_gateway_mlserver_runtime.py`).

It answers in its own process; Pressroom passes the question on to an engine. `debug` is off, as in its production
images: with it, every request is logged.
"""

from __future__ import annotations

import json
from pathlib import Path

from _gateway_peers import Launch, Peer, Place, Way
from _gateway_running import free_port


def _with(parallel_workers: int | None) -> Way:
    def launch(place: Place) -> Launch:
        settings = {"debug": False, "host": "127.0.0.1", "http_port": place.port, "grpc_port": place.grpc_port}
        settings |= {"metrics_port": free_port()}
        if parallel_workers is not None:
            settings |= {"parallel_workers": parallel_workers}
        place.write("settings.json", json.dumps(settings))
        model = {"name": "mirror", "implementation": "_gateway_mlserver_runtime.Echo"}
        place.write("model-settings.json", json.dumps(model))
        command = [str(place.binaries / "mlserver"), "start", str(place.folder)]
        return Launch(command=command, environ={"PYTHONPATH": str(Path(__file__).parent)})

    workers = "the default (1)" if parallel_workers is None else str(parallel_workers)
    return Way(said=f"debug false, parallel_workers {workers}", launch=launch)


PEERS = (
    Peer(
        name="mlserver",
        environment="mlserver",
        # Its worker processes do not start with a later uvloop, which makes no event loop where there is none.
        packages=("mlserver==1.7.1", "uvloop==0.21.0"),
        health="/v2/health/ready",
        ways=(_with(0), _with(None)),
    ),
)
