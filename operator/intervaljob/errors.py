"""Every error this package raises on purpose.

IntervalJobError
├── SettingsError          a setting is missing or wrong
├── ResourceError          an IntervalJob that the API server accepted cannot be scheduled
├── DatabaseError
│   ├── DatabaseUnavailable    the database cannot be reached now; waiting helps
│   └── SchemaVersionError     the database's schema is not the one this version needs
├── ArgsError              a queue job's args cannot be read
├── HandlerError           handlers cannot be loaded, or one refuses its payload
└── EmbeddedError          an embedded server cannot be found, built or started
"""


class IntervalJobError(Exception):
    """Base of them all. The message is one line that says what is wrong and what to do."""


class SettingsError(IntervalJobError):
    """A setting is missing or wrong; the message names it."""


class ResourceError(IntervalJobError):
    """An IntervalJob cannot be scheduled as it is written.

    `reason` is the CamelCase reason of its `Ready=False` condition (Kubernetes API conventions, "Conditions").
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class DatabaseError(IntervalJobError):
    """The database refuses."""


class DatabaseUnavailable(DatabaseError):  # noqa: N818 - the word says it
    """The database cannot be reached now; waiting helps."""


class SchemaVersionError(DatabaseError):
    """The database's schema is older than this version needs; run `intervaljob migrate up`."""


class ArgsError(IntervalJobError):
    """A queue job's args cannot be read; the message says which part."""


class HandlerError(IntervalJobError):
    """Handlers cannot be loaded, or a handler refuses its payload."""


class EmbeddedError(IntervalJobError):
    """An embedded server cannot be found, built or started."""


def sole_error(group: BaseExceptionGroup) -> BaseException:
    """The one error of ours for which a task group ended, else the group."""
    found: BaseException | None = group.subgroup(IntervalJobError)
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found if isinstance(found, IntervalJobError) else group
