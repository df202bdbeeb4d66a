"""The process that executors are forked from: it has loaded the handlers, so a new executor is there in milliseconds.

It also buries them: it alone reaps them, and kills what is left of their process groups before it does, so that when
it says that an executor is gone nothing of it runs. It ends with its manager, and its executors with it.

And it guards the deadline of all of them, since it runs no handler that could keep it from hearing of renewals:

- shortly before the deadline it kills every executor, with what handlers have started, and ends;
- a timer in the kernel kills it *at* the deadline, where it is frozen or got no CPU, and its executors die with it;
- an executor that stopped is continued. Its own deadline stops it where it did not hear of a renewal, as its handler
  holds the interpreter's lock. While the zygote lives, the lease does, so nothing is wrong. It cannot be told who
  stopped an executor: one that somebody stops by hand goes on at once, too.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from intervaljob.errors import HandlerError
from intervaljob.telemetry import logs
from intervaljob.worker.executor import Executor
from intervaljob.worker.fence import Fence, boot_time, die_with_parent
from intervaljob.worker.handlers import Handler, load_handlers

logger = logging.getLogger(__name__)

#: Longest message on the control socket, either way.
MESSAGE_BYTES = 64 * 1024

#: How long before the deadline the zygote begins to kill. At the deadline it is dead itself, and what handlers have
#: started would live on.
AHEAD_SECONDS = 0.1


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
    """Forks, kills and buries executors as the manager says, and ends them when the manager says nothing in time."""

    def __init__(self, control: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._control = control
        self._handlers = handlers
        self._children: set[int] = set()
        self._fence: Fence | None = None
        self._deadline = 0.0
        self._ending = False

    def serve(self) -> NoReturn:
        """Until the manager is gone, or the deadline has come."""
        woken, wakes = socket.socketpair()
        for end in (woken, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminate)
        while not self._ending:
            ready, _, _ = select.select([self._control, woken], [], [], self._seconds_left())
            if woken in ready:
                woken.recv(1024)
            for message in self._heard():
                self._obey(message)
            if self._seconds_left() == 0:
                break
            self._look_after_children()
        self._end()

    def _terminate(self, *_: object) -> None:
        self._ending = True

    def _seconds_left(self) -> float | None:
        """None before the first deadline: there is no executor yet."""
        return None if self._fence is None else max(0.0, self._deadline - AHEAD_SECONDS - boot_time())

    def _heard(self) -> Iterator[dict[str, float]]:
        """All that the manager has said so far: the newest deadline may be behind other messages."""
        while not self._ending:
            try:
                data = self._control.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if data:
                yield json.loads(data)
            else:
                self._ending = True

    def _obey(self, message: dict[str, float]) -> None:
        if "deadline" in message:
            self._push_out(message["deadline"])
        elif "fork" in message:
            self._push_out(message["fork"])
            self._fork()
        elif message["kill"] in self._children:
            _kill_group(int(message["kill"]))

    def _push_out(self, deadline: float) -> None:
        """Never back: a request to fork may carry an older deadline than the renewal that overtook it."""
        if self._fence is None:
            self._fence = Fence(deadline, signal.SIGKILL)
        elif deadline > self._deadline:
            self._fence.push_out(deadline)
        self._deadline = max(deadline, self._deadline)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # a limit on processes or memory, which others' ends may ease
            theirs.close()
            ours.close()
            self._say({"not_forked": str(error)})
            return
        if pid == 0:
            ours.close()
            self._become_executor(theirs, zygote=zygote, deadline=self._deadline)
        theirs.close()
        self._children.add(pid)
        self._say({"forked": pid}, ours.fileno())
        ours.close()

    def _say(self, message: dict[str, Any], *fds: int) -> None:
        with suppress(ConnectionError):  # the manager is gone, which is heard next
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)

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

    def _look_after_children(self) -> None:
        """Continue the stopped, bury the dead. One call asks for both: after a death, one for stops would fail."""
        for pid in tuple(self._children):
            change = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            if change is None:
                continue
            if change.si_code == os.CLD_STOPPED:
                os.kill(pid, signal.SIGCONT)
            else:
                self._bury(pid)

    def _bury(self, pid: int) -> None:
        """Kill the rest of the group while the dead executor still keeps its number, then let it go.

        Processes that a module started while it was loaded are left to that module.
        """
        _kill_group(pid)
        _, status = os.waitpid(pid, 0)
        self._children.discard(pid)
        self._say({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _end(self) -> NoReturn:
        """With all executors. The manager hears of each: to one whose number is free again it must do nothing."""
        for pid in self._children:
            _kill_group(pid)
        for pid in tuple(self._children):
            self._bury(pid)
        if self._seconds_left() == 0:
            logger.warning("Deadline without a renewal: every executor was killed")
        os._exit(0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # forked just now: not yet the leader of a group


if __name__ == "__main__":
    main()
