from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import kopf
import pytest

from intervaljob.telemetry.logs import NOISY, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("intervaljob.test")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else pytest's own would be closed
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


def logs(format: Literal["text", "json"], level: str = "info") -> io.StringIO:  # noqa: A002
    stream = io.StringIO()
    configure(format=format, level=level, stream=stream)
    return stream


def test_a_text_line_has_time_level_message_and_fields() -> None:
    stream = logs("text")
    logger.warning("Task %s", "ended", extra={"task": UUID(int=1), "reason": "it broke", "empty": "", "count": 3})
    time, rest = stream.getvalue().split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == ('WARNING Task ended task=00000000-0000-0000-0000-000000000001 reason="it broke" empty="" count=3\n')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("a\nb", r'"a\nb"'),
        ("\x1b[0m", r'"\u001b[0m"'),
        ("ü", "ü"),
        (None, "None"),
    ],
)
def test_a_text_value_stays_one_word_or_is_quoted(value: object, shown: str) -> None:
    stream = logs("text")
    logger.info("Seen", extra={"value": value})
    assert stream.getvalue().endswith(f" INFO Seen value={shown}\n")


def test_a_json_line_is_one_object() -> None:
    stream = logs("json")
    logger.info("Task ended", extra={"task": UUID(int=1), "count": 3, "text": "a\nb", "nested": {"a": [1]}})
    (line,) = stream.getvalue().splitlines()
    entry: dict[str, Any] = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "intervaljob.test",
        "message": "Task ended",
        "task": "00000000-0000-0000-0000-000000000001",
        "count": 3,
        "text": "a\nb",
        "nested": {"a": [1]},
    }


def test_a_json_field_never_hides_what_the_line_says_itself() -> None:
    stream = logs("json")
    logger.info("Seen", extra={"level": 7, "time": "noon"})
    entry = json.loads(stream.getvalue())
    assert (entry["level"], entry["level_"], entry["time_"]) == ("info", 7, "noon")


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_traceback_is_logged(format_: Literal["text", "json"]) -> None:
    stream = logs(format_)
    try:
        int("boom")
    except ValueError:
        logger.exception("Failed", stack_info=True)
    text = stream.getvalue()
    if format_ == "json":
        assert len(text.splitlines()) == 1
        text = json.loads(text)["trace"]
    assert "ValueError: invalid literal" in text
    assert "Stack (most recent call last)" in text


def test_levels_below_the_one_asked_for_are_silent() -> None:
    stream = logs("text", level="warning")
    logger.info("No")
    logger.warning("Yes")
    assert stream.getvalue().endswith("WARNING Yes\n")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("name", NOISY)
def test_noisy_loggers_speak_up_in_debug_only(name: str) -> None:
    stream = logs("text")
    logging.getLogger(f"{name}.part").info("Noise")
    assert not stream.getvalue()
    logging.getLogger(f"{name}.part").warning("News")
    assert "News" in stream.getvalue()
    stream = logs("text", level="debug")
    logging.getLogger(f"{name}.part").debug("Noise")
    assert "Noise" in stream.getvalue()


def test_configuring_again_replaces_the_stream() -> None:
    first = logs("text")
    second = logs("text")
    logger.info("Once")
    assert not first.getvalue()
    assert second.getvalue().count("Once") == 1


def test_kopfs_own_attributes_are_not_fields() -> None:
    stream = logs("text")
    logging.getLogger("kopf.objects").error("Failed", extra={"settings": kopf.OperatorSettings(), "k8s_skip": True})
    assert stream.getvalue().endswith("ERROR Failed\n")


def test_a_forked_child_logs_too() -> None:
    program = """
        import logging, os
        from intervaljob.telemetry.logs import configure
        configure(format="text", level="info")
        child = os.fork()
        logging.getLogger("x").info("Hello", extra={"from": "parent" if child else "child"})
        if child:
            os.waitpid(child, 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert sorted(line.split(" ", 1)[1] for line in done.stderr.splitlines()) == [
        "INFO Hello from=child",
        "INFO Hello from=parent",
    ]
