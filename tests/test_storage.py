"""Paths that users give, and files that a power cut left damaged."""

import numpy as np
import pytest
from etils import epath

from imagen_booth import storage
from imagen_booth.errors import InputError, StorageError


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("~", "/home/me"),
        ("~/runs/x", "/home/me/runs/x"),
        ("runs/~x", "runs/~x"),
        ("gs://bucket/~/x", "gs://bucket/~/x"),
        ("toybox:dog/7", "toybox:dog/7"),
        ("", ""),
    ],
)
def test_a_path_of_a_user(path, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.user_path("--run", path) == meant


@pytest.mark.parametrize(
    "path", ["gs:/bucket/x", "gs:///bucket", "https://host/x", "~nobody_there/x"]
)
def test_a_path_that_leads_nowhere(path):
    with pytest.raises(InputError, match=f"--run={path}"):
        storage.user_path("--run", path)


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"", "empty"),
        (b"\0" * 64, "empty"),
        (b'{"a": 1', "damaged"),
        (b"\xff\xfe{}", "damaged"),
        (b"[1, 2]", "damaged"),
    ],
)
def test_a_damaged_json_file_is_named_with_what_to_do(tmp_path, data, state):
    file = epath.Path(tmp_path) / "manifest.json"
    assert storage.read_json(file, "restore it") == {}
    file.write_bytes(data)
    with pytest.raises(StorageError, match=f"manifest.json is {state}; restore it"):
        storage.read_json(file, "restore it")
    assert storage.read_json(file, None) == {}
    file.write_bytes(b'{"a": 1}')
    assert storage.read_json(file, "restore it") == {"a": 1}


@pytest.mark.parametrize("left", [0, 5, 20, 100, 130])
def test_a_damaged_array_of_a_cache_counts_as_absent(tmp_path, left):
    file = epath.Path(tmp_path) / "a.npy"
    assert storage.from_cache(file, storage.read_array) is None
    storage.write_array(file, np.arange(3.0))
    np.testing.assert_array_equal(
        storage.from_cache(file, storage.read_array), np.arange(3.0)
    )
    file.write_bytes(file.read_bytes()[:left])
    assert storage.from_cache(file, storage.read_array) is None


def test_a_full_disk_is_named(tmp_path):
    assert str(tmp_path).startswith(storage.free_space(tmp_path / "x/y").split()[3])
    assert storage.free_space("gs://bucket/x") == ""
