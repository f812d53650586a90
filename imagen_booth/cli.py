"""What all commands share: flags, exit codes, one-line errors instead of tracebacks."""

import difflib
import gc
import logging
import os
import pathlib
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from imagen_booth.config import packaged
from imagen_booth.distributed import cpu_flags, supervisor
from imagen_booth.errors import BoothError, StorageError

USAGE = 2
BROKEN_PIPE = 141  # exit code of a program that SIGPIPE ended, as a shell reports it
_TRUE = ("y", "yes", "t", "true", "on", "1")  # of an environment variable, for jax

flags.disclaim_key_flags()  # flags defined below belong to the command that calls


def run(
    main: Callable[..., None], doc: str | None, verbs: Mapping[str, int] | None = None
) -> NoReturn:
    """Parses the flags, runs ``main`` and exits with the code of what happened.

    Exit codes: 0 done; 2 bad input, configuration or usage; 3 does not fit in memory;
    4 not finite; 5 storage; 75 saved and stopped, run the same command again. A command
    whose reader has closed the pipe (``| head``) ends silently with 141.

    Args:
        main: The command. It reads ``flags.FLAGS`` and takes the words, if any.
        doc: The text that ``--help`` prints first.
        verbs: The words of which one has to follow the command's name, each with the
            number of further words that may follow it.
    """
    _open_closed_streams()
    # Imports and traces allocate millions of objects that stay. Python's own threshold
    # of 700 has it look for garbage among them a thousand times, for a second in all.
    gc.set_threshold(20_000)
    try:
        words = _parse(doc, verbs)
        _start_logging()
        main(*words)
        sys.stdout.flush()
    except BoothError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _silence_broken_streams():
            _end(BROKEN_PIPE)
        if error.errno is None:
            raise
        _fail(str(error), StorageError.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to resume", supervisor.AGAIN)
    except Exception as error:
        if message := _jax_refusal(error) or _device_failure(error):
            _fail(message, USAGE)
        if _is_lost_host(error):
            supervisor.exit_lost()
        raise
    _end(0)


def _parse(doc: str | None, verbs: Mapping[str, int] | None) -> list[str]:
    """Reads the flags; returns the words of the command line, see ``run``."""
    sys.modules["__main__"].__doc__ = doc
    cpu_flags.prefer_speed(os.environ)
    app.define_help_flags()
    sys.argv[1:] = packaged.resolve_config(sys.argv[1:])
    config = _config_argument(sys.argv)
    if config is not None and not pathlib.Path(config.partition(":")[0]).is_file():
        _fail(_missing_file(config.partition(":")[0]), USAGE)
    try:
        rest = flags.FLAGS(sys.argv)
    except SystemExit:
        sys.stdout.flush()
        sys.exit(0)  # absl ends --help with 1
    except flags.UnrecognizedFlagError as error:
        _fail(_unknown_flag(error.flagname), USAGE)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(_explain(error, config), USAGE)
    words: list[str] = []
    if verbs:
        if len(rest) < 2 or rest[1] not in verbs:
            _fail(f"give one of these words: {', '.join(verbs)}; see --help", USAGE)
        words = rest[1 : 2 + verbs[rest[1]]]
        del rest[1 : 1 + len(words)]
    if len(rest) > 1:
        _fail(f"{rest[1]!r} is not expected; settings are given as --flag=value", USAGE)
    wide = os.environ.get("JAX_ENABLE_X64", "")
    if wide.lower() in _TRUE:
        _fail(
            f"JAX_ENABLE_X64={wide} is not supported: imagen_booth computes in 32 bits "
            "or fewer; unset JAX_ENABLE_X64",
            USAGE,
        )
    return words


def _start_logging() -> None:
    """Shows the package's own log lines, and of other libraries warnings alone."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_not_raised_too)
    ours = logging.getLogger("imagen_booth")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.addHandler(_ProgressSafeHandler())


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """False for tracebacks that orbax logs from its threads: it raises them too."""
    return not (record.exc_info and "orbax" in pathlib.PurePath(record.pathname).parts)


def _open_closed_streams() -> None:
    """Opens /dev/null where a standard stream was closed (``2>&-``).

    Python sets such a stream to None, and the next file that is opened would get its
    descriptor: messages of C++ libraries would end up in that file.
    """
    for number, name, mode in (
        (0, "stdin", "r"),
        (1, "stdout", "w"),
        (2, "stderr", "w"),
    ):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free descriptor, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _silence_broken_streams() -> bool:
    """Points standard streams that nobody reads any more at /dev/null.

    Returns:
        Whether there was one. If not, a broken pipe is that of a file or a connection.
    """
    broken = False
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)  # what is still buffered goes there
            os.close(null)
            broken = True
    return broken


class _PathParser(flags.ArgumentParser[str]):
    """Reads ``PATH`` or ``NAME=PATH``."""

    def __init__(self, name: str):
        self._name = f"--{name}"

    def parse(self, argument: str) -> str:
        from imagen_booth.storage import user_path  # slow; --help does without

        name, equals, path = argument.partition("=")
        if equals and path.startswith("~"):
            return f"{name}={user_path(self._name, path)}"
        return user_path(self._name, argument)

    def flag_type(self) -> str:
        return "path"


def define_path(name: str, default: str | None, help: str) -> flags.FlagHolder[Any]:
    """Defines a flag that takes a path, see ``storage.user_path``."""
    serializer = flags.ArgumentSerializer[str]()
    return flags.DEFINE(_PathParser(name), name, default, help, serializer=serializer)


def define_paths(name: str, help: str) -> flags.FlagHolder[list[str]]:
    """Defines a flag that can be repeated and takes ``PATH`` or ``NAME=PATH``."""
    serializer = flags.ArgumentSerializer[str]()
    return flags.DEFINE_multi(_PathParser(name), serializer, name, [], help)


def define_hosts() -> None:
    """Defines the flags of commands that several hosts can run together."""
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0; found automatically on a TPU VM, GKE and Slurm",
    )
    flags.DEFINE_integer(
        "processes",
        0,
        "number of processes, with --coordinator; --processes=1 alone makes this "
        "process work by itself, even in a cluster",
    )
    flags.DEFINE_integer(
        "process_id", -1, "number of this process, from 0, with --coordinator"
    )


def start_hosts() -> None:
    """Joins the processes that the flags or the environment name.

    Raises:
        InputError: As ``processes.start`` raises it.
    """
    from imagen_booth.distributed import processes  # slow; --help does without

    given = flags.FLAGS
    where = given.coordinator, given.processes, given.process_id
    if processes.may_be_several(*where):
        supervisor.supervise()
    processes.start(*where)


def _is_lost_host(error: Exception) -> bool:
    """Whether an error means that another host is lost."""
    processes = sys.modules.get("imagen_booth.distributed.processes")
    return processes is not None and processes.is_lost_host(error)


def _jax_refusal(error: BaseException) -> str | None:
    """One sentence if jax could not be imported for a variable of the environment."""
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = pathlib.PurePath(frames[-1].filename if frames else "").parts[-3:]
    if "jax" in sys.modules or raised_in != ("jax", "_src", "config.py"):
        return None
    return f"jax refuses its environment: {error}; correct or unset that variable"


def _device_failure(error: Exception) -> str | None:
    """One sentence if jax finds no device to work on.

    It reports that in several ways, one of them an assertion without a message, so the
    devices are requested once more.
    """
    if not isinstance(error, AssertionError | RuntimeError):
        return None
    import jax

    if jax.distributed.is_initialized():
        return None
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as cause:
        reason = _first_line(cause).partition(" (set JAX_PLATFORMS=")[0].rstrip(".")
        platforms = jax.config.values["jax_platforms"]
        if platforms:
            return (
                f"JAX_PLATFORMS={platforms} names a platform that jax cannot use here: "
                f"{reason or 'no such device'}; unset JAX_PLATFORMS, or set it to cpu"
            )
        return f"jax cannot use a device here: {reason}; set JAX_PLATFORMS=cpu"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


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
        return f"--{name} changes a setting of --config=FILE.py, which is missing"
    near = _nearest(name, flags.FLAGS)
    return f"--{name} is not a flag; " + (
        f"did you mean --{near}?" if near else "--help lists them"
    )


def _explain(error: BaseException, config: str | None) -> str:
    """One sentence for what went wrong while the flags were read."""
    reason, cause = None, error.__context__
    while cause is not None:
        # Raised inside the config file; what is wrapped around it adds nothing.
        if isinstance(cause, BoothError):
            reason = str(cause)
        else:
            reason = reason or _jax_refusal(cause)
        cause = cause.__context__
    if reason is not None:
        return reason
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
    try:
        print(message.strip(), file=sys.stderr)
    except BrokenPipeError:  # nobody reads it
        _silence_broken_streams()
    _end(code)


def _end(code: int) -> NoReturn:
    supervisor.record_exit(code)
    sys.exit(code)
