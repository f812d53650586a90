"""Wrong use, a wrong environment and closed streams end without a traceback."""

import errno
import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT

from imagen_booth import cli


def command(name, *arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", f"imagen_booth.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environ,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", "--confg=configs/dog.py", "did you mean --config?"),
        ("train", "--config=configs/dgo.py", "did you mean --config=configs/dog.py?"),
        ("train", "--config=", "--config needs a value"),
        ("train", "", "--config is missing"),
        ("train", "--config.seed=3", "--config=FILE.py, which is missing"),
        ("train", "configs/dog.py", "'configs/dog.py' is not expected"),
        (
            "train",
            "--config=configs/dog.py --config.subject.clas_noun=x",
            "did you mean --config.subject.class_noun?",
        ),
        ("train", "--config=configs/dog.py:toybx", "cascade 'toybx' is not known"),
        ("sample", "", "--run is missing"),
        ("sample", "--run=runs/dog --promt=x", "did you mean --prompt?"),
        ("convert", "--run=runs/dog", "give one of these words: export"),
    ],
)
def test_misuse_is_one_sentence(name, arguments, message):
    answer = command(name, *arguments.split())
    assert answer.returncode == 2
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stdout == ""


def test_help_exits_with_0():
    answer = command("train", "--help")
    assert answer.returncode == 0
    assert "--config" in answer.stdout


def test_workdir_is_named_after_the_config():
    assert cli.default_workdir("configs/dog.py") == "runs/dog"
    assert cli.default_workdir("configs/dog.py:if_m:paper") == "runs/dog_if_m_paper"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"JAX_PLATFORMS": "gpuu"}, "JAX_PLATFORMS=gpuu names a platform that"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda names a platform that"),
        ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64=1 is not supported"),
        ({"JAX_ENABLE_X64": "maybe"}, "'maybe'"),
        ({"JAX_NUM_CPU_DEVICES": "four"}, "jax_num_cpu_devices"),
    ],
)
def test_wrong_environment_is_one_sentence(environ, message, tmp_path):
    if environ.get("JAX_PLATFORMS") == "cuda" and find_spec("jax_plugins"):
        pytest.skip("jax has support for GPUs here")
    answer = command(
        "doctor", "--config=configs/dog.py:tiny", f"--workdir={tmp_path}", **environ
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    (sentence,) = answer.stderr.splitlines()
    assert message in sentence
    assert "unset" in sentence


def test_jax_refuses_its_environment_in_a_command_without_config():
    answer = command(
        "sample", "--run=runs/none", "--prompt=x", JAX_NUM_CPU_DEVICES="four"
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("jax refuses its environment")
    assert len(answer.stderr.splitlines()) == 1


# A command that shows progress, prints a line, and opens a file.
PROGRAM = """
import logging, tqdm
from imagen_booth import cli

def main():
    list(tqdm.tqdm(range(3)))
    logging.getLogger("imagen_booth").info("a log line")
    print("ready")
    assert open("README.md").fileno() > 2

cli.run(main, "A command.")
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed):
    """They are opened again, so no file gets the descriptor of a stream."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("ready" in done.stdout) == (closed == "2>&-")
    assert ("a log line" in done.stderr) == (closed == ">&-")


@pytest.mark.parametrize(
    ("stream", "flag", "code"),
    [
        ("stdout", (), cli.BROKEN_PIPE),
        ("stdout", ("--help",), cli.BROKEN_PIPE),
        ("stderr", (), cli.BROKEN_PIPE),
        ("stderr", ("--no_such_flag",), 2),
    ],
)
def test_pipe_without_a_reader_ends_silently(stream, flag, code):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *flag],
        cwd=ROOT,
        stdout=write if stream == "stdout" else subprocess.PIPE,
        stderr=write if stream == "stderr" else subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == code
    assert "Error" not in f"{done.stdout} {done.stderr}"


@pytest.mark.parametrize(
    ("path", "error", "shown"),
    [
        ("/x/orbax/checkpoint/threads.py", ValueError("full"), False),
        ("/x/orbax/checkpoint/threads.py", None, True),
        ("/x/grain/threads.py", ValueError("full"), True),
    ],
)
def test_orbax_logs_no_traceback_of_an_error_that_it_raises(path, error, shown):
    about = error and (type(error), error, None)
    record = logging.LogRecord("absl", logging.ERROR, path, 1, "failed", (), about)
    assert cli._is_not_raised_too(record) == shown


def test_broken_connection_of_a_file_is_a_storage_error(monkeypatch, capsys):
    def main():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "gs://bucket/x")

    monkeypatch.setattr(cli, "_parse", lambda doc, verbs: [])
    monkeypatch.setattr(cli, "_start_logging", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.run(main, None)
    assert ended.value.code == 5
    assert "gs://bucket/x" in capsys.readouterr().err
