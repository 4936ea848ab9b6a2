"""What is said of the machine holds on it."""

from __future__ import annotations

import json
import os
import platform

from pressroom.kernel import this_machine


def test_this_machine() -> None:
    machine = this_machine()
    assert 1 <= machine.physical_cores <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes > 100_000_000
    assert machine.python == platform.python_version()
    assert machine.processor.strip() and platform.system() in machine.system
    assert json.loads(json.dumps(machine.as_dict()))["cores"] == machine.cores
    assert "\n" not in str(machine)
