"""Server processes that end when this process ends."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from intervaljob.errors import EmbeddedError

_POLL_SECONDS = 0.05
_LOG_LINES = 15


class Child:
    """A running server.

    It has a process group of its own, so that a terminal's Ctrl-C leaves the order of stopping to us. The
    kernel sends it `death_signal` when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG: its
    parent is a thread), so start it from one that lives as long as the server shall: the main thread.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
        death_signal: signal.Signals = signal.SIGKILL,
        unprivileged: bool = False,
    ) -> None:
        self._name = Path(command[0]).name
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*_setpriv(death_signal=death_signal, unprivileged=unprivileged), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Return when `ready` says so.

        EmbeddedError, with the last lines of the log, when the server ends first or is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if (code := self._process.poll()) is not None:
                raise EmbeddedError(f"{self._name} ended with code {code} while starting:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self._name} was not ready after {seconds:g} s:\n{self._log_end()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, stop_signal: signal.Signals = signal.SIGTERM, *, seconds: float) -> None:
        """Ask it to end; kill it when it has not ended after `seconds`."""
        self._process.send_signal(stop_signal)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    seconds: float,
    stdin: str | None = None,
    check: bool = True,
    unprivileged: bool = False,
) -> str:
    """Run a tool to its end and return what it wrote to stdout.

    EmbeddedError when it takes longer than `seconds`; and when it fails, with what it wrote to stderr, unless
    `check` is false.
    """
    name = Path(command[0]).name
    drop = _setpriv(death_signal=signal.SIGKILL, unprivileged=True) if unprivileged else []
    try:
        done = subprocess.run(
            [*drop, *command],
            env=environment,
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{name} did not end within {seconds:g} s") from error
    if check and done.returncode:
        raise EmbeddedError(f"{name} failed with code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def free_port() -> int:
    """A loopback port nobody listens on.

    It lies below the range from which Linux takes the local ports of outgoing connections (ip(7),
    ip_local_port_range: 32768 and up), so that a server that is stopped gets the same port again.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedError("no free port between 20000 and 32000 on 127.0.0.1")


def _setpriv(*, death_signal: signal.Signals, unprivileged: bool) -> list[str]:
    """The front of a command that ties it to this process and, where asked, has root run it as nobody.

    Postgres refuses to run as root. Its programs and data may lie in folders that only root can enter; one
    capability (capabilities(7), CAP_DAC_OVERRIDE) lets it pass, and ends with the process, as opening those
    folders to everybody would not.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedError("setpriv is not installed; it is part of util-linux")
    command = [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG")]
    if unprivileged and os.geteuid() == 0:
        command += ["--reuid=nobody", "--regid=65534", "--clear-groups"]
        command += ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    return [*command, "--"]
