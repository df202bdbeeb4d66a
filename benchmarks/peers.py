"""The systems that `throughput.py` measures: how each is filled with no-op tasks, started and watched.

Peers come from their public packages: the Python ones are installed from PyPI into a temporary folder, River's is built
from the Go program in `river/`. Each one's own functions insert its tasks.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg

from intervaljob.embedded.processes import free_port

#: What `ours-tuned` sets beside what every worker needs.
TUNED = {"INTERVALJOB_CONCURRENCY": "50"}

PACKAGES = {
    "procrastinate": ("procrastinate==3.10.0", "psycopg[binary]"),
    "pgqueuer": ("pgqueuer[asyncpg]==1.6.0",),
    "oban": ("oban==0.7.0",),
}
#: oban needs Python 3.12, later than ours: another interpreter can be named for it.
INTERPRETERS = {"oban": os.environ.get("OBAN_PYTHON", sys.executable)}

#: A payload is a boot clock's time and a file: the handler's first act is to look at the same clock.
HANDLERS = """
import time
from intervaljob import Task, handler

@handler("noop")
def noop(task: Task) -> None:
    if task.payload:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        stamp, path = task.payload.split(" ", 1)
        with open(path, "a") as file:
            file.write(f"{now - float(stamp)}\\n")
"""

PROCRASTINATE = """
import asyncio, sys
import procrastinate
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=sys.argv[2]))

@app.task(name="noop")
async def noop():
    pass

async def main():
    async with app.open_async():
        if sys.argv[1] == "work":
            await app.run_worker_async(concurrency=int(sys.argv[3]))
            return
        await app.schema_manager.apply_schema_async()
        left = int(sys.argv[3])
        while left:
            await noop.batch_defer_async(*[{}] * min(left, 1000))
            left -= min(left, 1000)
asyncio.run(main())
"""

#: On uvloop, as its own command line.
PGQUEUER = """
import sys
import asyncpg, uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver

async def main():
    driver = AsyncpgDriver(await asyncpg.connect(sys.argv[2]))
    number = int(sys.argv[3])
    if sys.argv[1] == "prepare":
        queries = Queries(driver)
        await queries.install()
        while number:
            size = min(number, 1000)
            await queries.enqueue(["noop"] * size, [None] * size, [0] * size)
            number -= size
        return
    queue = PgQueuer(driver)

    @queue.entrypoint("noop")
    async def noop(job):
        pass

    await queue.run(batch_size=number)
uvloop.run(main())
"""

#: On uvloop, as its own command line.
OBAN = """
import asyncio, sys
import uvloop
from oban import Oban, worker
from oban.schema import install

@worker(queue="default")
class Noop:
    async def process(self, job):
        pass

async def main():
    pool = await Oban.create_pool(sys.argv[2])
    number = int(sys.argv[3])
    if sys.argv[1] == "work":
        async with Oban(pool=pool, queues={"default": number}):
            await asyncio.Event().wait()
    await install(pool)
    oban = Oban(pool=pool)
    while number:
        size = min(number, 1000)
        await oban.enqueue_many([Noop.new({}) for _ in range(size)])
        number -= size
    await pool.close()
uvloop.run(main())
"""

JOB = """INSERT INTO intervaljob.jobs (id, user_id, workspace_id, handler)
VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'noop')"""

#: The same rows as the scheduler's, from the jobs that there are.
QUEUE = """INSERT INTO intervaljob.river_job (kind, args, queue)
SELECT 'interval_job', jsonb_build_object(
    'job_id', id, 'user_id', user_id, 'workspace_id', workspace_id, 'payload', %(payload)s::text
), 'default' FROM intervaljob.jobs, generate_series(1, %(count)s)"""


@dataclass(frozen=True)
class Place:
    """The folder of one run: installed peers, scripts, logs."""

    folder: Path

    def packages(self, name: str) -> Path:
        """Where this peer of PyPI is, with what it needs."""
        return self.folder / "packages" / name

    @property
    def river(self) -> Path:
        """The program that Go builds."""
        return self.folder / "river"

    def script(self, name: str, text: str) -> Path:
        """The file that holds this program."""
        path = self.folder / name
        path.write_text(text)
        return path

    def log(self, name: str) -> Path:
        """What a system's processes write."""
        return self.folder / f"{name}.log"


@dataclass(frozen=True)
class Command:
    """A program of a system; `environment` is laid over ours, without any INTERVALJOB_ that is set there."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """With both outputs to this file."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("INTERVALJOB_")}
        with log.open("ab") as output:
            return subprocess.Popen(
                self.arguments,
                env={**inherited, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def run(self, log: Path) -> None:
        """To its end; SystemExit with the log's end when it fails."""
        process = self.start(log)
        try:
            code = process.wait(timeout=600)
        finally:
            process.kill()
            process.wait()
        if code:
            raise SystemExit(f"{' '.join(self.arguments[:3])} failed: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class System:
    """One under test. `begun` and `unfinished` are SQL conditions that an index answers; `succeeded` counts.

    `most` bounds the tasks of a system that is too slow for all of them.
    """

    name: str
    settings: str
    prepare: Callable[[Place, str, int], None]
    worker: Callable[[Place, str], Command]
    begun: str
    unfinished: str
    succeeded: str
    most: int | None = None
    package: str | None = None


def _prepare_ours(place: Place, url: str, tasks: int) -> None:
    migrate = Command([sys.executable, "-m", "intervaljob", "migrate", "up"], {"INTERVALJOB_DATABASE_URL": url})
    migrate.run(place.log("migrate"))
    with psycopg.connect(url) as connection:
        connection.execute(JOB)
        connection.execute(QUEUE, {"payload": "", "count": tasks})


def _ours(settings: dict[str, str], place: Place, url: str) -> Command:
    place.script("bench_handlers.py", HANDLERS)
    environment = {
        "INTERVALJOB_DATABASE_URL": url,
        "INTERVALJOB_HANDLERS": "bench_handlers",
        "INTERVALJOB_HTTP_ADDRESS": f"127.0.0.1:{free_port()}",
        "PYTHONPATH": os.pathsep.join([str(place.folder), os.environ.get("PYTHONPATH", "")]),
        **settings,
    }
    return Command([sys.executable, "-m", "intervaljob", "worker"], environment)


def _prepare_python(name: str, text: str, place: Place, url: str, tasks: int) -> None:
    _python(name, text, place, "prepare", url, str(tasks)).run(place.log(name))


def _work_python(name: str, text: str, number: int, place: Place, url: str) -> Command:
    return _python(name, text, place, "work", url, str(number))


def _python(name: str, text: str, place: Place, *arguments: str) -> Command:
    script = place.script(f"{name}_bench.py", text)
    environment = {"PYTHONPATH": str(place.packages(name))}
    return Command([INTERPRETERS.get(name, sys.executable), str(script), *arguments], environment)


def _prepare_river(args: tuple[str, ...], place: Place, url: str, tasks: int) -> None:
    Command([str(place.river), "prepare", url, str(tasks), *args]).run(place.log("river"))


def _river(workers: int, cooldown: str, poll: str, place: Place, url: str) -> Command:
    return Command([str(place.river), "work", url, str(workers), cooldown, poll])


def _made_ours(name: str, settings: dict[str, str]) -> System:
    return System(
        name=name,
        settings=", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults",
        prepare=_prepare_ours,
        worker=partial(_ours, settings),
        begun="EXISTS (SELECT FROM intervaljob.river_job WHERE state IN ('running', 'completed'))",
        unfinished="""EXISTS (SELECT FROM intervaljob.river_job
            WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending'))""",
        succeeded="""SELECT count(*) FROM intervaljob.tasks AS task
            JOIN intervaljob.river_job AS queue_job ON queue_job.id = task.queue_job_id
            WHERE task.status = 'succeeded' AND queue_job.state = 'completed'""",
    )


def _made_river(
    name: str, settings: str, *args: str, workers: int, cooldown: str, poll: str, most: int | None
) -> System:
    return System(
        name=name,
        settings=settings,
        prepare=partial(_prepare_river, args),
        worker=partial(_river, workers, cooldown, poll),
        begun="EXISTS (SELECT FROM river_job WHERE state IN ('running', 'completed'))",
        unfinished="""EXISTS (SELECT FROM river_job
            WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending'))""",
        succeeded="SELECT count(*) FROM river_job WHERE state = 'completed'",
        most=most,
    )


_made_tuned_river = partial(_made_river, workers=2_000, cooldown="2ms", poll="20ms", most=None)


def _made_python(
    name: str,
    settings: str,
    *,
    package: str,
    text: str,
    number: int,
    begun: str,
    unfinished: str,
    succeeded: str,
    most: int | None = None,
) -> System:
    return System(
        name=name,
        settings=settings,
        prepare=partial(_prepare_python, package, text),
        worker=partial(_work_python, package, text, number),
        begun=begun,
        unfinished=unfinished,
        succeeded=succeeded,
        most=most,
        package=package,
    )


def _made_pgqueuer(name: str, settings: str, *, batch: int) -> System:
    return _made_python(
        name,
        settings,
        package="pgqueuer",
        text=PGQUEUER,
        number=batch,
        begun="""EXISTS (SELECT FROM pgqueuer WHERE status <> 'queued')
            OR EXISTS (SELECT FROM pgqueuer_log WHERE status <> 'queued')""",
        unfinished="EXISTS (SELECT FROM pgqueuer)",
        succeeded="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
    )


#: 0s is River's default. The tuned settings are those of its own bench.
SYSTEMS = {
    system.name: system
    for system in (
        _made_ours("ours", {}),
        _made_ours("ours-tuned", TUNED),
        _made_tuned_river("river-tuned", "MaxWorkers 2000, FetchCooldown 2 ms, FetchPollInterval 20 ms"),
        _made_tuned_river("river-args", "tuned, with args of four members as ours have", "args"),
        _made_river("river", "defaults, MaxWorkers 100", workers=100, cooldown="0s", poll="0s", most=10_000),
        _made_pgqueuer("pgqueuer", "asyncpg, defaults (batch 10)", batch=10),
        _made_pgqueuer("pgqueuer-100", "asyncpg, batch 100", batch=100),
        _made_python(
            "procrastinate",
            "concurrency 10",
            package="procrastinate",
            text=PROCRASTINATE,
            number=10,
            begun="EXISTS (SELECT FROM procrastinate_jobs WHERE status <> 'todo')",
            unfinished="EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))",
            succeeded="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
            most=5_000,
        ),
        _made_python(
            "oban",
            "queue limit 10",
            package="oban",
            text=OBAN,
            number=10,
            begun="EXISTS (SELECT FROM oban_jobs WHERE state IN ('executing', 'completed'))",
            unfinished="""EXISTS (SELECT FROM oban_jobs
                WHERE state IN ('available', 'executing', 'scheduled', 'retryable'))""",
            succeeded="SELECT count(*) FROM oban_jobs WHERE state = 'completed'",
            most=10_000,
        ),
    )
}


def install(place: Place, systems: Iterable[System]) -> dict[str, str]:
    """Get what these need; returns the names of those that cannot run here, with the reason."""
    missing: dict[str, str] = {}
    for system in systems:
        try:
            if system.package is not None and not place.packages(system.package).exists():
                _install_package(place, system.package)
            if system.name.startswith("river") and not place.river.exists():
                _build_river(place)
        except FileNotFoundError as error:
            missing[system.name] = f"{error.filename} is not installed"
        except subprocess.CalledProcessError as error:
            missing[system.name] = " ".join(error.stderr.split())[:300]
    return missing


def _install_package(place: Place, name: str) -> None:
    interpreter = ["--python", INTERPRETERS.get(name, sys.executable)]
    target = ["--quiet", "--target", str(place.packages(name))]
    command = [sys.executable, "-m", "uv", "pip", "install", *interpreter, *target, *PACKAGES[name]]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _build_river(place: Place) -> None:
    build = ["go", "build", "-buildvcs=false", "-o", str(place.river), "."]
    subprocess.run(build, cwd=Path(__file__).parent / "river", check=True, capture_output=True, text=True)
