"""A proxy as one writes it in an afternoon: FastAPI and httpx, in `_gateway_fastapi_app.py`."""

from __future__ import annotations

from pathlib import Path

from _gateway_peers import Launch, Peer, Place, Way


def _launch(place: Place) -> Launch:
    app = "_gateway_fastapi_app:app"
    command = [str(place.binaries / "uvicorn"), app, "--app-dir", str(Path(__file__).parent), "--host", "127.0.0.1"]
    command += ["--port", str(place.port), "--no-access-log", "--loop", "uvloop", "--http", "httptools"]
    return Launch(command=command, environ={"UPSTREAM": f"http://127.0.0.1:{place.upstream}"})


PEERS = (
    Peer(
        name="fastapi_httpx",
        environment="fastapi",
        packages=("fastapi==0.165.0", "httpx==0.28.1", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
        health="/health",
        ways=(Way(said="uvicorn with uvloop and httptools, one worker, no access log", launch=_launch),),
    ),
)
