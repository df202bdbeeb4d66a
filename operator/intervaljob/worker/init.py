"""PID 1 of a worker's container.

The kernel gives orphans to PID 1, which is to reap them: executors whose zygote has died, and whatever their handlers
started. The manager awaits processes that it knows; so PID 1 is a process of its own that knows none.
"""

from __future__ import annotations

import os
import signal
import types

#: What a container runtime or a person at `kubectl exec` sends.
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SIGNALLED = 128


def leave_pid_1() -> None:
    """Return in a child where this process is PID 1; the parent stays, passes signals on, and ends as the child ends.

    With PID 1 the kernel ends every process of the container, so nothing outlives the manager.
    """
    if os.getpid() != 1:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child:
        _watch(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)


def _watch(child: int) -> None:
    def pass_on(signum: int, _: types.FrameType | None) -> None:
        os.kill(child, signum)

    for signum in _PASSED_ON:
        signal.signal(signum, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else _SIGNALLED - code)
