"""The kernel's part in self-fencing: a deadline that ends or stops this process, and a parent whose death ends it.

The deadline is a POSIX timer of the process whose signal is SIGKILL or SIGSTOP, which no process can catch, block or
ignore. It fires with the interpreter's lock held, and while the process does not run: one that was frozen past its
deadline is dead, or stops, before its next instruction. Unlike an alarm it is not shared with user code, and unlike
that it is not inherited by a fork (timer_create(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

_PR_SET_PDEATHSIG = 1
_TIMER_ABSTIME = 1
_SIGEV_SIGNAL = 0

#: Seconds after which a deadline that has passed sends its signal again, to a process that somebody continued.
_AGAIN_SECONDS = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _SignalEvent(ctypes.Structure):
    """`struct sigevent` (sigevent(7)), padded to its size of 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_int * 12),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Fence:
    """The deadline of this process, in seconds of `boot_time`, at which it gets `signum`, and every second after.

    A signal that reaches a process that is stopped already waits; SIGCONT throws it away, and the repetition with it,
    until the deadline is pushed out (tried; signal(7) says the former).
    """

    def __init__(self, deadline: float, signum: signal.Signals) -> None:
        event = _SignalEvent(signal=signum, notify=_SIGEV_SIGNAL)
        self._timer = ctypes.c_void_p()
        _check(_libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)), "timer_create")
        self.push_out(deadline)

    def push_out(self, deadline: float) -> None:
        """The process is left alone until then. A deadline that lies in the past sends the signal now."""
        seconds, fraction = divmod(max(deadline, 0.001), 1)
        value = _TimeSpec(int(seconds), int(fraction * 1e9))
        spec = _TimerSpec(_TimeSpec(_AGAIN_SECONDS, 0), value)
        _check(_libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(spec), None), "timer_settime")


def boot_time() -> float:
    """Seconds since the machine started. Unlike the monotonic clock it goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def die_with_parent(parent: int, signum: signal.Signals) -> None:
    """Get `signum` from the kernel when the parent ends (prctl(2)); end now where it has ended already."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _check(status: int, call: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
