"""How many connections a process has room for."""

from __future__ import annotations

import resource
from contextlib import suppress

# Descriptors left for everything but clients: engines, the store, the database, logs.
_OTHER_FILES = 256
_FEWEST_CLIENTS = 64
_MOST_FILES = 65_536


def connections_allowed() -> int:
    """How many clients may be connected: as many as there are descriptors for, with the soft limit at the hard one.
    Each may have a request that needs a second one, for the connection to its engine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if wanted > soft:
            with suppress(OSError, ValueError):  # a system that does not let us keeps its limit
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                soft = wanted
    most = _MOST_FILES if soft == resource.RLIM_INFINITY else soft
    return max(_FEWEST_CLIENTS, (most - _OTHER_FILES) // 2)
