"""Executors: real processes that run handlers, are reused, cancelled, killed, and die."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from pool_process import LONG, ExecutorDied, Placed, attempt_of
from pool_support import Started, run
from support import (
    children_of,
    eventually,
    parent_of,
    pid_in,
    process_gone,
    runs,
    worker_settings,
)

from intervaljob.errors import HandlerError
from intervaljob.model.task import MAX_OUTPUT_BYTES, Attempt, Outcome
from intervaljob.worker import wire
from intervaljob.worker.pool import Pool, pool

pytestmark = pytest.mark.usefixtures("handlers_for_tests")


def open_files() -> set[str]:
    return {file.name for file in Path("/proc/self/fd").iterdir()}


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.parametrize("handler", ["test.sync", "test.async"])
async def test_a_handler_runs_in_a_process_of_its_own_and_returns_json(executors: Pool, handler: str) -> None:
    result = await run(executors, attempt_of(handler, 21))
    assert (result.outcome, result.error) == (Outcome.RETURNED, None)
    assert result.output["doubled"] == 42
    assert result.output["pid"] != os.getpid()


async def test_one_process_runs_attempts_one_after_the_other(executors: Pool) -> None:
    pids = {(await run(executors, attempt_of("test.sync", 1))).output["pid"] for _ in range(5)}
    assert len(pids) == 1


async def test_many_run_at_once_in_as_many_processes(executors: Pool, started: Started) -> None:
    placed = [Placed(executors, attempt_of("test.waits", started.files)) for _ in range(40)]
    pids = {(await one.turn()).pid for one in placed}
    assert len(pids) == 40
    Path(started.files["go"]).touch()  # noqa: ASYNC240 - a file sends no event
    assert {result.outcome for result in await asyncio.gather(*(one.result for one in placed))} == {Outcome.RETURNED}
    again = await asyncio.gather(*(run(executors, attempt_of("test.sync", number)) for number in range(40)))
    assert {result.output["pid"] for result in again} <= pids


async def test_what_a_handler_raises_is_the_result(executors: Pool) -> None:
    result = await run(executors, attempt_of("test.raises", "no luck"))
    assert (result.outcome, result.error, result.retry) == (Outcome.RAISED, "ValueError: no luck", True)
    assert "raise ValueError(_payload(task))" in result.trace


async def test_a_handler_error_is_not_tried_again_and_needs_no_trace(executors: Pool) -> None:
    result = await run(executors, attempt_of("test.refuses"))
    assert (result.outcome, result.retry, result.trace) == (Outcome.RAISED, False, "")
    assert result.error == "HandlerError: this payload will never do"


async def test_an_unknown_handler_is_not_tried_again_and_the_known_ones_are_named(executors: Pool) -> None:
    result = await run(executors, attempt_of("no.such"))
    assert (result.outcome, result.retry) == (Outcome.RAISED, False)
    assert result.error is not None
    assert "no handler 'no.such'; it has: " in result.error
    assert "test.sync" in result.error


@pytest.mark.parametrize("what", ["set", "nan"])
async def test_output_that_is_no_json_fails_for_good(executors: Pool, what: str) -> None:
    result = await run(executors, attempt_of("test.returns", what))
    assert (result.outcome, result.retry) == (Outcome.RAISED, False)
    assert result.error is not None
    assert result.error.startswith("HandlerError: what the handler returned is no JSON: ")


async def test_output_of_64_kib_is_kept_and_a_byte_more_is_cut_with_a_mark(executors: Pool) -> None:
    fits = await run(executors, attempt_of("test.returns", "fits"))
    assert fits.output == "x" * 65_534
    cut = await run(executors, attempt_of("test.returns", "large"))
    assert cut.output["truncated"] is True
    assert cut.output["bytes"] == MAX_OUTPUT_BYTES + 1
    assert cut.output["beginning"].startswith('"xxx')
    assert len(json.dumps(cut.output)) < MAX_OUTPUT_BYTES


async def test_output_is_what_the_database_can_store(executors: Pool) -> None:
    result = await run(executors, attempt_of("test.returns", "nul"))
    assert result.output == ["a\ufffdb", "\ufffd", "\\u0000", "😀"]


@pytest.mark.parametrize("handler", ["test.cancels_itself", "test.terminates_itself", "test.exits"])
async def test_a_handler_that_stops_unasked_has_failed(executors: Pool, handler: str) -> None:
    result = await run(executors, attempt_of(handler))
    assert (result.outcome, result.retry) == (Outcome.RAISED, True)


async def test_checkpoints_are_saved_in_order_before_the_handler_goes_on(executors: Pool) -> None:
    saved: list[object] = []

    async def save(_: Attempt, number: int, data: str) -> bool:
        await asyncio.sleep(0)
        saved.append(json.loads(data))
        return True

    attempt = attempt_of("test.checkpoints", [1, {"two": 2}, None], checkpoint='{"page": 7}')
    result = await Placed(executors, attempt, save=save).result
    assert saved == [1, {"two": 2}, None]
    assert result.output == {"last": {"page": 7}}


async def test_a_checkpoint_that_is_no_longer_wanted_stops_the_handler(executors: Pool) -> None:
    async def refuse(_: Attempt, number: int, __: str) -> bool:
        return False

    result = await Placed(executors, attempt_of("test.checkpoints", [1]), save=refuse).result
    assert result.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("what", ["set", "nan", "large"])
async def test_a_checkpoint_that_cannot_be_stored_fails_the_handler(executors: Pool, what: str) -> None:
    result = await run(executors, attempt_of("test.checkpoint_fails", what))
    assert result.error is not None
    assert result.error.startswith("HandlerError: checkpoint: ")


async def test_the_answer_to_an_interrupted_checkpoint_is_not_taken_for_the_next_ones(executors: Pool) -> None:
    asked = asyncio.Event()

    async def cancel_first(_: Attempt, number: int, __: str) -> bool:
        if not asked.is_set():
            interrupted.cancel()
            asked.set()
            await asyncio.sleep(0.2)  # the handler leaves its checkpoint; this answer comes too late
        return False

    interrupted = Placed(executors, attempt_of("test.interrupted_checkpoint"), save=cancel_first)
    executor = await interrupted.turn()
    assert (await interrupted.result).outcome is Outcome.CANCELLED

    saved: list[str] = []

    async def save(_: Attempt, number: int, data: str) -> bool:
        saved.append(data)
        return True

    following = Placed(executors, attempt_of("test.checkpoints", [1, 2]), save=save)
    assert await following.turn() is executor
    assert ((await following.result).outcome, saved) == (Outcome.RETURNED, ["1", "2"])


async def test_an_error_that_cannot_be_printed_fails_the_attempt_alone(executors: Pool) -> None:
    result = await run(executors, attempt_of("test.unprintable"))
    assert (result.outcome, result.error) == (Outcome.RAISED, "Unprintable: (cannot be printed: ValueError)")


async def test_many_at_once_all_get_an_executor(executors: Pool) -> None:
    """More orders than the socket to the zygote holds."""
    placed = [Placed(executors, attempt_of("sleep", {"seconds": LONG})) for _ in range(400)]
    async with asyncio.timeout(50):
        taken = await asyncio.gather(*(one.turn() for one in placed))
    assert len({executor.pid for executor in taken}) == 400


@pytest.mark.parametrize("handler", ["test.waits", "test.waits_sync"])
async def test_a_cancelled_handler_stops_and_its_process_goes_on(
    executors: Pool, started: Started, handler: str
) -> None:
    executor = await started.begin(executors, handler)
    started.placed.cancel()
    assert (await started.result).outcome is Outcome.CANCELLED
    assert (await run(executors, attempt_of("test.sync", 1))).output["pid"] == executor.pid


async def test_an_async_handler_can_clean_up_when_it_is_cancelled(executors: Pool, started: Started) -> None:
    executor = await started.begin(executors, "test.waits")
    started.placed.cancel()
    await started.result
    assert await pid_in(Path(started.files["cancelled"])) == executor.pid


@pytest.mark.parametrize("handler", ["test.sync", "test.async"])
async def test_a_cancellation_that_comes_first_is_not_forgotten(executors: Pool, handler: str) -> None:
    await run(executors, attempt_of("test.sync", 1))
    placed = Placed(executors, attempt_of(handler, 1))
    executor = await placed.turn()
    executor.send(wire.Cancel(placed.running.ticket + 1))
    assert (await placed.result).outcome is Outcome.RETURNED
    assert (await run(executors, attempt_of(handler, 1))).outcome is Outcome.CANCELLED


async def test_a_cancellation_that_comes_too_late_does_not_meet_the_next_attempt(executors: Pool) -> None:
    for number in (1, 2, 3):
        placed = Placed(executors, attempt_of("test.sync", number))
        executor = await placed.turn()
        assert (await placed.result).outcome is Outcome.RETURNED
        executor.cancel(placed.running)


async def test_signals_that_a_handler_left_ignored_are_heard_by_the_next_one(executors: Pool, started: Started) -> None:
    await run(executors, attempt_of("test.ignores_signals"))
    ended = await run(executors, attempt_of("test.terminates_a_child"))
    assert (ended.outcome, ended.output) == (Outcome.RETURNED, -signal.SIGTERM)
    await run(executors, attempt_of("test.ignores_signals"))
    await started.begin(executors, "test.waits_sync")
    started.placed.cancel()
    assert (await started.result).outcome is Outcome.CANCELLED


@pytest.mark.parametrize("handler", ["test.stubborn", "test.holds_the_lock", "test.blocks_the_loop"])
async def test_a_handler_that_does_not_stop_is_killed(executors: Pool, started: Started, handler: str) -> None:
    executor = await started.begin(executors, handler)
    started.placed.cancel()
    done, _ = await asyncio.wait({started.result}, timeout=0.2)
    assert not done
    await executors.kill(executor)
    assert not runs(executor.pid)
    with pytest.raises(ExecutorDied, match="killed by signal 9"):
        await started.result


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "ended with 3"), ("segfault", "killed by signal 11"), ("kill", "killed by signal 9")],
)
async def test_the_death_of_a_process_is_told_and_a_new_one_takes_its_place(
    executors: Pool, how: str, words: str
) -> None:
    with pytest.raises(ExecutorDied, match=words):
        await run(executors, attempt_of("test.dies", {"how": how}))
    assert (await run(executors, attempt_of("test.sync", 1))).outcome is Outcome.RETURNED


async def test_a_process_that_dies_while_it_is_idle_is_not_used(executors: Pool) -> None:
    pid = (await run(executors, attempt_of("test.sync", 1))).output["pid"]
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not Path(f"/proc/{pid}").exists(), what="the zygote buries it")
    assert (await run(executors, attempt_of("test.sync", 1))).output["pid"] != pid


@pytest.mark.parametrize("returns", [True, False])
async def test_what_a_handler_started_ends_with_its_process(executors: Pool, started: Started, returns: bool) -> None:
    executor = await started.begin(executors, "test.starts_a_process", returns=returns)
    child = await pid_in(Path(started.files["child"]))
    if not returns:
        assert runs(child)
        await executors.kill(executor)
    with pytest.raises(ExecutorDied):
        await started.result
    await process_gone(child)


async def test_with_the_zygote_everything_ends_also_what_handlers_started(executors: Pool, started: Started) -> None:
    executor = await started.begin(executors, "test.starts_a_process")
    child = await pid_in(Path(started.files["child"]))
    zygote = parent_of(executor.pid)
    os.kill(zygote, signal.SIGKILL)
    await asyncio.wait_for(executors.ended.wait(), 5)
    with pytest.raises(ExecutorDied):
        await started.result
    await process_gone(executor.pid)
    await process_gone(child)


async def test_on_leaving_every_process_is_gone_and_nothing_stays_open(tmp_path: Path) -> None:
    before = open_files()
    async with pool(worker_settings("postgresql://nowhere", handlers="handlers_for_tests")) as executors:
        started = Started(tmp_path)
        executor = await started.begin(executors, "test.starts_a_process")
        child = await pid_in(Path(started.files["child"]))
        idle = [await Placed(executors, attempt_of("test.sync", 1)).turn() for _ in range(3)]
    assert not [one for one in (executor, *idle) if runs(one.pid)]
    await process_gone(child)
    with pytest.raises(ExecutorDied):
        await started.result
    await asyncio.sleep(0)  # transports close on the loop's next turn
    assert open_files() <= before


async def test_handlers_do_not_see_the_way_to_the_database(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:
    monkeypatch.setenv("INTERVALJOB_DATABASE_URL", "postgresql://user:secret@nowhere")
    settings = worker_settings("postgresql://nowhere", handlers="handlers_for_tests", command_allow="/bin/true")
    async with pool(settings) as executors:
        executor = await started.begin(executors, "test.waits")
        environment = environment_of(executor.pid)
        assert b"INTERVALJOB_COMMAND_ALLOW=/bin/true" in environment
        assert not [entry for entry in environment if b"secret" in entry]
        started.placed.cancel()
        await started.result


async def test_handlers_that_cannot_be_loaded_are_an_error_in_one_line() -> None:
    with pytest.raises(HandlerError, match=r"^handlers 'no_such_module': ModuleNotFoundError: .*$"):
        async with pool(worker_settings("postgresql://nowhere", handlers="no_such_module")):
            pytest.fail("there is no such module")


async def test_a_process_that_a_module_started_is_no_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end concerns the module alone, which is there to see it."""
    (tmp_path / "starts_early.py").write_text(
        "import subprocess\n"
        "from intervaljob import handler\n"
        "early = subprocess.Popen(['sleep', '0.1'])\n"
        "@handler('early')\n"
        "def early_handler(task): return 'fine'\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    async with pool(worker_settings("postgresql://nowhere", handlers="starts_early")) as executors:
        placed = Placed(executors, attempt_of("early"))
        first = await placed.turn()
        (early,) = set(children_of(parent_of(first.pid))) - {first.pid}
        await process_gone(early)
        assert (await placed.result).output == "fine"
        await executors.kill(first)
        assert (await run(executors, attempt_of("early"))).output == "fine"
