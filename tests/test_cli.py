"""Commands used wrongly: one sentence, the nearest right name, exit code 2."""

import subprocess
import sys

import pytest
from paths import ROOT

from imagen_booth import cli


def command(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"imagen_booth.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train", "--confg=configs/dog.py", "did you mean --config?"),
        ("train", "--config=configs/dgo.py", "did you mean --config=configs/dog.py?"),
        ("train", "--config=", "--config needs a value"),
        ("train", "", "--config is missing"),
        ("train", "--config.seed=3", "needs a --config=FILE.py"),
        ("train", "configs/dog.py", "'configs/dog.py' is not expected"),
        (
            "train",
            "--config=configs/dog.py --config.subject.clas_noun=x",
            "did you mean --config.subject.class_noun?",
        ),
        ("train", "--config=configs/dog.py:toybx", "cascade 'toybx' is not known"),
        ("sample", "", "--run is missing"),
        ("sample", "--run=runs/dog --promt=x", "did you mean --prompt?"),
        ("convert", "--run=runs/dog", "say what to do: export"),
    ],
)
def test_misuse_is_one_sentence(name, arguments, said):
    answer = command(name, *arguments.split())
    assert answer.returncode == 2
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stdout == ""


def test_help_is_no_failure():
    answer = command("train", "--help")
    assert answer.returncode == 0
    assert "--config" in answer.stdout


def test_workdir_is_named_after_the_config():
    assert cli.default_workdir("configs/dog.py") == "runs/dog"
    assert cli.default_workdir("configs/dog.py:if_m:paper") == "runs/dog_if_m_paper"
