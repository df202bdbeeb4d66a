"""The kernel's part in self-fencing: a deadline that ends this process, and the death of a parent that does.

The deadline is a POSIX timer of the process whose signal is SIGKILL. It fires with the interpreter's lock held, in
blocked or stopped processes too: a process that was frozen past its deadline is dead before its next instruction.
Unlike an alarm it is not shared with user code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

_PR_SET_PDEATHSIG = 1
_TIMER_ABSTIME = 1
_SIGEV_SIGNAL = 0

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
    """The deadline of this process, in seconds of `boot_time`."""

    def __init__(self, deadline: float) -> None:
        event = _SignalEvent(signal=signal.SIGKILL, notify=_SIGEV_SIGNAL)
        self._timer = ctypes.c_void_p()
        _check(_libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)), "timer_create")
        self.push_out(deadline)

    def push_out(self, deadline: float) -> None:
        """The process lives until then. One that lies in the past ends it now."""
        seconds, fraction = divmod(max(deadline, 0.001), 1)
        value = _TimeSpec(int(seconds), int(fraction * 1e9))
        spec = _TimerSpec(_TimeSpec(0, 0), value)
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
