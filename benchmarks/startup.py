"""How long `press --help` and `import pressroom` take, beside a Python that does nothing.

Each round starts every command once, in a new order, so that a machine that gets slower or faster meanwhile does so for
all of them. Times are wall time of the whole process in milliseconds; the median is what is reported.

Usage: python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pressroom import __version__
from pressroom.kernel import this_machine

PRESS = Path(sys.executable).with_name("press")
COMMANDS = {
    "bare": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import pressroom"],
    "import_click": [sys.executable, "-c", "import click"],
    "help": [str(PRESS), "--help"],
    "version": [str(PRESS), "--version"],
}


def milliseconds(command: list[str], *, cwd: str) -> float:
    # Bytecode as an installed program has it, whatever the shell of the one who measures says.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSROOM_", "PYTHON"))}
    began = time.perf_counter_ns()
    subprocess.run(command, check=True, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (time.perf_counter_ns() - began) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="15 rounds in place of 100")
    rounds = 15 if parser.parse_args().quick else 100
    if not PRESS.exists():
        sys.exit(f"{PRESS} is not there: install Pressroom into this environment first (make setup)")

    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as empty:
        for command in COMMANDS.values():  # once unmeasured: files in the cache, bytecode written
            milliseconds(command, cwd=empty)
        for _ in range(rounds):
            for name in random.sample(list(COMMANDS), len(COMMANDS)):
                taken[name].append(milliseconds(COMMANDS[name], cwd=empty))

    median = {name: statistics.median(times) for name, times in taken.items()}
    print(f"{'':14}{'median':>9}{'p10':>9}{'p90':>9}{'to bare':>9}   ms, {rounds} rounds")
    for name, times in taken.items():
        tenths = statistics.quantiles(times, n=10)
        print(f"{name:14}{median[name]:9.1f}{tenths[0]:9.1f}{tenths[-1]:9.1f}{median[name] / median['bare']:9.2f}")
    result = {
        **{f"{name}_ms": round(value, 2) for name, value in median.items()},
        "help_ratio": round(median["help"] / median["bare"], 3),
        "import_ratio": round(median["import"] / median["bare"], 3),
        "rounds": rounds,
        "pressroom": __version__,
        "machine": this_machine().as_dict(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
