"""What all commands share: flags, exit codes, one sentence instead of a traceback."""

import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from imagen_booth.errors import BoothError, StorageError

USAGE = 2


def run(
    main: Callable[[], None], doc: str | None, verbs: tuple[str, ...] = ()
) -> NoReturn:
    """Parses flags, runs ``main`` and exits with the code of what happened.

    0 done; 2 bad input, configuration or usage; 3 does not fit in memory; 4 not
    finite; 5 storage; 75 saved and stopped, run the same command again.

    Args:
        main: the command; reads ``flags.FLAGS``.
        doc: what ``--help`` says first.
        verbs: words of which one has to follow the command's name.
    """
    sys.modules["__main__"].__doc__ = doc
    app.define_help_flags()
    try:
        rest = flags.FLAGS(sys.argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(str(error), USAGE)
    except (BoothError, FileNotFoundError) as error:
        _fail(str(error), USAGE)
    if verbs:
        if len(rest) < 2 or rest[1] not in verbs:
            _fail(f"say what to do: {' or '.join(verbs)}; see --help", USAGE)
        del rest[1]
    if len(rest) > 1:
        _fail(f"{rest[1]!r} is not expected; settings are given as --flag=value", USAGE)
    # Our own lines are for the user; other libraries speak only of trouble.
    absl_logging.set_verbosity(absl_logging.WARNING)
    ours = logging.getLogger("imagen_booth")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.addHandler(_BesideBars())
    try:
        main()
    except BoothError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(str(error), StorageError.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", 75)
    sys.exit(0)


class _BesideBars(logging.Handler):
    """Prints lines to standard error without tearing progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        import tqdm  # slow; --help does without

        mark = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.tqdm.write(mark + record.getMessage(), file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    print(f"{message.strip()}", file=sys.stderr)
    sys.exit(code)
