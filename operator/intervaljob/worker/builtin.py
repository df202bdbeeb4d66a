"""The handlers that every worker has: `echo`, `sleep`, `http` and `command`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import unquote, urlsplit

from intervaljob.errors import HandlerError
from intervaljob.model.task import Json
from intervaljob.settings import split_list
from intervaljob.worker.handlers import Task, handler

#: How much of an answer or of a program's output becomes the task's output.
KEPT_BYTES = 16 * 1024

#: Bound on one HTTP exchange; `activeDeadlineSeconds` may be shorter.
HTTP_SECONDS = 300.0


@handler("echo")
async def echo(task: Task) -> Json:
    """Returns its payload, as JSON where it is JSON."""
    try:
        return json.loads(task.payload)
    except ValueError:
        return task.payload


@handler("sleep")
async def sleep(task: Task) -> Json:
    """Sleeps for `{"seconds": 20}`."""
    seconds = _payload(task).get("seconds")
    if not isinstance(seconds, int | float) or seconds < 0:
        raise HandlerError('sleep: write a payload like {"seconds": 20}')
    await asyncio.sleep(seconds)
    return {"slept": seconds}


@handler("http")
def http(task: Task) -> Json:
    """POSTs `body` as JSON to `url`, which the worker must allow: `{"url": "https://…", "body": {…}}`.

    An answer of 2xx is success, of 4xx a failure that is not tried again (408 and 429 are), any other is.
    """
    payload = _payload(task)
    url = payload.get("url")
    if not isinstance(url, str) or not any(_allows(prefix, url) for prefix in _setting("HTTP_ALLOW")):
        raise HandlerError(f"http: the worker does not allow {url!r}: set INTERVALJOB_HTTP_ALLOW there")
    request = urllib.request.Request(  # noqa: S310 - the allow-list has the scheme
        url,
        data=json.dumps(payload.get("body")).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": str(task.id)},
        method="POST",
    )
    try:
        with _opener.open(request, timeout=HTTP_SECONDS) as answer:
            return {"status": answer.status, "body": _text(answer.read(KEPT_BYTES))}
    except urllib.error.HTTPError as error:
        text = f"http: {url} answered {error.code}: {_text(error.read(1024))}"
        if 300 <= error.code < 500 and error.code not in (408, 429):  # noqa: PLR2004
            raise HandlerError(text) from None
        raise RuntimeError(text) from None


@handler("command")
def command(task: Task) -> Json:
    """Runs `{"command": ["/usr/bin/report", "--all"]}` with the payload on its standard input.

    The program must be on the worker's allow-list, by its absolute path. No shell reads the arguments.
    """
    words = _payload(task).get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise HandlerError('command: write a payload like {"command": ["/usr/bin/report", "--all"]}')
    if words[0] not in _setting("COMMAND_ALLOW"):
        raise HandlerError(f"command: the worker does not allow {words[0]!r}: set INTERVALJOB_COMMAND_ALLOW there")
    done = subprocess.run(words, input=task.payload.encode(), capture_output=True, check=False)
    output = {"stdout": _text(done.stdout[:KEPT_BYTES]), "stderr": _text(done.stderr[:KEPT_BYTES])}
    if done.returncode != 0:
        raise RuntimeError(f"command: {words[0]} ended with {done.returncode}: {output['stderr'][-1024:]}")
    return output


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead off the allow-list."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def _payload(task: Task) -> dict[str, Any]:
    try:
        payload = json.loads(task.payload)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        raise HandlerError("the payload must be a JSON object")
    return payload


def _allows(prefix: str, url: str) -> bool:
    """Same scheme and host, and a path at or below the prefix's."""
    allowed, asked = urlsplit(prefix), urlsplit(url)
    if (allowed.scheme, allowed.netloc) != (asked.scheme, asked.netloc) or asked.scheme not in ("http", "https"):
        return False
    base = allowed.path.rstrip("/")
    inside = asked.path == base or asked.path.startswith(base + "/")
    return inside and ".." not in unquote(asked.path).replace("\\", "/").split("/")


def _setting(name: str) -> tuple[str, ...]:
    value = split_list(os.environ.get(f"INTERVALJOB_{name}", ""))
    assert isinstance(value, tuple)
    return value


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
