"""PostgreSQL is a change of URL: the same migrations and transactions, on a real server from a wheel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pressroom.kernel import MigrationError, Workspace
from pressroom.kernel.database import Database

pytestmark = pytest.mark.slow


@pytest.fixture
def database(postgres_url: str, tmp_path: Path) -> Iterator[Database]:
    made = Database(postgres_url, root=tmp_path)
    yield made
    made.close()


def make(connection: sa.Connection) -> None:
    connection.execute(sa.text("create table sheets (name varchar(32) primary key)"))


def fill(connection: sa.Connection) -> None:
    connection.execute(sa.text("insert into sheets values ('first')"))


def fail(connection: sa.Connection) -> None:
    raise RuntimeError("half-way")


def test_steps_run_once_and_a_newer_database_is_refused(database: Database) -> None:
    database.migrate("press", [make])
    database.migrate("press", [make, fill])
    database.migrate("press", [make, fill])
    with database.reading() as connection:
        assert connection.execute(sa.text("select count(*) from sheets")).scalar_one() == 1
    with pytest.raises(MigrationError):
        database.migrate("press", [make])


def test_a_step_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError, match="half-way"):
        database.migrate("press", [make, fail])
    with database.reading() as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_processes_that_start_at_once_migrate_once(
    postgres_url: str, database: Database, migrate_in_processes: Callable[[str], None]
) -> None:
    migrate_in_processes(postgres_url)
    with database.reading() as connection:
        assert connection.execute(sa.text("select count(*) from counted")).scalar_one() == 20


def test_threads_write_at_once(database: Database) -> None:
    database.migrate("press", [make])

    def write(who: int) -> None:
        for number in range(10):
            with database.begin() as connection:
                connection.execute(sa.text("insert into sheets values (:name)"), {"name": f"{who}-{number}"})

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert connection.execute(sa.text("select count(*) from sheets")).scalar_one() == 40


def test_the_tables_of_every_part(postgres_url: str, tmp_path: Path) -> None:
    """What the parts build on SQLite they build here, write to and read from."""
    from pressroom.deploy import Deployments
    from pressroom.registry import Registry

    with Workspace.open(tmp_path, environ={"PRESSROOM_DATABASE": postgres_url}) as workspace:
        deployments = Deployments(workspace)
        wish = deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo", options={"a": [1, "ü"]})
        assert deployments.list() == [wish]
        assert Registry(workspace).list() == []
    assert not (tmp_path / ".pressroom" / "pressroom.db").exists()
