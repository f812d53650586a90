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


class DoesNotFit(BoothError):
    """The program does not fit in the memory of the device."""

    exit_code = 3


class NotFinite(BoothError):
    """A loss, gradient or parameter became infinite or not a number."""

    exit_code = 4


class StorageError(BoothError):
    """Reading or writing storage failed: disk full, permission, lost connection."""

    exit_code = 5


class Stopped(BoothError):
    """A signal stopped the run; its state is saved and the same command resumes it."""

    exit_code = 75
