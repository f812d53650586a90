"""Tensor files: dtypes, slices, files in object stores."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from imagen_booth.errors import InputError
from imagen_booth.weights import tensor_files
from imagen_booth.weights.tensor_files import WeightFiles


def arrays() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(6, 5))
    return {
        "f64": values,
        "f32": values.astype(np.float32),
        "f16": values.astype(np.float16),
        "bf16": values.astype(jnp.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "integers": np.arange(4),
        "boolean": np.array([True, False]),
    }


def read_remotely(path) -> dict[str, tensor_files.Tensor]:
    """Reads a local file by the code for object stores."""
    return tensor_files._open_remote(epath.Path(path))


@pytest.mark.parametrize("read", [tensor_files.open_file, read_remotely])
def test_tensors_and_slices_are_read_as_stored(tmp_path, read):
    save_file(arrays(), tmp_path / "w.safetensors")
    found = read(tmp_path / "w.safetensors")
    assert found.keys() == arrays().keys()
    for name, value in arrays().items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        assert found[name].whole().dtype == value.dtype
        np.testing.assert_array_equal(found[name].whole(), value)
    part = (slice(1, 3), slice(None))
    for name in ("f32", "bf16"):
        value = arrays()[name]
        np.testing.assert_array_equal(found[name].read(part), value[part])
        turned = found[name].transposed((1, 0)).read(part)
        np.testing.assert_array_equal(turned, value.T[part])


def test_written_files_are_read_by_the_package(tmp_path):
    path = epath.Path(tmp_path / "to/w.safetensors")
    made = {name: tensor_files.held(value) for name, value in arrays().items()}
    tensor_files.save(path, made)
    again = load_file(path)
    assert again.keys() == made.keys()
    for name, value in arrays().items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)


def relabelled(path, code: str) -> None:
    """Writes a file of one tensor whose header has this dtype."""
    entry = {"dtype": code, "shape": [2, 4], "data_offsets": [0, 8]}
    text = json.dumps({"kernel": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))


@pytest.mark.parametrize("read", [tensor_files.open_file, read_remotely])
@pytest.mark.parametrize("code", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"])
def test_other_dtypes_are_not_weights(tmp_path, code, read):
    path = tmp_path / "w.safetensors"
    relabelled(path, code)
    with pytest.raises(InputError) as error:
        WeightFiles(read(path), lambda path, ndim: (path, ()), None, str(path), "")
    message = str(error.value)
    assert str(path) in message
    assert "kernel" in message
    assert "not supported" in message
    assert "use the float32, bfloat16 or float16 files" in message


@pytest.mark.parametrize("size", [0, 4, 40, 300, -10])
def test_damage_in_an_object_store(tmp_path, size):
    path = tmp_path / "w.safetensors"
    save_file(arrays(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(tensor_files.DAMAGED):
        read_remotely(path)
