"""The embedded Postgres: real servers, started and stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from intervaljob.embedded.postgres import Postgres
from intervaljob.errors import EmbeddedError


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def ask(url: str, query: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def accepts(url: str) -> bool:
    try:
        return ask(url, "SELECT 1") == "1"
    except psycopg.OperationalError:
        return False


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_the_server_is_of_the_version_that_was_asked_for(
    postgres_server: Postgres, request: pytest.FixtureRequest
) -> None:
    asked = request.node.callspec.params["postgres_server"]
    assert ask(postgres_server.url(), "SHOW server_version").split(".")[0] == str(asked)


def test_a_wrong_password_is_refused(postgres_server: Postgres) -> None:
    password = postgres_server.url().split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.url().replace(password, "guess"))


def test_databases_are_made_from_a_template_and_dropped_under_a_connection(postgres_server: Postgres) -> None:
    postgres_server.create_database("origin")
    with psycopg.connect(postgres_server.url("origin"), autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
    postgres_server.create_database("copy", template="origin")
    connection = psycopg.connect(postgres_server.url("copy"))
    assert connection.execute("SELECT answer FROM t").fetchone() == (42,)
    postgres_server.drop_database("copy")
    connection.close()
    postgres_server.drop_database("copy")
    postgres_server.drop_database("origin")
    assert not accepts(postgres_server.url("copy"))


def test_a_database_that_exists_is_not_made_again(postgres_server: Postgres) -> None:
    with pytest.raises(EmbeddedError, match='database "postgres" already exists'):
        postgres_server.create_database("postgres")


def test_nothing_committed_is_lost_when_the_server_is_stopped_at_once() -> None:
    with Postgres(durable=False) as server:
        url, first = server.url(), server.pid
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000)")
        server.stop("immediate")
        assert not is_running(first)
        assert not accepts(url)
        server.start()
        assert server.url() == url
        assert server.pid != first
        assert ask(url, "SELECT count(*) FROM t") == "1000"


def test_a_stopped_server_has_no_pid_and_is_stopped_again_without_harm() -> None:
    with Postgres(durable=False) as server:
        server.stop()
        server.stop()
        with pytest.raises(EmbeddedError, match="stopped"):
            _ = server.pid


@pytest.mark.parametrize(("durable", "fsync"), [(True, "on"), (False, "off")])
def test_only_a_server_that_is_not_durable_goes_without_fsync(durable: bool, fsync: str) -> None:
    with Postgres(durable=durable, options={"max_connections": "7"}) as server:
        assert ask(server.url(), "SHOW fsync") == fsync
        assert ask(server.url(), "SHOW synchronous_commit") == "on"
        assert ask(server.url(), "SHOW max_connections") == "7"


def test_a_data_folder_keeps_its_databases_and_refuses_another_version(tmp_path: Path) -> None:
    data = tmp_path / "not" / "yet"
    with Postgres(data=data, durable=False) as server:
        server.create_database("kept")
    with Postgres(data=data, durable=False) as server:
        assert accepts(server.url("kept"))
    with (
        pytest.raises(EmbeddedError, match="made by Postgres 18, not 16"),
        Postgres(data=data, version=16),
    ):
        pass


def test_a_temporary_folder_is_gone_at_the_end() -> None:
    with Postgres(durable=False) as server:
        folder = Path(ask(server.url(), "SHOW data_directory"))
        assert folder.exists()
    assert not folder.parent.exists()


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(EmbeddedError, match='invalid value for parameter "max_connections"'):
        Postgres(durable=False, options={"max_connections": "many"}).__enter__()


def test_a_version_that_is_not_there_is_refused() -> None:
    with pytest.raises(EmbeddedError, match="no Postgres 9 here; there are 18, 16"):
        Postgres(version=9)


def test_the_server_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from intervaljob.embedded.postgres import Postgres\n"
        "with Postgres(data=Path(sys.argv[1]), durable=False) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "data"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not is_running(pid))
