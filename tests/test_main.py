"""The command imagen-booth: it runs, lists and guesses commands."""

import os
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT
from test_imports import COMMANDS

from imagen_booth import __main__ as entry


def test_all_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["imagen-booth", "--help"])
    entry.main()
    page = capsys.readouterr().out
    assert entry.commands().keys() >= COMMANDS
    for name, text in entry.commands().items():
        assert f"    {name} " in page
        assert text.endswith(".")
        assert text in page


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", "did you mean train?"), ("xyzzy", "use one of convert, doctor")],
)
def test_unknown_command_ends_with_2(name, hint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["imagen-booth", name])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_command_runs_as_a_program():
    """The same output and exit code as python -m imagen_booth.train."""
    for flag, code in (("--help", 0), ("--confg=x", 2)):
        one, other = (
            subprocess.run(
                [sys.executable, "-m", *words, flag],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            for words in (("imagen_booth", "train"), ("imagen_booth.train",))
        )
        assert one.returncode == other.returncode == code
        assert (one.stdout, one.stderr) == (other.stdout, other.stderr)


def test_the_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"imagen-booth": "imagen_booth.__main__:main"}
