"""Real S3 servers on loopback, started by the tests: SeaweedFS where it is installed, and moto, which always is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

KEY, SECRET = "AKTESTTESTTESTTEST", "sesame-open-sesame-open-sesame-open-sesame"
# Only ends a test that fails.
_PATIENCE_S = 60.0

#: Which of them can run here. SeaweedFS checks signatures and conditions as Amazon does; moto takes every signature.
KINDS = [
    kind for kind in ("weed", "moto_server") if shutil.which(kind) or Path(sys.executable).with_name(kind).exists()
]


@dataclass
class Bucket:
    """The bucket `tests`, and a client of another make that looks at it from the side."""

    kind: str
    endpoint: str
    name = "tests"

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    @property
    def checks_signatures(self) -> bool:
        return self.kind == "weed"

    def make(self) -> None:
        self.client.create_bucket(Bucket=self.name)
        # The first bytes make SeaweedFS lay out its volumes, which takes seconds.
        self.client.put_object(Bucket=self.name, Key="first", Body=b"x")

    def prefix(self, tmp_path: Path) -> str:
        """One for each test."""
        return f"{self.kind}/{tmp_path.name}"

    def url(self, tmp_path: Path) -> str:
        return f"s3://{self.name}/{self.prefix(tmp_path)}"

    def objects(self, tmp_path: Path) -> dict[str, int]:
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=self.prefix(tmp_path) + "/").get("Contents", [])
        return {one["Key"].removeprefix(self.prefix(tmp_path) + "/"): one["Size"] for one in found}

    def uploads(self, tmp_path: Path) -> list[str]:
        """The names of what is being uploaded in parts, or was when its process was killed."""
        found = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        start = self.prefix(tmp_path) + "/"
        return [one["Key"].removeprefix(start) for one in found if one["Key"].startswith(start)]


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[str]:
    """The URL of a running server that keeps its things in `directory` and is gone after the block."""
    program = shutil.which(kind) or str(Path(sys.executable).with_name(kind))
    directory.mkdir(parents=True)
    if kind == "weed":
        port, arguments = _weed(directory)
    else:
        port = _free_ports(1)[0]
        arguments = ["-H", "127.0.0.1", "-p", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"HOME": str(directory), "AWS_ACCESS_KEY_ID": "unused", "AWS_SECRET_ACCESS_KEY": "unused"}
    url = f"http://127.0.0.1:{port}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *arguments], cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait(url, process, directory / "log")
            yield url
        finally:
            process.kill()
            process.wait()


def _weed(directory: Path) -> tuple[int, list[str]]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (directory / "data").mkdir()
    parts = ["master", "volume", "filer", "s3"]
    ports = dict(zip([*parts, *(f"{part}.grpc" for part in parts)], _free_ports(2 * len(parts)), strict=True))
    arguments = ["server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-metricsPort=0"]
    for part in parts:
        arguments += [f"-{part}.port={ports[part]}", f"-{part}.port.grpc={ports[f'{part}.grpc']}"]
    # It would report statistics to its makers, and make a bucket of whatever name it hears.
    arguments += [
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.config=s3.json",
    ]
    arguments += ["-master.volumeSizeLimitMB=64", "-volume.max=16"]
    return ports["s3"], arguments


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        try:
            opener.open(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return  # it refuses who does not sign: it is there
        except OSError:
            time.sleep(0.05)
        else:
            return
