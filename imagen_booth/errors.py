"""Errors that are explained to the user, each with the exit code of the command.

The message names the field or file, the value found and what to do about it. Commands
print the message alone, without a traceback.
"""


class BoothError(Exception):
    """Base of every error that is explained to the user."""

    exit_code = 1


class InputError(BoothError, ValueError):
    """Bad input, configuration or usage."""

    exit_code = 2


class InUse(InputError):
    """Another process is at work in a folder."""


class DoesNotFit(BoothError):
    """The program does not fit in the memory of the device."""

    exit_code = 3


class NotFinite(BoothError):
    """A loss, gradient or parameter became infinite or not a number."""

    exit_code = 4


class SubjectsFailed(BoothError):
    """Some subjects of a job of many failed; the others are done.

    Args:
        message: Which ones, and why.
        exit_code: The highest exit code of their errors.
    """

    def __init__(self, message: str, exit_code: int = BoothError.exit_code):
        super().__init__(message)
        self.exit_code = exit_code


class StorageError(BoothError):
    """Reading or writing storage failed: disk full, permission, lost connection."""

    exit_code = 5


class Stopped(BoothError):
    """A signal stopped the run; its state is saved and the same command resumes it."""

    exit_code = 75
