"""Errors that are meant for the person at the keyboard: one line that says what, where and what to do.

Each class carries the exit code of the contract: 1 the stage failed, 2 wrong usage, 3 inputs missing or stale.
Anything else that escapes a stage is a bug and keeps its traceback.
"""


class UserError(Exception):
    """A failure with a cause that the user can act on; the message is printed alone, without a traceback."""

    exit_code = 1


class StageError(UserError):
    """The stage could not do its work (out of disk, NaN loss, bad data)."""

    exit_code = 1


class UsageError(UserError):
    """A wrong option, setting or value; nothing has been touched."""

    exit_code = 2


class InputError(UserError):
    """What the stage needs is missing or no longer what it was."""

    exit_code = 3


class Interrupted(Exception):
    """The work was asked to stop and has saved what it did; starting it again goes on from there."""


class PartDone(Exception):
    """This task of a job array has done its part of a stage; another one will finish the stage."""
