"""What the tests of both databases share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_MIGRATE = """
import sys
from pathlib import Path
import sqlalchemy as sa
from pressroom.kernel.database import Database

def make(connection):
    connection.execute(sa.text("create table counted (n integer)"))
def count(connection):
    connection.execute(sa.text("insert into counted values (1)"))

database = Database(sys.argv[1], root=Path(sys.argv[2]))
sys.stdin.readline()
database.migrate("counted", [make, *[count] * 20])
database.close()
"""


@pytest.fixture
def migrate_in_processes(tmp_path: Path) -> Callable[[str], None]:
    """Run the same 21 steps in three processes that start at the same moment; 20 rows of `counted` are right."""

    def run(url: str) -> None:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", _MIGRATE, url, str(tmp_path)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            _, errors = process.communicate()
            assert process.returncode == 0, errors

    return run
