"""The process that executors are forked from: it has loaded the handlers, so a new executor is there in milliseconds.

It also buries them: it alone reaps them, and kills what is left of their process groups before it does, so that when
it says that an executor is gone nothing of it runs. It ends with its manager, and its executors with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from typing import NoReturn

from intervaljob.errors import HandlerError
from intervaljob.telemetry import logs
from intervaljob.worker.executor import Executor
from intervaljob.worker.fence import die_with_parent
from intervaljob.worker.handlers import Handler, load_handlers

#: Longest message on the control socket, either way.
MESSAGE_BYTES = 64 * 1024


def main() -> None:
    """`python -m intervaljob.worker.zygote FD '{"parent": pid, "handlers": […], …}'`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    start = json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(start["parent"], signal.SIGTERM)
    logs.configure(format=start["log_format"], level=start["log_level"])
    try:
        handlers = load_handlers(start["handlers"])
    except HandlerError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        raise SystemExit(1) from None
    control.send(json.dumps({"handlers": sorted(handlers)}).encode())
    Zygote(control, handlers).serve()


class Zygote:
    """Forks, kills and buries executors as the manager says."""

    def __init__(self, control: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._control = control
        self._handlers = handlers
        self._children: set[int] = set()

    def serve(self) -> NoReturn:
        """Until the manager is gone."""
        woken, wakes = socket.socketpair()
        for end in (woken, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        while True:
            ready, _, _ = select.select([self._control, woken], [], [])
            if woken in ready:
                woken.recv(1024)
                self._bury()
            if self._control in ready:
                message = self._control.recv(MESSAGE_BYTES)
                if not message:
                    self._end()
                self._obey(json.loads(message))

    def _obey(self, message: dict[str, float]) -> None:
        if "fork" in message:
            self._fork(message["fork"])
        elif message["kill"] in self._children:
            _kill_group(int(message["kill"]))

    def _fork(self, deadline: float) -> None:
        ours, theirs = socket.socketpair()
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_executor(theirs, zygote=zygote, deadline=deadline)
        theirs.close()
        self._children.add(pid)
        socket.send_fds(self._control, [json.dumps({"forked": pid}).encode()], [ours.fileno()])
        ours.close()

    def _become_executor(self, connection: socket.socket, *, zygote: int, deadline: float) -> NoReturn:
        try:
            os.setsid()
            die_with_parent(zygote, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            Executor(connection, self._handlers, deadline=deadline).serve()
        finally:
            os._exit(1)

    def _bury(self) -> None:
        """Kill the rest of the group while the dead executor still keeps its number, then let it go.

        Processes that a module started while it was loaded are left to that module.
        """
        for pid in tuple(self._children):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(pid)
            _, status = os.waitpid(pid, 0)
            self._children.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            self._control.send(json.dumps({"exited": pid, "status": code}).encode())

    def _end(self) -> NoReturn:
        for pid in self._children:
            _kill_group(pid)
        os._exit(0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # forked just now: not yet the leader of a group


if __name__ == "__main__":
    main()
