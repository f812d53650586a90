"""Files of adapters: what is written is read, and what does not fit is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from imagen_booth.cascade import by_name
from imagen_booth.config.schema import LORA, Adapter, OptimConfig, TextualInversion
from imagen_booth.errors import InputError
from imagen_booth.models import lora
from imagen_booth.train_state import flatten
from imagen_booth.training import adapters
from imagen_booth.weights import export, load, lora_files, native, tensor_files

TINY = by_name("tiny")
RANK = 3


def random(abstract: dict) -> dict:
    """Numbers in the shapes of a tree, none of them zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), abstract)


def random_adapter(stage: str, kernels: str, rank: int = RANK) -> dict:
    shapes = load.shapes(TINY, stage)
    return random(lora.shapes(shapes, kernels, rank))


def write(folder, stage="base", kernels="attention", rank=RANK, scale=1.0):
    adapter = flatten(random_adapter(stage, kernels, rank))
    held = {path: tensor_files.held(leaf) for path, leaf in adapter.items()}
    lora_files.save(epath.Path(folder) / stage / lora_files.FILE, held, scale)
    return adapter


@pytest.mark.parametrize("stage", ["base", "sr256"])
@pytest.mark.parametrize("kernels", lora.KERNELS)
def test_what_is_written_is_read(tmp_path, stage, kernels):
    """Convolutions too; the scale comes back inside B."""
    adapter = write(tmp_path, stage, kernels, scale=0.5)
    assert any(leaf.ndim == 4 for leaf in adapter.values()) == (kernels == "all")
    path = lora_files.find(epath.Path(tmp_path), stage, "--adapter")
    found = flatten(lora_files.read(path, load.shapes(TINY, stage), "--adapter"))
    assert found.keys() == adapter.keys()
    for name, leaf in adapter.items():
        scaled = leaf * 0.5 if name.endswith(lora.B) else leaf
        np.testing.assert_array_equal(found[name], scaled, err_msg=name)


def test_a_stated_alpha_is_read(tmp_path):
    """diffusers writes rank and alpha beside the tensors, and B without them."""
    adapter = write(tmp_path)
    path = tmp_path / "base" / lora_files.FILE
    stated = {"unet.r": RANK, "unet.lora_alpha": 2 * RANK}
    save_file(load_file(path), path, {lora_files.METADATA: json.dumps(stated)})
    found = flatten(
        lora_files.read(epath.Path(path), load.shapes(TINY, "base"), "--adapter")
    )
    for name, leaf in adapter.items():
        scaled = leaf * 2 if name.endswith(lora.B) else leaf
        np.testing.assert_array_equal(found[name], scaled, err_msg=name)
    save_file(
        load_file(path),
        path,
        {lora_files.METADATA: json.dumps({"unet.rank_pattern": {"to_q": 2}})},
    )
    with pytest.raises(InputError, match="a rank or an alpha for single modules"):
        lora_files.read(epath.Path(path), load.shapes(TINY, "base"), "--adapter")


def test_merged_weights_are_the_sum(tmp_path):
    """Of float64 numbers, in a folder of weights of ours."""
    weights = random(load.shapes(TINY, "base"))
    held = {path: tensor_files.held(leaf) for path, leaf in flatten(weights).items()}
    folder, adapter = epath.Path(tmp_path / "own"), write(tmp_path, kernels="all")
    native.write(folder, "base", held, None, {"licence": "none"})
    native.record(folder, cascade="tiny")
    [part] = export.merge_folder(epath.Path(tmp_path), folder, ())
    export.write_native(epath.Path(tmp_path / "sum"), [part], None)
    found = load_file(tmp_path / "sum" / "base.safetensors")
    for path, leaf in flatten(weights).items():
        expected, module = leaf.astype(np.float64), path.removesuffix("kernel")
        if module + lora.A in adapter:
            a, b = (adapter[module + each] for each in (lora.A, lora.B))
            expected = expected + np.einsum("...ir,ro->...io", a, b, dtype="f8")
        np.testing.assert_allclose(found[path], expected, atol=1e-5, err_msg=path)


@pytest.fixture
def folders(tmp_path):
    """An adapter of the base stage, and the whole weights of all stages."""
    write(tmp_path / "low")
    whole = epath.Path(tmp_path / "whole")
    for stage in ("base", "sr256"):
        flat = flatten(random(load.shapes(TINY, stage)))
        held = {path: tensor_files.held(leaf) for path, leaf in flat.items()}
        native.write(whole, stage, held, None, {"licence": "none"})
    native.record(whole, cascade="tiny")
    return tmp_path


def test_adapters_that_do_not_fit_are_refused(folders):
    low, whole = folders / "low", folders / "whole"
    base, sr = (load.shapes(TINY, stage) for stage in ("base", "sr256"))

    def start(place, stage="base", shapes=base, **changed):
        config = {"kind": LORA, "rank": RANK, "start": str(place)} | changed
        adapters.started(stage, Adapter(**config), shapes)

    start(low)
    with pytest.raises(InputError, match=r"base.adapter.start=.* has rank 3.*rank=4"):
        start(low, rank=4)
    with pytest.raises(InputError, match="adapts 6 kernels.*kernels='all' names"):
        start(low, kernels="all")
    with pytest.raises(InputError, match="an adapter of base and none of sr256"):
        start(low, "sr256", sr)
    with pytest.raises(InputError, match="belongs to another network: .*expected"):
        start(low / "base", "sr256", sr)
    with pytest.raises(InputError, match="whole network, not an adapter"):
        start(whole)
    with pytest.raises(InputError, match="is not an adapter in peft's layout"):
        start(whole / "base.safetensors")
    with pytest.raises(InputError, match=r"nothing holds no adapter: neither"):
        start(folders / "nothing")
    with pytest.raises(InputError, match="holds an adapter, not whole weights"):
        load.find(TINY, "base", str(low))
    with pytest.raises(InputError, match="--adapter=.*holds no adapter of a part"):
        export.merge_folder(epath.Path(whole), epath.Path(whole), ())


def test_half_an_adapter_is_refused(folders):
    path = folders / "low" / "base" / lora_files.FILE
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    for replaced, words in ((None, "is missing"), (np.zeros((5, RANK), "f4"), "are")):
        changed = {**tensors, name: replaced}
        save_file({k: v for k, v in changed.items() if v is not None}, path)
        with pytest.raises(InputError, match=f"another network: unet.*{words}"):
            lora_files.read(epath.Path(path), load.shapes(TINY, "base"), "--adapter")


def test_ranks_that_do_not_fit_are_refused():
    shapes = load.shapes(TINY, "base")
    config = Adapter(LORA, rank=16)
    adapters.check_rank("base", config, shapes)
    with pytest.raises(InputError, match="base.adapter.rank=17 is above 16, .*kernel"):
        adapters.check_rank("base", dataclasses.replace(config, rank=17), shapes)
    convolutions = {"conv_in": shapes["conv_in"]}
    with pytest.raises(InputError, match="base.adapter.kernels='attention', but"):
        adapters.check_rank("base", config, convolutions)
    config = Adapter(LORA, rank=17, kernels="all")
    with pytest.raises(InputError, match="no such kernel of rank 17 or more"):
        adapters.check_rank("base", config, convolutions)
    with pytest.raises(InputError, match="adapter.kind='dora'.*'none' or 'lora'"):
        Adapter("dora")
    with pytest.raises(InputError, match="adapter.kernels='some'.*'attention' or"):
        Adapter(kernels="some")
    with pytest.raises(InputError, match=r"config.text.adapter.kind='lora'"):
        TextualInversion(1, 1, 0, OptimConfig(), adapter=Adapter(LORA))
