"""Files that PyTorch pickled, rewritten; what is no tensor in them is refused."""

import json
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.weights import tensor_files, unpickle


def test_without_torch_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'imagen_booth\[parity\]'"):
        unpickle.rewrite(epath.Path(tmp_path))


@pytest.mark.parity
def test_shards_are_rewritten_with_their_index(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    told = {
        "one": torch.randn(3, 5).T,  # not contiguous
        "two": torch.randn(7).to(torch.bfloat16),
        "three": torch.randn(2, 2).half(),
    }
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    placed = {name: names[name == "three"] for name in told}
    for file in names:
        mine = {name: told[name] for name in told if placed[name] == file}
        torch.save(mine, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    written = unpickle.rewrite(epath.Path(tmp_path))
    assert [path.name for path in written] == [
        f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    opened = tensor_files.open_stem(epath.Path(tmp_path), "model")
    assert opened is not None
    found = opened[0]
    assert found.keys() == told.keys()
    for name, value in told.items():
        np.testing.assert_array_equal(
            found[name].whole().astype(np.float32), value.float().numpy()
        )
    assert found["two"].dtype == jnp.bfloat16


class Program:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parity
def test_programs_and_damaged_files_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    trace, file = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    with pytest.raises(InputError, match="has no pickled weights"):
        unpickle.rewrite(epath.Path(tmp_path))
    torch.save({"w": Program(trace)}, file)
    with pytest.raises(InputError, match=f"{file} is not a whole torch file of tensor"):
        unpickle.rewrite(epath.Path(tmp_path))
    file.write_bytes(pickle.dumps({"w": Program(trace)}, 2))
    with pytest.raises(InputError, match="not a whole torch file"):
        unpickle.rewrite(epath.Path(tmp_path))
    torch.save({"w": torch.zeros(100)}, file)
    for content in (file.read_bytes()[:-50], b"", b"no pickle"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="not a whole torch file"):
            unpickle.rewrite(epath.Path(tmp_path))
    torch.save({"w": "text"}, file)
    with pytest.raises(InputError, match="not a whole torch file"):
        unpickle.rewrite(epath.Path(tmp_path))
    assert not trace.exists()
    assert not list(tmp_path.glob("*.safetensors"))
