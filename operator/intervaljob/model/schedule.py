"""Schedules: when a job is due. The only module that knows time zones.

Every datetime that comes in or goes out is aware and in UTC.

A cron schedule is read in its time zone, with Debian cron's rule where clocks change (cron(8), "daylight
saving"):

- A schedule of fixed times (neither minutes nor hours begin with `*`) runs at each of them once. A time
  that the clock jumps over runs at the end of the jump; a time that the clock shows twice runs the first
  time. Times that one jump swallows together run together, once.
- Any other schedule follows the clock: it runs at every instant at which the clock shows a matching time.

cronsim matches the expression against the clock's face; the step from there to instants is made here, since
cronsim's own loses occurrences where a jump is not of a whole hour or falls on midnight.

Jitter is a delay that a job has for good: it becomes due `jitter` after each time that its schedule says. An occurrence
keeps the time that the schedule says, so jitter adds and removes none, whenever it is edited.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from intervaljob.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

MAX_INTERVAL_SECONDS = 366 * 86_400
MAX_EXPRESSION_LENGTH = 256
MAX_JITTER_SECONDS = 7 * 86_400
MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_UNITS = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")
_FIELDS = (("minutes", 59), ("hours", 23), ("day of month", 31), ("month", 12), ("day of week", 7))
# Files that tz databases hold beside the zones: the machine's own, and copies with and without leap seconds.
_NO_ZONES = re.compile(r"local|localtime|factory|posixrules|posix/.*|right/.*", re.IGNORECASE)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Interval:
    """Due every `seconds`, counted from an anchor."""

    seconds: int


@dataclass(frozen=True)
class Cron:
    """Due when the clock of `zone` matches: five fields, made by `parse_schedule`."""

    expression: str
    zone: str = "UTC"


Schedule: TypeAlias = Interval | Cron


@dataclass(frozen=True)
class Skipped:
    """`count` occurrences from `first` to `last` that are not run, all for one reason."""

    reason: Literal["Suspended", "Missed"]
    first: datetime
    last: datetime
    count: int


@dataclass(frozen=True)
class Plan:
    """What becomes of the occurrences that are due: one to run at most, those not run, and when the next is due."""

    run: datetime | None
    skipped: tuple[Skipped, ...]
    next: datetime


def parse_schedule(*, interval: str | None, schedule: str | None, time_zone: str | None) -> Schedule:
    """The schedule that these three fields of a spec mean.

    Raises ResourceError with reason InvalidInterval, InvalidSchedule or UnknownTimeZone.
    """
    if interval is None and schedule is not None:
        return Cron(_expression(schedule), _zone("UTC" if time_zone is None else time_zone))
    if interval is None or schedule is not None:
        raise ResourceError("InvalidSchedule", "write either spec.interval or spec.schedule")
    if time_zone is not None:
        raise ResourceError("InvalidInterval", "spec.timeZone goes with spec.schedule only: remove it")
    return Interval(_interval_seconds(interval))


def jitter(uid: UUID, *, seconds: int) -> timedelta:
    """How much later than its schedule says the job of this uid becomes due: less than `seconds`, always the same.

    The delays of many jobs are spread evenly, to the microsecond, whoever chose their uids.
    """
    if not seconds:
        return timedelta()
    place = int.from_bytes(hashlib.sha256(uid.bytes).digest()[:8])
    return timedelta(microseconds=seconds * 1_000_000 * place >> 64)


def after(schedule: Schedule, *, anchor: datetime, moment: datetime) -> datetime:
    """The first occurrence strictly after `moment`.

    An interval's occurrences are `anchor` plus one interval, two, and so on; a cron schedule has no anchor.
    """
    if isinstance(schedule, Cron):
        return _next_instant(schedule, moment)
    step = timedelta(seconds=schedule.seconds)
    return anchor + max(1, (moment - anchor) // step + 1) * step


def plan(
    schedule: Schedule,
    *,
    anchor: datetime,
    due: datetime,
    now: datetime,
    runnable_since: datetime | None,
    delay: timedelta = timedelta(),
    limit: int = 10_000,
) -> Plan:
    """What becomes of every occurrence from the first one not yet handled, which is due at `due`, to `now`.

    Each is due `delay` (see `jitter`) after its own time, which is what `run` and `skipped` tell of it; `next` is when
    the first one after those handled is due.

    Those due before `runnable_since` (None: the job was always runnable) are skipped as "Suspended". Of the rest the
    newest is run and the others are skipped as "Missed": the rule of CronJob, which starts the most recent missed run
    only.

    A call handles `limit` occurrences of a cron schedule at most. Where more are due it runs none, and
    `next` is not after `now`: call again with `due=next`. Together such calls say what one call without a
    limit would.
    """
    if due > now:
        return Plan(run=None, skipped=(), next=due)
    times = _occurrences(schedule, anchor=anchor, first=due - delay, until=now - delay, limit=limit)
    handled = len(times) - 1
    runnable = 0 if runnable_since is None else bisect_left(times, runnable_since - delay, 0, handled)
    complete = times[handled] > now - delay
    runs = complete and runnable < handled
    missed = handled - 1 if runs else handled
    return Plan(
        run=times[missed] if runs else None,
        skipped=(
            *_skipped("Suspended", times, 0, runnable),
            *_skipped("Missed", times, runnable, missed),
        ),
        next=times[handled] + delay,
    )


@dataclass(frozen=True)
class _Grid:
    """An interval's occurrences, a list never written down: `first`, `second`, and on in even steps."""

    first: datetime
    second: datetime
    step: timedelta
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> datetime:
        return self.second + (index - 1) * self.step if index else self.first


def _occurrences(
    schedule: Schedule, *, anchor: datetime, first: datetime, until: datetime, limit: int
) -> _Grid | list[datetime]:
    """The occurrences from `first` to `until`, and the one after them."""
    if isinstance(schedule, Interval):
        step = timedelta(seconds=schedule.seconds)
        second = after(schedule, anchor=anchor, moment=first)
        return _Grid(first, second, step, length=2 + max(0, (until - second) // step + 1))
    times = [first, after(schedule, anchor=anchor, moment=first)]
    if times[-1] <= until:
        for instant in itertools.islice(_instants(schedule, times[-1]), limit - 1):
            times.append(instant)
            if instant > until:
                break
    return times


def _skipped(
    reason: Literal["Suspended", "Missed"], times: _Grid | list[datetime], start: int, stop: int
) -> Iterator[Skipped]:
    if start < stop:
        yield Skipped(reason, first=times[start], last=times[stop - 1], count=stop - start)


@lru_cache(maxsize=1024)
def _next_instant(cron: Cron, moment: datetime) -> datetime:
    """The same for all the jobs of this schedule."""
    return next(_instants(cron, moment))


def _instants(cron: Cron, moment: datetime) -> Iterator[datetime]:
    """Every occurrence after `moment`, in order."""
    zone = ZoneInfo(cron.zone)
    minutes, hours, *_ = cron.expression.split()
    fixed = not minutes.startswith("*") and not hours.startswith("*")
    here = moment.astimezone(zone)
    turned_back = here.replace(fold=1).astimezone(UTC) - moment  # 0 unless the clock will show `here` again
    latest = moment
    again: deque[datetime] = deque()  # what the clock shows a second time, until the first time is over
    for face in CronSim(cron.expression, here.replace(tzinfo=None, fold=0) - turned_back):
        first, second = _both(face, zone)
        while again and again[0] < first:
            yield again.popleft()
        if first > second:
            if not fixed:
                continue
            first = _end_of_jump(face, zone)
        if first > latest:
            yield (latest := first)
        if second > first and not fixed:
            again.append(second)


def _both(face: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The instants at which the clock shows `face` for the first and for the second time.

    They are equal but where clocks change: PEP 495 makes first < second for a face shown twice and first >
    second for one that is jumped over.
    """
    local = face.replace(tzinfo=zone)
    return local.astimezone(UTC), local.replace(fold=1).astimezone(UTC)


def _end_of_jump(face: datetime, zone: ZoneInfo) -> datetime:
    first, second = _both(face, zone)
    while first > second:
        face += _MINUTE
        first, second = _both(face, zone)
    return first


def _interval_seconds(text: str) -> int:
    match = _UNITS.fullmatch(text)
    if match is None or not text:
        raise ResourceError("InvalidInterval", "spec.interval: write whole units, e.g. 30s, 5m, 1h30m or 1d")
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 1 <= total <= MAX_INTERVAL_SECONDS:
        raise ResourceError("InvalidInterval", "spec.interval: write at least 1s and at most 366d")
    return total


def _expression(text: str) -> str:
    """Five fields that fire at least once, from what the user wrote."""
    if "TZ=" in text.upper():
        raise _bad_schedule("write the time zone in spec.timeZone")
    if len(text) > MAX_EXPRESSION_LENGTH:
        raise _bad_schedule(f"write at most {MAX_EXPRESSION_LENGTH} characters")
    if text.strip().startswith("@"):
        macro = text.strip().lower()
        if macro not in MACROS:
            raise _bad_schedule(f"write five fields, spec.interval instead, or one of {', '.join(MACROS)}")
        return MACROS[macro]
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise _bad_schedule('write five fields (minutes, hours, day of month, month, day of week), e.g. "*/5 * * * *"')
    for field, (name, most) in zip(fields, _FIELDS, strict=True):
        _check_steps(field, name=name, most=most)
    expression = " ".join(fields)
    try:
        fires = next(CronSim(expression, datetime(2000, 1, 1)), None)  # noqa: DTZ001 - a clock's face
    except CronSimError as error:
        raise _bad_schedule(f"{str(error).lower()}: write values that exist") from error
    if fires is None:
        raise _bad_schedule("write a date that exists: this schedule never fires")
    return expression


def _check_steps(field: str, *, name: str, most: int) -> None:
    """cronsim takes any step; one above the field's range never steps (cronie refuses it as well)."""
    for term in field.split(","):
        _, slash, step = term.partition("/")
        if slash and not (re.fullmatch("[0-9]{1,2}", step) and 1 <= int(step) <= most):
            raise _bad_schedule(f"write a step from 1 to {most} after the / in the {name}")


def _zone(name: str) -> str:
    try:
        if _NO_ZONES.fullmatch(name) is None:
            return ZoneInfo(name).key
    except (KeyError, ValueError, OSError):  # no such zone, no such name, a folder of zones
        pass
    raise ResourceError(
        "UnknownTimeZone",
        f"spec.timeZone: {name[:64]!r} is no time zone; write a name like Europe/Berlin or UTC",
    )


def _bad_schedule(what: str) -> ResourceError:
    return ResourceError("InvalidSchedule", f"spec.schedule: {what}")
