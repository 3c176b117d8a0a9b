"""Errors that are meant for the person at the keyboard: one line that says what, where and what to do.

Each class carries the exit code of the contract: 1 the stage failed, 2 wrong usage, 3 inputs missing or stale.
Anything else that escapes a stage is a bug and keeps its traceback.
"""

import errno


class UserError(Exception):
    """A failure with a cause that the user can act on; the message is printed alone, without a traceback."""

    exit_code = 1


class StageError(UserError):
    """The stage could not do its work (out of disk, NaN loss, bad data)."""

    exit_code = 1


class CommandStopped(StageError):
    """A signal ended a command between its stages: nothing after it is to be started."""


class UsageError(UserError):
    """A wrong option, setting or value; nothing has been touched."""

    exit_code = 2


class InputError(UserError):
    """What the stage needs is missing or no longer what it was."""

    exit_code = 3


class Interrupted(Exception):
    """The work was asked to stop and has saved what it did; the same command resumes from there."""


class ShardDone(Exception):
    """This task of a job array has done its shard of a stage; another task finishes the stage."""


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_REMEDIES = {
    errno.EACCES: "You may not write there: check the owner, or choose another directory",
    errno.EPERM: "You may not do that there: check the owner, or choose another directory",
    errno.EROFS: "That file system is read-only: choose another directory",
    errno.ENOENT: "Was it deleted meanwhile? Check the path",
    errno.ESTALE: "The network file system has lost the file: run the same command again",
    errno.EIO: "The disk or network file system fails: tell whoever runs it",
}


def is_disk_full(error: OSError) -> bool:
    """Whether there is no room on the disk, or none left in the user's quota."""
    return error.errno in _DISK_FULL


def explain(error: OSError, doing: str = "") -> str:
    """What the operating system refused, where, and what helps, on one line. `doing` is said where no file is known."""
    where = str(error.filename or doing)
    cause = f"{where}: {error.strerror or error}" if where else str(error.strerror or error)
    remedy = "Make room, then try again" if is_disk_full(error) else _REMEDIES.get(error.errno or 0, "")
    return f"{cause}. {remedy}." if remedy else f"{cause}."
