"""The whole system as processes: one stack for the run; each test has a namespace of its own in it."""

from collections.abc import Iterator

import pytest
from cluster_support import LEASE_SECONDS, Namespace, numbers

from intervaljob.embedded.programs import Programs
from intervaljob.embedded.stack import Process, Stack


@pytest.fixture(scope="session")
def stack(programs: Programs) -> Iterator[Stack]:
    """Postgres, control plane, migrations and CRD; no operator and no worker yet."""
    with Stack(durable=False, programs=programs) as started:
        yield started


@pytest.fixture
def namespace(stack: Stack) -> Iterator[Namespace]:
    """A namespace whose IntervalJobs are deleted after the test."""
    name = f"test-{next(numbers)}"
    stack.kubectl("create", "namespace", name)
    yield Namespace(stack, name)
    stack.kubectl("--namespace", name, "delete", "ivj", "--all", "--wait=false")


@pytest.fixture
def operator(stack: Stack) -> Iterator[Process]:
    process = stack.start_operator()
    yield process
    process.kill()


@pytest.fixture
def workers(stack: Stack) -> Iterator[dict[str, Process]]:
    """Two workers, by name; a test may kill them and start others, which are stopped after it as well."""
    started = {name: stack.start_worker(name, INTERVALJOB_LEASE_SECONDS=LEASE_SECONDS) for name in ("one", "two")}
    yield started
    for process in started.values():
        process.kill()
