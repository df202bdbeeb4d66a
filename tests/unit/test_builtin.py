"""The handlers that every worker has, with real programs and a real server on loopback."""

import asyncio
import inspect
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest

from intervaljob.errors import HandlerError
from intervaljob.model.task import Json
from intervaljob.worker import builtin
from intervaljob.worker.handlers import Handler, Task

TASK = UUID(int=1)


def run(function: Handler, payload: object) -> Json:
    """A handler's output for this payload: JSON of it, or the text itself."""
    task = Task(
        id=TASK,
        job_id=UUID(int=2),
        user_id=UUID(int=3),
        workspace_id=UUID(int=4),
        payload=payload if isinstance(payload, str) else json.dumps(payload),
        attempt=1,
        recovered=False,
        scheduled_for=datetime(2026, 11, 23, tzinfo=UTC),
        last_checkpoint=None,
        logger=logging.LoggerAdapter(logging.getLogger("test")),
        save=lambda _: None,
    )

    async def awaited(output: Any) -> Json:
        return await output

    output = function(task)
    return asyncio.run(awaited(output)) if inspect.isawaitable(output) else output


class Server:
    """Answers each POST as `answers` says for its path, and remembers it."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        server = self

        class Requests(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, dict(self.headers), body))
                status, headers, answer = server.answers.get(self.path, (200, {}, b"done"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose `/hooks` the worker allows."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("INTERVALJOB_HTTP_ALLOW", f"https://other.example,{made.url}/hooks/")
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.mark.parametrize(("payload", "output"), [('{"a": 1}', {"a": 1}), ("no json", "no json"), ("", ""), ("7", 7)])
def test_echo_returns_its_payload(payload: str, output: object) -> None:
    assert run(builtin.echo, payload) == output


def test_sleep_sleeps() -> None:
    assert run(builtin.sleep, {"seconds": 0.01}) == {"slept": 0.01}


@pytest.mark.parametrize("payload", ["", "[]", {}, {"seconds": "1"}, {"seconds": -1}])
def test_sleep_refuses_what_is_no_time(payload: object) -> None:
    with pytest.raises(HandlerError):
        run(builtin.sleep, payload)


def test_http_posts_the_body_and_returns_the_answer(server: Server) -> None:
    output = run(builtin.http, {"url": f"{server.url}/hooks/a?b=c", "body": {"x": [1]}})
    assert output == {"status": 200, "body": "done"}
    ((path, headers, body),) = server.requests
    assert path == "/hooks/a?b=c"
    assert json.loads(body) == {"x": [1]}
    assert headers["Content-Type"] == "application/json"
    assert headers["Idempotency-Key"] == str(TASK)


@pytest.mark.parametrize("status", [400, 404, 410])
def test_http_does_not_repeat_what_the_server_refuses(server: Server, status: int) -> None:
    server.answers["/hooks"] = (status, {}, b"no such hook")
    with pytest.raises(HandlerError, match=f"answered {status}: no such hook"):
        run(builtin.http, {"url": f"{server.url}/hooks"})


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_http_fails_so_that_it_is_tried_again_where_that_may_help(server: Server, status: int) -> None:
    server.answers["/hooks"] = (status, {}, b"later")
    with pytest.raises(RuntimeError, match=f"answered {status}: later"):
        run(builtin.http, {"url": f"{server.url}/hooks"})


def test_http_fails_so_that_it_is_tried_again_where_nobody_listens(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(OSError, match="refused"):
        run(builtin.http, {"url": f"{server.url}/hooks"})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_http_follows_no_redirect(server: Server, status: int) -> None:
    server.answers["/hooks"] = (status, {"Location": f"{server.url}/secret"}, b"")
    with pytest.raises(HandlerError, match=f"answered {status}"):
        run(builtin.http, {"url": f"{server.url}/hooks"})
    assert [path for path, *_ in server.requests] == ["/hooks"]


def test_http_keeps_the_beginning_of_a_long_answer(server: Server) -> None:
    server.answers["/hooks"] = (200, {}, b"x" * 100_000)
    assert len(run(builtin.http, {"url": f"{server.url}/hooks"})["body"]) == builtin.KEPT_BYTES


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/hook",
        "/hooksmith",
        "/secret",
        "/hooks/../secret",
        "/hooks/..",
        "/hooks/%2e%2e/secret",
        "/hooks/%2E./secret",
        "/hooks/..%2fsecret",
        "/hooks/..%5csecret",
        "/hooks/..\\secret",
        "/hooks\t/../secret",
        "/hooks/.\n./secret",
    ],
)
def test_http_refuses_paths_outside_the_allowed_one(server: Server, path: str) -> None:
    with pytest.raises(HandlerError, match="does not allow"):
        run(builtin.http, {"url": server.url + path})
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "{url}@elsewhere.example/hooks",
        "http://user@127.0.0.1:{port}/hooks",
        "http://127.0.0.1:{port}@elsewhere.example/hooks",
        "http://127.0.0.1/hooks",
        "http://127.0.0.1:{port}.elsewhere.example/hooks",
        "https://127.0.0.1:{port}/hooks",
        "file:///etc/hostname",
        "file://127.0.0.1:{port}/hooks",
        "ftp://127.0.0.1:{port}/hooks",
        "//127.0.0.1:{port}/hooks",
        "URL:http://127.0.0.1:{port}/hooks",
        "http:///hooks",
        "hooks",
        "",
    ],
)
def test_http_refuses_other_servers_and_schemes(server: Server, url: str) -> None:
    with pytest.raises(HandlerError, match="does not allow"):
        run(builtin.http, {"url": url.format(url=server.url, port=server.http.server_port)})
    assert server.requests == []


@pytest.mark.parametrize("url", [None, 7, ["http://127.0.0.1"]])
def test_http_refuses_what_is_no_url(server: Server, url: object) -> None:
    with pytest.raises(HandlerError, match="does not allow"):
        run(builtin.http, {"url": url})


def test_nothing_is_allowed_unless_the_worker_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERVALJOB_HTTP_ALLOW", raising=False)
    monkeypatch.delenv("INTERVALJOB_COMMAND_ALLOW", raising=False)
    with pytest.raises(HandlerError, match="set INTERVALJOB_HTTP_ALLOW"):
        run(builtin.http, {"url": "http://127.0.0.1/"})
    with pytest.raises(HandlerError, match="set INTERVALJOB_COMMAND_ALLOW"):
        run(builtin.command, {"command": ["/bin/sh", "-c", "true"]})


@pytest.fixture
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERVALJOB_COMMAND_ALLOW", "/bin/cat, /bin/sh,/no/such/program")


@pytest.mark.usefixtures("_programs")
class TestCommand:
    def test_the_program_gets_the_payload_on_its_input(self) -> None:
        payload = {"command": ["/bin/cat"], "more": "input"}
        output = run(builtin.command, payload)
        assert json.loads(output["stdout"]) == payload
        assert output["stderr"] == ""

    def test_no_shell_reads_the_arguments(self) -> None:
        output = run(builtin.command, {"command": ["/bin/sh", "-c", 'echo "$1"', "-", "$(id); `id` *"]})
        assert output["stdout"] == "$(id); `id` *\n"

    def test_a_failure_is_told_with_the_end_of_its_errors(self) -> None:
        with pytest.raises(RuntimeError, match=r"/bin/sh ended with 3: no luck"):
            run(builtin.command, {"command": ["/bin/sh", "-c", "echo no luck >&2; exit 3"]})

    def test_the_beginning_of_a_long_output_is_kept(self) -> None:
        output = run(builtin.command, {"command": ["/bin/sh", "-c", "head -c 100000 /dev/zero"]})
        assert len(output["stdout"]) == builtin.KEPT_BYTES

    @pytest.mark.parametrize(
        "words",
        [
            ["cat"],
            ["/bin/../bin/cat"],
            ["/bin//cat"],
            ["/bin/cat "],
            [" /bin/cat"],
            ["/bin/cat\0"],
            ["/bin"],
            ["/bin/catx"],
        ],
    )
    def test_a_program_that_is_not_on_the_list_is_refused(self, words: list[str]) -> None:
        with pytest.raises(HandlerError, match="does not allow"):
            run(builtin.command, {"command": words})

    @pytest.mark.parametrize("command", [None, [], "/bin/cat", [["/bin/cat"]], ["/bin/cat", 1]])
    def test_what_is_no_command_is_refused(self, command: object) -> None:
        with pytest.raises(HandlerError, match="write a payload like"):
            run(builtin.command, {"command": command})

    def test_a_program_that_is_not_there_fails(self) -> None:
        with pytest.raises(FileNotFoundError):
            run(builtin.command, {"command": ["/no/such/program"]})
