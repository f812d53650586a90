"""The commands that README shows: every flag and setting in them exists."""

import importlib
import shlex
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from paths import ROOT

from imagen_booth.config.build import to_job

COMMANDS = [
    line[line.index("python -m imagen_booth.") :]
    for line in (ROOT / "README.md").read_text().splitlines()
    if line.startswith("    ") and "python -m imagen_booth." in line
]


def test_there_are_some():
    assert len(COMMANDS) > 5


# ml_collections loads config files in a way that importlib deprecates.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line, monkeypatch):
    _, _, name, *args = shlex.split(line, comments=True)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *args])
    with flagsaver.flagsaver():
        command = importlib.import_module(name)
        try:
            verb, *words = flags.FLAGS(sys.argv)[1:] or [None]
            verbs = getattr(command, "VERBS", {None: 0})
            assert len(words) <= verbs[verb]
            if name == "imagen_booth.train":
                to_job(flags.FLAGS.config)
        finally:
            del sys.modules[name]
