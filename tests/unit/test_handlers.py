"""Handlers: registered by name, loaded from modules and entry points, or refused with one line."""

import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from intervaljob.errors import HandlerError
from intervaljob.worker.handlers import Task, handler, load_handlers


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def unique(name: str) -> str:
    return f"{name}-{uuid4().hex[:8]}"


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(f"from intervaljob import Task, handler\n{text}")


def task(**others: Any) -> Task:
    fields: dict[str, Any] = {
        "id": UUID(int=1),
        "job_id": UUID(int=2),
        "user_id": UUID(int=3),
        "workspace_id": UUID(int=4),
        "payload": "",
        "attempt": 1,
        "recovered": False,
        "scheduled_for": datetime(2026, 11, 23, tzinfo=UTC),
        "last_checkpoint": None,
        "logger": logging.LoggerAdapter(logging.getLogger("test")),
        "save": lambda _: None,
        **others,
    }
    return Task(**fields)


def test_a_function_becomes_the_handler_of_its_name(modules: Path) -> None:
    name = unique("report")
    write(modules, "good_handlers", f"@handler({name!r})\nasync def report(task): return 3\n")
    loaded = load_handlers(["good_handlers"])
    assert loaded[name] is sys.modules["good_handlers"].report


def test_a_worker_has_the_builtin_handlers_from_the_entry_point() -> None:
    assert {"echo", "sleep", "http", "command"} <= set(load_handlers([]))


@pytest.mark.parametrize("name", ["a", "A9", "report.daily", "team:report", "a_b-c", "x" * 63])
def test_a_name_may_have_letters_digits_and_some_signs_between(name: str) -> None:
    handler(name)  # no function gets it


@pytest.mark.parametrize("name", ["", ".a", "a.", "a b", "ä", "a/b", "x" * 64, "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(HandlerError, match="is no handler name"):
        handler(name)


def test_a_name_that_another_function_has_is_refused(modules: Path) -> None:
    name = unique("twice")
    write(modules, "twice", f"@handler({name!r})\ndef a(task): ...\n@handler({name!r})\ndef b(task): ...\n")
    with pytest.raises(HandlerError, match=f"handler '{name}' is defined twice"):
        load_handlers(["twice"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", r"^handlers 'broken': ModuleNotFoundError: No module named 'no_such_module'$"),
        ("1 / 0", r"^handlers 'broken': ZeroDivisionError: division by zero$"),
        ("def", r"^handlers 'broken': SyntaxError: .*$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_in_one_line(modules: Path, text: str, message: str) -> None:
    write(modules, "broken", text)
    with pytest.raises(HandlerError, match=message):
        load_handlers(["broken"])


def test_a_missing_module_is_named() -> None:
    with pytest.raises(HandlerError, match="handlers 'no_such_handlers': ModuleNotFoundError"):
        load_handlers(["no_such_handlers"])


def test_one_function_of_a_module_can_be_asked_for(modules: Path) -> None:
    name = unique("one")
    write(modules, "some", f"@handler({name!r})\ndef report(task): ...\ndef other(task): ...\n")
    assert name in load_handlers(["some:report"])
    for missing in ("other", "nothing"):
        with pytest.raises(HandlerError, match=f"some has no handler function '{missing}'"):
            load_handlers([f"some:{missing}"])


def test_a_checkpoint_is_saved_as_json() -> None:
    saved: list[str] = []
    task(save=saved.append).checkpoint({"page": 3, "text": "a\0"})
    assert saved == ['{"page": 3, "text": "a\\ufffd"}']


@pytest.mark.parametrize("data", [{1}, float("nan"), "x" * 65_535])
def test_a_checkpoint_that_is_no_json_or_too_large_is_refused(data: object) -> None:
    saved: list[str] = []
    with pytest.raises(HandlerError, match="^checkpoint: "):
        task(save=saved.append).checkpoint(data)
    assert saved == []


def test_a_checkpoint_may_have_64_kib() -> None:
    saved: list[str] = []
    task(save=saved.append).checkpoint("x" * 65_534)
    assert len(saved[0]) == 65_536
