"""The server that a soak looks into: the one of `press serve`, which says how it is as a line of JSON every second.

    python _soak_server.py SECONDS        in the folder of a workspace; ends when its stdin does

The first line says where it answers. Objects and tasks are counted every SECONDS, and as they are: nothing is collected
for it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from pressroom.deploy import Server
from pressroom.kernel import Workspace

_SAMPLE_S = 1.0
# Kinds of objects that are named in a count.
_KINDS = 400


def count() -> tuple[int, int, dict[str, int]]:
    """How many objects the collector knows, how many of them are tasks that have not ended, and how many of a kind."""
    objects = gc.get_objects()
    kinds = Counter(type(each).__qualname__ for each in objects)
    tasks = sum(isinstance(each, asyncio.Task) and not each.done() for each in objects)
    return len(objects), tasks, dict(kinds.most_common(_KINDS))


def main() -> None:
    every = float(sys.argv[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    process, began, counted = psutil.Process(), time.monotonic(), -every
    with Workspace.open(Path.cwd()) as workspace, Server(workspace) as server:
        tell({"port": int(server.url.rpartition(":")[2]), "grpc": server.grpc, "pid": process.pid})
        while not over.wait(_SAMPLE_S):
            now = time.monotonic() - began
            sample: dict[str, Any] = {
                "at": round(now, 2),
                "rss": process.memory_info().rss,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
            }
            if now - counted >= every:
                counted = now
                sample["objects"], sample["tasks"], sample["kinds"] = count()
            tell(sample)


def tell(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
