"""Settings: the environment (prefix `INTERVALJOB_`), read once into one frozen object per verb.

Every field is also a flag of the verbs it concerns (`cli/options.py` makes them from these classes).
Durations are seconds; names carry the unit.
"""

from __future__ import annotations

import re
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from intervaljob.errors import SettingsError

#: River §2.1: what its clients accept as a queue's name.
QUEUE_PATTERN = r"^[a-z0-9]+([_|-][a-z0-9]+)*$"
MAX_QUEUE_LENGTH = 64
#: A hundred years: for ever, to a database.
MAX_RETENTION = 3_153_600_000.0

S = TypeVar("S", bound="DatabaseSettings")
Names = Annotated[tuple[str, ...], NoDecode]


class DatabaseSettings(BaseSettings):
    """How to reach Postgres; every verb that talks to it has these."""

    model_config = SettingsConfigDict(env_prefix="INTERVALJOB_", frozen=True, extra="ignore", env_ignore_empty=True)

    database_url: SecretStr | None = Field(
        None, description="Postgres URL, e.g. postgresql://user:password@host:5432/database"
    )
    database_url_file: Path | None = Field(None, description="file that holds the Postgres URL (instead of the URL)")
    # At most 46 bytes: River's channels are `<schema>.river_insert` and such, and Postgres cuts names at 63.
    database_schema: str = Field(
        "intervaljob", pattern=r"^[a-z_][a-z0-9_]{0,45}$", description="Postgres schema that holds every table"
    )
    database_pool_size: int = Field(6, ge=2, le=100, description="connections in the pool")
    statement_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="seconds after which Postgres gives a statement up"
    )
    log_format: Literal["text", "json"] = Field("text", description="how log lines are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if self.database_url is not None and self.database_url_file is not None:
            raise ValueError("give INTERVALJOB_DATABASE_URL or INTERVALJOB_DATABASE_URL_FILE, not both")
        return self

    def database_dsn(self) -> str:
        """The URL itself.

        Raises SettingsError where there is none, or its file cannot be read.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.database_url_file is None:
            raise SettingsError("no database: set INTERVALJOB_DATABASE_URL (or INTERVALJOB_DATABASE_URL_FILE)")
        try:
            return self.database_url_file.read_text().strip()
        except OSError as error:
            raise SettingsError(f"INTERVALJOB_DATABASE_URL_FILE: {error}") from error


class OperatorSettings(DatabaseSettings):
    """`intervaljob operator`."""

    http_address: str = Field("127.0.0.1:8080", description="host:port of /healthz, /readyz and /metrics")
    watch_namespaces: Names = Field((), description="namespaces to watch, comma-separated; none means all")
    worker_namespace: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="namespace whose worker Pods are watched, for detection of their death; none: no Pods are watched",
    )
    cluster_id: str | None = Field(
        None, min_length=1, max_length=63, description="identity of this cluster; default: the uid of kube-system"
    )
    status_writes_per_second: float = Field(
        20.0, gt=0, le=1000, description="most status writes per second that this operator sends to the API server"
    )
    schedule_batch_size: int = Field(500, ge=1, le=10_000, description="due jobs handled in one transaction")
    resync_seconds: float = Field(
        300.0, ge=1, description="seconds between comparisons of all IntervalJobs with their rows"
    )
    succeeded_retention_seconds: float = Field(
        86_400.0,
        ge=1,
        le=MAX_RETENTION,
        description="seconds that tasks which succeeded are kept, and their queue jobs",
    )
    cancelled_retention_seconds: float = Field(
        86_400.0, ge=1, le=MAX_RETENTION, description="seconds that cancelled tasks are kept, and cancelled queue jobs"
    )
    failed_retention_seconds: float = Field(
        604_800.0, ge=1, le=MAX_RETENTION, description="seconds that tasks which failed are kept, and their queue jobs"
    )

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)


class WorkerSettings(DatabaseSettings):
    """`intervaljob worker`."""

    http_address: str = Field("127.0.0.1:8081", description="host:port of /healthz, /readyz and /metrics")
    queues: Names = Field(("default",), description="queues to work, comma-separated")
    concurrency: int = Field(10, ge=1, le=10_000, description="tasks run at once, each in a process of its own")
    handlers: Names = Field((), description="modules with handlers, comma-separated: module or module:function")
    worker_name: str | None = Field(
        None,
        min_length=1,
        max_length=80,
        description="name that outlives restarts; a new worker of this name declares the old one dead."
        " Default: one of its own for each start",
    )
    pod_uid: str | None = Field(None, max_length=80, description="uid of the worker's Pod, for detection of its death")
    lease_seconds: float = Field(
        30.0, ge=3, le=3600, description="seconds after its last renewal at which a worker counts as dead"
    )
    poll_seconds: float = Field(
        1.0, gt=0, le=60, description="seconds between looks at the queue without a notification"
    )
    drain_seconds: float = Field(25.0, ge=0, le=86_400, description="seconds that running tasks get to end on SIGTERM")
    cancel_seconds: float = Field(
        5.0, ge=0, le=3600, description="seconds that a cancelled handler gets to clean up before it is killed"
    )
    http_allow: Names = Field((), description="URL prefixes that the `http` handler may POST to, comma-separated")
    command_allow: Names = Field(
        (), description="absolute programs that the `command` handler may run, comma-separated"
    )

    @field_validator("queues", "handlers", "http_allow", "command_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("queues")
    @classmethod
    def _queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:

        if not value:
            raise ValueError("name at least one queue")
        for name in value:
            if len(name) > MAX_QUEUE_LENGTH or not re.fullmatch(QUEUE_PATTERN, name):
                raise ValueError(f"{name!r} is no queue name: use a-z, 0-9 and single - or _ between, at most 64")
        return tuple(dict.fromkeys(value))

    @field_validator("command_allow")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for program in value:
            if not Path(program).is_absolute():
                raise ValueError(f"{program!r} is not an absolute path")
        return value

    def name(self) -> str:
        """The worker's name: as set, or one that no other process has."""

        return self.worker_name or f"{socket.gethostname()}-{secrets.token_hex(4)}"


def split_list(value: object) -> object:
    """A comma-separated string as a tuple; anything else as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def load(kind: type[S], /, **overrides: Any) -> S:
    """Settings of this kind from the environment, with flags that were given laid over them.

    Raises SettingsError with one line that names every wrong setting.
    """
    try:
        return kind(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(e["loc"], e["msg"]) for e in error.errors())) from None


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    return f"INTERVALJOB_{str(location[0]).upper()}: {text}" if location else text
