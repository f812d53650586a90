"""Config files of an installed package: found outside of a checkout only."""

import pathlib
from importlib import metadata

import pytest

from imagen_booth.config import packaged


class InstalledFile(pathlib.PurePosixPath):
    """An entry of a package's list of files, at a root of its own."""

    root_folder = pathlib.Path()

    def locate(self):
        return self.root_folder / self


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder of installed config files with one file, and another folder to be in."""
    place = tmp_path / "share" / "imagen_booth" / "configs"
    place.mkdir(parents=True)
    (place / "dog.py").write_text("installed")
    monkeypatch.setattr(InstalledFile, "root_folder", tmp_path)
    files = [
        InstalledFile(f"share/imagen_booth/configs/{name}.py")
        for name in ("dog", "gone")
    ]
    monkeypatch.setattr(metadata, "files", lambda name: files)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return place


def test_installed_file_is_found(installed):
    path = str(installed / "dog.py")
    for given, wanted in (
        (["--config=configs/dog.py"], [f"--config={path}"]),
        (["--config=configs/dog.py:tiny:fast"], [f"--config={path}:tiny:fast"]),
        (["--config", "configs/dog.py:tiny"], ["--config", f"{path}:tiny"]),
        (["--config.base.steps=3"], ["--config.base.steps=3"]),
        (["--config"], ["--config"]),
    ):
        assert packaged.resolve_config(given) == wanted


def test_other_paths_stay(installed):
    for path in ("dog.py", "configs/cat.py", "configs/gone.py", "my/configs/dog.py"):
        assert packaged.resolve_config([f"--config={path}"]) == [f"--config={path}"]


def test_a_checkout_comes_first(installed):
    pathlib.Path("configs").mkdir()
    pathlib.Path("configs/dog.py").write_text("own")
    arguments = ["--config=configs/dog.py:tiny"]
    assert packaged.resolve_config(arguments) == arguments


def test_without_a_list_of_files(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "files", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert packaged.resolve_config(["--config=configs/dog.py"]) == [
        "--config=configs/dog.py"
    ]
