"""Reading a run: what is wrong with its files is named."""

import json

import pytest
from etils import epath

from imagen_booth.config import presets
from imagen_booth.errors import InputError
from imagen_booth.sampling import finished_run


def test_settings_of_another_version_are_named_with_their_file(tmp_path):
    settings = presets.dreambooth("tiny").to_dict()
    settings["frozen_model"]["guidance"] = 1.0  # was a setting until November 2026
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "manifest.json").write_text("{}")
    said = (
        f"{tmp_path}/config.json: config.frozen_model.guidance is not a setting. "
        "Another version of imagen_booth wrote it"
    )
    with pytest.raises(InputError, match=said):
        finished_run.read_run(epath.Path(tmp_path))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not the run directory of a run"):
        finished_run.read_run(epath.Path(tmp_path))
