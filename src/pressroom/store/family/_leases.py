"""Who is at work in a place that several machines share: said in the place itself, where no lock on a file reaches.

Whoever puts leaves a lease and then looks whether somebody sweeps; whoever sweeps leaves a mark and then looks whether
somebody puts. So at least one of two sees the other: who puts steps back and waits, who sweeps waits for the leases
that are there. What a killed process left counts for as long as that could be at work.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pressroom.kernel.errors import LockedError, NotFoundError, StoreError
from pressroom.kernel.machine import is_running
from pressroom.store.places.base import Place

PUTS = "leases/"
SWEEPS = "sweeps/"
# Seconds after which a lease or a mark of another machine is that of a process which is not there any more.
_PUT_S = 86_400.0
_SWEEP_S = 3600.0
_POLL_S = 0.5


@contextmanager
def putting(place: Place) -> Iterator[None]:
    """Held while a file is put. Waits while another machine sweeps."""
    while True:
        name = _said(place, PUTS)
        try:
            if not _living(place, SWEEPS, _SWEEP_S):
                yield
                return
        finally:
            _gone(place, name)
        while _living(place, SWEEPS, _SWEEP_S):
            time.sleep(_POLL_S)


@contextmanager
def sweeping(place: Place, wait_s: float) -> Iterator[None]:
    """Held while it is decided what goes.

    Raises:
        LockedError: another machine sweeps, or one has been putting for `wait_s` seconds.
    """
    name = _said(place, SWEEPS)
    try:
        if others := [one for one in _living(place, SWEEPS, _SWEEP_S) if one != name]:
            raise _busy("sweeps the store", others)
        deadline = time.monotonic() + wait_s
        while others := _living(place, PUTS, _PUT_S):
            if time.monotonic() >= deadline:
                raise _busy("puts files", others)
            time.sleep(_POLL_S)
        yield
    finally:
        _gone(place, name)


def _said(place: Place, folder: str) -> str:
    name = f"{folder}{uuid.uuid4().hex}"
    place.put(name, json.dumps({"host": _host(), "pid": os.getpid(), "at": time.time()}).encode())
    return name


def _gone(place: Place, name: str) -> None:
    with suppress(StoreError):  # it ends by itself
        place.delete(name)


def _living(place: Place, folder: str, longest_s: float) -> list[str]:
    """Those that may still be at work; the others are removed."""
    found = []
    for name, size in place.list(folder):
        try:
            said = json.loads(place.read(name, 0, size))
            own = said["host"] == _host()
            alive = is_running(int(said["pid"])) if own else time.time() - float(said["at"]) < longest_s
        except NotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            alive = True  # not to be understood: rather wait for it
        if alive:
            found.append(name)
        else:
            _gone(place, name)
    return found


def _host() -> str:
    """This machine since it was started: process numbers mean nothing on another one."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}/{boot}"


def _busy(doing: str, names: list[str]) -> LockedError:
    return LockedError(
        f"the store cannot be swept: another process or machine {doing} ({len(names)} of them)",
        hint="Wait for it to finish, then try again. What a machine left that broke down counts for a day.",
        names=names,
    )
