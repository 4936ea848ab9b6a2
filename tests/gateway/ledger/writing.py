"""A process that writes a ledger until it is killed, and says what of it is down. `python writing.py DIR FIRST`.

With `recover` in place of FIRST it only folds what is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pressroom.gateway.ledger import Counted, Outcome, Row, open_ledger
from pressroom.kernel import Workspace


def main(root: str, first: str) -> None:
    place = Workspace.open(Path(root), environ={"PRESSROOM_LEDGER_SEGMENT_BYTES": "65536"})
    ledger = open_ledger(place)
    os.write(1, b"ready\n")
    lost = ledger.recover()
    os.write(1, b"".join(b"lost %s\n" % each.id.encode() for each in lost))
    if first == "recover":
        return
    ledger.start()
    number = int(first)
    running: list[Row] = []
    while True:
        for _ in range(25):
            row = Row(f"req-{number:08d}", time.time() - 40_000 * (number % 5))
            row.key, row.team, row.model = f"key-{number % 3}", f"team-{number % 2}", f"model-{number % 4}"
            row.prompt_tokens, row.completion_tokens, row.nano_usd = number % 977, number % 89, number % 100_003
            row.counted = Counted.NONE if number % 17 == 0 else Counted.STATED
            row.outcome = Outcome.LEFT if number % 5 == 0 else Outcome.ANSWERED
            number += 1
            if number % 10:  # the others have no hold
                if not ledger.opened(row.id, row.at, row.key, row.team, row.model, 5_000, 100_000):
                    raise SystemExit("nothing can be opened")
                os.write(1, b"opened %s\n" % row.id.encode())
                running.append(row)
            elif ledger.append(row):
                os.write(1, b"row %s\n" % row.id.encode())
            if len(running) > 12:  # they end in another order than they began in
                done = running.pop(number * 7 % 12)
                if ledger.append(done):
                    os.write(1, b"row %s\n" % done.id.encode())
        time.sleep(0.002)


if __name__ == "__main__":
    main(*sys.argv[1:])
