"""What all commands share: flags, exit codes, one sentence instead of a traceback."""

import difflib
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from imagen_booth.distributed import cpu_flags, supervisor
from imagen_booth.errors import BoothError, StorageError

USAGE = 2


def run(
    main: Callable[..., None], doc: str | None, verbs: Mapping[str, int] | None = None
) -> NoReturn:
    """Parses flags, runs ``main`` and exits with the code of what happened.

    0 done; 2 bad input, configuration or usage; 3 does not fit in memory; 4 not
    finite; 5 storage; 75 saved and stopped, run the same command again.

    Args:
        main: the command; reads ``flags.FLAGS``, and is given its words, if any.
        doc: what ``--help`` says first.
        verbs: words of which one has to follow the command's name, and how many
            others may follow it.
    """
    sys.modules["__main__"].__doc__ = doc
    cpu_flags.prefer_speed(os.environ)
    app.define_help_flags()
    config = _config_argument(sys.argv)
    if config is not None and not pathlib.Path(config.partition(":")[0]).is_file():
        _fail(_missing_file(config.partition(":")[0]), USAGE)
    try:
        rest = flags.FLAGS(sys.argv)
    except SystemExit:
        sys.exit(0)  # absl ends --help with 1
    except flags.UnrecognizedFlagError as error:
        _fail(_unknown_flag(error.flagname), USAGE)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(_explain(error, config), USAGE)
    words: list[str] = []
    if verbs:
        if len(rest) < 2 or rest[1] not in verbs:
            _fail(f"say what to do: {' or '.join(verbs)}; see --help", USAGE)
        words = rest[1 : 2 + verbs[rest[1]]]
        del rest[1 : 1 + len(words)]
    if len(rest) > 1:
        _fail(f"{rest[1]!r} is not expected; settings are given as --flag=value", USAGE)
    # Our own lines are for the user; other libraries speak only of trouble.
    absl_logging.set_verbosity(absl_logging.WARNING)
    ours = logging.getLogger("imagen_booth")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.addHandler(_ProgressSafeHandler())
    try:
        main(*words)
    except BoothError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(str(error), StorageError.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", supervisor.AGAIN)
    except Exception as error:
        if _is_lost(error):
            supervisor.exit_lost()
        raise
    supervisor.record_exit(0)
    sys.exit(0)


def define_hosts() -> None:
    """Flags of commands that several hosts can run together."""
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0; found on TPU VM, GKE and Slurm"
    )
    flags.DEFINE_integer("processes", 0, "how many processes; goes with --coordinator")
    flags.DEFINE_integer("process_id", -1, "which of them this is, from 0")


def start_hosts() -> None:
    """Joins the processes that the flags or the surroundings tell of.

    Raises:
        InputError: as ``hosts.start``.
    """
    from imagen_booth.distributed import processes  # slow; --help does without

    given = flags.FLAGS
    where = given.coordinator, given.processes, given.process_id
    if processes.may_be_several(*where):
        supervisor.supervise()
    processes.start(*where)


def _is_lost(error: Exception) -> bool:
    """Whether an error says that another host is gone."""
    hosts = sys.modules.get("imagen_booth.distributed.processes")
    return hosts is not None and hosts.lost(error)


def default_workdir(config: str) -> str:
    """``runs/dog`` for --config=configs/dog.py, ``runs/dog_tiny`` for ..dog.py:tiny."""
    path, _, arg = config.partition(":")
    name = pathlib.PurePath(path).stem
    return "runs/" + "_".join([name, *arg.split(":")] if arg else [name])


def _config_argument(argv: list[str]) -> str | None:
    """The value of --config in the arguments of a command that has this flag."""
    if "config" not in flags.FLAGS:
        return None
    found = None
    for number, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            found = value if equals else "".join(argv[number + 1 : number + 2])
    return found


def _missing_file(path: str) -> str:
    if not path:
        return "--config needs a value, such as --config=configs/dog.py"
    folders = (pathlib.Path(path).parent, pathlib.Path("configs"))
    known = [str(file) for folder in folders for file in folder.glob("*.py")]
    near = _nearest(path, known)
    hint = f"; did you mean --config={near}?" if near else ""
    return f"--config={path} does not exist{hint}"


def _unknown_flag(name: str) -> str:
    if name.startswith("config.") and "config" in flags.FLAGS:
        return f"--{name} needs a --config=FILE.py that it can change"
    near = _nearest(name, flags.FLAGS)
    return f"--{name} is not a flag; " + (
        f"did you mean --{near}?" if near else "--help lists them"
    )


def _explain(error: BaseException, config: str | None) -> str:
    """One sentence for what went wrong while flags were read."""
    told, cause = None, error.__context__
    while cause is not None:
        told = cause if isinstance(cause, BoothError) else told
        cause = cause.__context__
    if told is not None:  # from inside the config file, less what was wrapped around
        return str(told)
    if config is not None and isinstance(error, AttributeError | KeyError):
        known = _settings("config", flags.FLAGS["config"].parser.parse(config))
        for argument in sys.argv[1:]:
            name = argument.partition("=")[0].lstrip("-")
            if name.startswith("config.") and name not in known:
                near = _nearest(name, known)
                hint = f"; did you mean --{near}?" if near else ""
                return f"--{name} is not a setting{hint}"
    return str(error)


def _settings(name: str, config: Any) -> list[str]:
    """``config.base``, ``config.base.steps``, ... of a ConfigDict."""
    if not hasattr(config, "items"):
        return [name]
    inner = [_settings(f"{name}.{key}", value) for key, value in config.items()]
    return [name, *(each for some in inner for each in some)]


def _nearest(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), 1)
    return near[0] if near else None


class _ProgressSafeHandler(logging.Handler):
    """Prints lines to standard error without tearing progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        import tqdm  # slow; --help does without

        mark = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.tqdm.write(mark + record.getMessage(), file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    print(f"{message.strip()}", file=sys.stderr)
    supervisor.record_exit(code)
    sys.exit(code)
