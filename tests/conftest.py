"""The servers that tests share: one of each kind for the whole run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from intervaljob.embedded.control_plane import ControlPlane
from intervaljob.embedded.postgres import Postgres
from intervaljob.embedded.programs import Programs, find

#: They need a cluster that was named, or may be made, for them: `make e2e`.
collect_ignore = [] if os.environ.get("E2E") else ["e2e/kubernetes"]

_INTEGRATION = Path(__file__).parent / "integration"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Integration tests run on each Postgres, others on the newest, unless `postgres_only` names versions."""
    if "postgres_server" not in metafunc.fixturenames:
        return
    versions = [18, 16] if metafunc.definition.path.is_relative_to(_INTEGRATION) else [18]
    if only := metafunc.definition.get_closest_marker("postgres_only"):
        versions = list(only.args)
    metafunc.parametrize(
        "postgres_server", versions, indirect=True, scope="session", ids=[f"postgres-{v}" for v in versions]
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever needs the control plane first may have to compile it, which may outlast a test's timeout."""
    for item in items:
        if isinstance(item, pytest.Function) and "programs" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(func_only=True), append=False)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    with Postgres(version=request.param, durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def programs() -> Programs:
    """The control plane's programs; found, downloaded or built once."""
    return find(report=lambda line: print(line, file=sys.stderr))


@pytest.fixture(scope="session")
def control_plane(programs: Programs) -> Iterator[ControlPlane]:
    with ControlPlane(programs=programs) as server:
        yield server
