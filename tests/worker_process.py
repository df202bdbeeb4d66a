"""A whole worker as a process of its own, as a pod runs it."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from support import children_of, eventually

from intervaljob.embedded.processes import free_port


class WorkerProcess:
    """`python -m intervaljob worker`; it runs inside `async with`. Settings are flags: `lease_seconds=3`."""

    def __init__(self, url: str, *, folder: Path, **settings: object) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        self._log = folder / "worker.log"
        flags = {
            "database_url": url,
            "http_address": self._address,
            "handlers": "handlers_for_tests",
            "lease_seconds": 3,
            "poll_seconds": 0.2,
            "cancel_seconds": 0.3,
            **settings,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "intervaljob", "worker"),
                    *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
                ],
                env={
                    **os.environ,
                    "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                },
                stderr=log,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if kind is not None:
            print(self.log())

    @property
    def pid(self) -> int:
        return self._process.pid

    def zygote(self) -> int:
        """The process that executors are forked from."""
        (zygote,) = children_of(self.pid)
        return zygote

    def processes(self) -> list[int]:
        """Manager, zygote and executors."""
        return [self.pid, self.zygote(), *children_of(self.zygote())]

    def log(self) -> str:
        return self._log.read_text()

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    async def ended(self, *, within: float = 10.0) -> int:
        """The exit code, once it has ended."""
        await eventually(lambda: self._process.poll() is not None, what="the worker has ended", within=within)
        return self._process.returncode

    async def says(self, text: str, *, within: float = 10.0) -> None:
        await eventually(lambda: text in self.log(), what=f"the log says {text!r}", within=within)

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of a probe."""
        return await asyncio.to_thread(self._get, path)

    async def ready(self, *, within: float = 10.0) -> None:
        async def look() -> bool:
            return (await self.get("/readyz"))[0] == 200

        await eventually(look, what="the worker is ready", within=within)

    def _get(self, path: str) -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self._address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)
