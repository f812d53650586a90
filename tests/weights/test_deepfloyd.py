"""DeepFloyd IF in and out, on small files made by hand."""

import dataclasses
import json
import pickle
import subprocess
import sys

import deepfloyd_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from imagen_booth.cascade import Stage, by_name
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth as defaults
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.models.t5 import T5Config
from imagen_booth.sampling import cascade_sampler
from imagen_booth.train_state import flatten
from imagen_booth.weights import deepfloyd, export, tensor_files
from imagen_booth.weights.load import load, resolve, weight_origin

NARROW = T5Config(40, files.TEXT, 2, 4, 24, 2)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "if"


def cascade_of(base, sr256="random"):
    """if_m with narrow text, and what the folder says of its base stage."""
    cascade = by_name("if_m").having(NARROW)
    if sr256 == "random":
        cascade = dataclasses.replace(cascade, stages=cascade.stages[:1])
    sources = {"text": "random", "base": str(base), "sr256": str(sr256)}
    return resolve(cascade, sources | {"sr1024": "none"})


def load_base(folder, mesh=None):
    mesh = mesh or sharding.make_mesh()
    return load(cascade_of(folder), "base", str(folder), mesh, jnp.float32)


def test_network_of_stage_1(folder):
    files.write_json(folder / "config.json", files.STAGE_1)
    config, size = deepfloyd.read_network(epath.Path(folder / "config.json"))
    assert size == 16
    assert config.widths == (32, 64)
    assert config.blocks == (2, 2)
    assert config.attention == (False, True)
    assert (config.in_channels, config.out_channels) == (3, 6)
    assert config.time_width == 128
    assert config.head_width == 32
    assert config.text_norm == "group"
    assert config.activation == "gelu"
    assert config.self_attention
    assert not config.level_input


def test_network_of_stage_2(folder):
    only = {"only_cross_attention": True}
    files.write_json(folder / "config.json", files.STAGE_2 | only)
    config, size = deepfloyd.read_network(epath.Path(folder / "config.json"))
    assert size == 32
    assert config.blocks == (1, 2)
    assert config.level_input
    assert config.residual_scale == pytest.approx(1 / 0.7071)
    assert config.time_width == 24
    assert not config.self_attention


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_fn", "mish"),
        ("addition_embed_type", "image"),
        ("attention_head_dim", [8, 16]),
        ("class_embed_type", "projection"),
        ("class_embeddings_concat", True),
        ("conv_in_kernel", 5),
        ("cross_attention_norm", None),
        ("down_block_types", ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]),
        ("dropout", 0.1),
        ("encoder_hid_dim_type", "image_proj"),
        ("flip_sin_to_cos", False),
        ("in_channels", 6),
        ("layers_per_block", [1, 2, 3]),
        ("mid_block_only_cross_attention", True),
        ("mid_block_scale_factor", 1.4),
        ("mid_block_type", "UNetMidBlock2D"),
        ("norm_num_groups", 16),
        ("out_channels", 4),
        ("only_cross_attention", [True, False]),
        ("time_embedding_act_fn", "gelu"),
        ("up_block_types", ["SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D"]),
        ("sample_size", [16, 24]),
        ("somebody_elses_field", "x"),
    ],
)
def test_unsupported_values_are_named(folder, field, value):
    files.write_json(folder / "config.json", files.STAGE_1 | {field: value})
    with pytest.raises(InputError) as error:
        deepfloyd.read_network(epath.Path(folder / "config.json"))
    shown = tuple(value) if isinstance(value, list) else value
    name = "time_embedding_act_fn" if field == "resnet_skip_time_act" else field
    if field == "mid_block_only_cross_attention":
        name, shown = "only_cross_attention", False
    assert f"{name} is" in str(error.value)
    assert repr(value) in str(error.value) or repr(shown) in str(error.value)
    assert str(folder) in str(error.value)


def test_scheduler(folder):
    path = epath.Path(folder / "scheduler_config.json")
    files.write_json(path, files.SCHEDULER)
    stage, sampler = deepfloyd.read_scheduler(path)
    assert stage == {
        "schedule": TableSchedule(1000),
        "prediction": "eps",
        "stale_variance": False,
    }
    assert sampler == {
        "spacing": "leading",
        "threshold": "dynamic",
        "ratio": 0.95,
        "cap": 1.5,
    }
    files.write_json(path, files.SCHEDULER | {"variance_type": "fixed_small"})
    assert deepfloyd.read_scheduler(path)[0]["stale_variance"]
    for field, value in (
        ("beta_schedule", "linear"),
        ("variance_type", "fixed_large"),
        ("prediction_type", "flow"),
        ("rescale_betas_zero_snr", True),
        ("steps_offset", 1),
    ):
        files.write_json(path, files.SCHEDULER | {field: value})
        with pytest.raises(InputError, match=f"{field} is {value!r}"):
            deepfloyd.read_scheduler(path)


UNBOUNDED = {"sample_max_value": deepfloyd.UNBOUNDED}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"thresholding": False}, {"threshold": "none"}),
        ({"thresholding": False, "clip_sample": True}, {"threshold": "static"}),
        (UNBOUNDED, {"threshold": "dynamic", "ratio": 0.95, "cap": None}),
        (
            {"dynamic_thresholding_ratio": 0.9, "timestep_spacing": "trailing"},
            {"threshold": "dynamic", "ratio": 0.9, "cap": 1.5, "spacing": "trailing"},
        ),
    ],
)
def test_how_a_scheduler_draws(folder, fields, told):
    path = epath.Path(folder / "scheduler_config.json")
    files.write_json(path, files.SCHEDULER | fields)
    assert deepfloyd.read_scheduler(path)[1] == {"spacing": "leading"} | told


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"timestep_spacing": "karras"}, "sampler.spacing is 'karras'"),
        (
            {"dynamic_thresholding_ratio": 1.5},
            "sampler.ratio=1.5 should be above 0, at most 1",
        ),
        ({"dynamic_thresholding_ratio": "x"}, "sampler.ratio='x'"),
        ({"sample_max_value": 0.5}, "sampler.cap=0.5 should be 1 or more"),
        (
            {"thresholding": False, "clip_sample": True, "clip_sample_range": 2.0},
            "clip_sample_range is 2.0",
        ),
    ],
)
def test_schedulers_that_sampling_does_not_know(folder, fields, words):
    path = epath.Path(folder / "scheduler_config.json")
    files.write_json(path, files.SCHEDULER | fields)
    with pytest.raises(InputError, match=f"{path}: .*{words}"):
        deepfloyd.read_scheduler(path)


def test_settings_that_differ_from_the_scheduler_are_named(folder):
    """Also where the weights were imported; IF's own files differ in nothing."""
    files.write_stage(folder / "1")
    files.write_stage(folder / "2", files.STAGE_2)
    files.write_stage(
        folder / "like IF", files.STAGE_2, files.SCHEDULER | {"sample_max_value": 1.0}
    )
    files.write_stage(
        folder / "other", scheduler=files.SCHEDULER | {"sample_max_value": 2.0}
    )
    own = epath.Path(folder / "own")
    export.write_native(
        own, export.export_folder(epath.Path(folder / "other"), ()), None
    )

    def said(base, sr256):
        config = defaults("if_m")
        config.weights.base, config.weights.sr256 = str(base), str(sr256)
        return cascade_sampler.scheduler_warnings(
            to_job(config), cascade_of(base, sr256)
        )

    assert said(folder / "1", folder / "like IF") == []
    (told,) = said(folder / "1", folder / "2")
    assert "config.pictures.sr256.cap is 1.0, but the scheduler of " in told
    assert f"config.weights.sr256={folder / '2'} has 1.5; the setting counts" in told
    for base in (folder / "other", own):
        names = [each.split()[0] for each in said(base, folder / "like IF")]
        assert names == ["config.pictures.base.cap", "config.class_images.sampler.cap"]


def test_every_parameter_is_read(folder):
    told = files.write_stage(folder)
    part = load_base(folder)
    params = flatten(part.params)
    assert len(params) == len(told)
    assert sum(leaf.size for leaf in params.values()) == sum(
        value.size for value in told.values()
    )

    def same(path, value):
        np.testing.assert_array_equal(params[path], value)

    same("conv_in/kernel", told["conv_in.weight"].transpose(2, 3, 1, 0))
    same("conv_in/bias", told["conv_in.bias"])
    same(
        "down_blocks_1/attentions_0/to_out/kernel",
        told["down_blocks.1.attentions.0.to_out.0.weight"].T,
    )
    same(
        "up_blocks_0/attentions_2/add_k_proj/kernel",
        told["up_blocks.0.attentions.2.add_k_proj.weight"].T,
    )
    same(
        "down_blocks_0/downsamplers_0/norm1/scale",
        told["down_blocks.0.downsamplers.0.norm1.weight"],
    )
    same("time_embedding/linear_1/kernel", told["time_embedding.linear_1.weight"].T)
    same(
        "add_embedding/pool/positional_embedding",
        told["add_embedding.pool.positional_embedding"],
    )
    assert part.licence == deepfloyd.LICENCE


def test_the_folder_decides_the_stage(folder):
    files.write_stage(folder / "1")
    fixed = files.SCHEDULER | {"variance_type": "fixed_small"}
    files.write_stage(folder / "2", files.STAGE_2, fixed)
    base, top = cascade_of(folder / "1", folder / "2").stages
    assert (base.resolution, top.resolution, top.low_resolution) == (16, 32, 16)
    assert base.model.widths == (32, 64)
    assert base.learned_variance
    assert not base.stale_variance
    assert top.stale_variance
    assert top.aligned
    assert top.level_map == "if_index"


def test_stages_are_not_mixed_up(folder):
    files.write_stage(folder, files.STAGE_2)
    with pytest.raises(InputError, match="super-resolution network .in_channels=6"):
        cascade_of(folder)


def test_text_of_another_width(folder):
    files.write_stage(folder)
    with pytest.raises(InputError, match="text of width 16.*gives 32"):
        resolve(
            dataclasses.replace(
                by_name("if_m").having(dataclasses.replace(NARROW, width=32)),
                stages=by_name("if_m").stages[:1],
            ),
            {"text": "random", "base": str(folder)},
        )


def test_each_device_gets_its_slice(monkeypatch, folder):
    monkeypatch.setattr(sharding, "SMALL", 1)
    told = files.write_stage(folder)
    mesh = sharding.make_mesh(data=1, fsdp=4)
    params = load_base(folder, mesh).params
    kernel = params["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 16, 64)}
    np.testing.assert_array_equal(
        kernel, told["mid_block.resnets.0.conv1.weight"].transpose(2, 3, 1, 0)
    )


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_of_mixed_precision(folder, variant):
    whole = files.write_stage(folder)
    (folder / WEIGHTS).unlink()
    stem = f"diffusion_pytorch_model{variant}"
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    kinds = np.float16, jnp.bfloat16
    placed, halves = {}, {}
    for i, (name, value) in enumerate(whole.items()):
        placed[name] = names[i % 2]
        halves.setdefault(names[i % 2], {})[name] = value.astype(kinds[i % 2])
    for name, half in halves.items():
        save_file(half, folder / "unet" / name)
    files.write_json(
        folder / f"unet/diffusion_pytorch_model.safetensors.index{variant}.json",
        {"metadata": {}, "weight_map": placed},
    )
    params = load_base(folder).params
    kernel = np.asarray(params["conv_in"]["kernel"])
    assert kernel.dtype == np.float32
    expected = halves[placed["conv_in.weight"]]["conv_in.weight"]
    np.testing.assert_array_equal(
        kernel, expected.astype(np.float32).transpose(2, 3, 1, 0)
    )
    (folder / "unet" / names[1]).unlink()
    with pytest.raises(InputError, match=names[1]):
        load_base(folder)


def test_misfits_are_listed_together(folder):
    told = files.write_stage(folder)
    told["conv_im.weight"] = told.pop("conv_in.weight")
    told["conv_out.bias"] = np.zeros(3, np.float32)
    told["encoder_hid_proj.weight"] = np.zeros((16, 16, 1), np.float32)
    del told["mid_block.attentions.0.to_q.bias"]
    files.write_stage(folder, weights=told)
    with pytest.raises(InputError) as error:
        load_base(folder)
    message = str(error.value)
    assert WEIGHTS in message
    assert "conv_in.weight is missing (is conv_im.weight meant?)" in message
    assert "conv_im.weight is not expected (is conv_in.weight meant?)" in message
    assert "mid_block.attentions.0.to_q.bias is missing" in message
    assert "conv_out.bias has shape (3,), expected (6,)" in message
    assert "encoder_hid_proj.weight has shape (16, 16, 1), expected (32, 16)" in message


def damage(name, data):
    head = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:head])
    if name == "cut short":
        return data[:-100]
    if name == "header cut short":
        return data[: head // 2]
    if name == "longer":
        return data + b"x"
    if name == "overlapping":
        first = header["conv_in.weight"]["data_offsets"]
        header["conv_in.weight"]["data_offsets"] = [first[0] - 4, first[1] - 4]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[head:]
    return {
        "a pickle": pickle.dumps({"conv_in.weight": [1.0] * 100}),
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "empty": b"",
    }[name]


@pytest.mark.parametrize(
    "how",
    [
        *("cut short", "header cut short", "longer", "overlapping"),
        *("a pickle", "a pointer", "empty"),
    ],
)
def test_damaged_files_are_named(folder, how):
    files.write_stage(folder)
    path = folder / WEIGHTS
    path.write_bytes(damage(how, path.read_bytes()))
    with pytest.raises(InputError, match=f"{path} is not a whole safetensors file"):
        tensor_files.open_file(path)


def test_pickled_weights_are_not_read(folder):
    files.write_stage(folder)
    (folder / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights"):
        cascade_of(folder)


def test_nothing_there(folder):
    folder.mkdir()
    with pytest.raises(InputError, match="config.weights.base=.* holds no weights"):
        cascade_of(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("config", [files.STAGE_1, files.STAGE_2], ids=["I", "II"])
def test_import_then_export_is_the_same_bytes(folder, config, dtype):
    told = files.write_stage(folder / "theirs", config, dtype=dtype)
    name = "sr256" if config is files.STAGE_2 else "base"
    own, back = epath.Path(folder / "own"), epath.Path(folder / "back")
    export.write_native(
        own, export.export_folder(epath.Path(folder / "theirs"), ()), None
    )
    export.write_diffusers(back, export.export_folder(own, ()), None)
    ours = load_file(own / f"{name}.safetensors")
    assert len(ours) == len(told)
    again = load_file(back / name / WEIGHTS)
    assert again.keys() == told.keys()
    for key, value in told.items():
        assert again[key].dtype == value.dtype
        assert again[key].tobytes() == value.tobytes(), key
    theirs, mine = (
        deepfloyd.read_network(epath.Path(each) / "unet/config.json")
        for each in (folder / "theirs", back / name)
    )
    assert theirs == mine
    assert deepfloyd.read_scheduler(
        back / name / "scheduler/scheduler_config.json"
    ) == deepfloyd.read_scheduler(
        epath.Path(folder / "theirs/scheduler/scheduler_config.json")
    )
    page = (back / name / "README.md").read_text()
    assert deepfloyd.LICENCE in page
    assert (back / name / "image_noising_scheduler").exists() == (name == "sr256")


def test_an_imported_folder_describes_itself(folder):
    files.write_stage(folder / "theirs")
    own = epath.Path(folder / "own")
    export.write_native(
        own, export.export_folder(epath.Path(folder / "theirs"), ()), None
    )
    assert cascade_of(own) == cascade_of(folder / "theirs")
    params = [
        load_base(each).params["mid_block"]["attentions_0"]["to_q"]["kernel"]
        for each in (own, folder / "theirs")
    ]
    np.testing.assert_array_equal(*params)


def test_variance_that_was_not_tuned_is_not_exported_as_learned(folder):
    files.write_stage(folder)
    (part,) = export.export_folder(epath.Path(folder), ())
    assert isinstance(part.network, Stage)
    stale = dataclasses.replace(
        part, network=part.network.after_finetuning(hybrid=False)
    )
    export.write_diffusers(epath.Path(folder / "out"), [stale], None)
    path = folder / "out/base/scheduler/scheduler_config.json"
    assert json.loads(path.read_text())["variance_type"] == "fixed_small"
    assert "fixed_small" in (folder / "out/base/README.md").read_text()


def test_a_stage_on_top_of_what_was_published(folder):
    for name, config in (
        ("base", files.STAGE_1),
        ("sr256", files.STAGE_2),
        ("sr1024", files.STAGE_2 | {"sample_size": 64}),
    ):
        files.write_stage(folder / name, config)
    cascade = resolve(
        by_name("if_m").having(NARROW),
        {"text": "random"}
        | {name: str(folder / name) for name in ("base", "sr256", "sr1024")},
    )
    sizes = [(each.low_resolution, each.resolution) for each in cascade.stages]
    assert sizes == [(None, 16), (16, 32), (32, 64)]


def test_fingerprints_follow_content(folder):
    told = files.write_stage(folder)
    before = weight_origin(cascade_of(folder), "base", str(folder))["fingerprint"]
    told["mid_block.resnets.0.norm1.bias"][3] += 1e-3
    files.write_stage(folder, weights=told)
    assert (
        weight_origin(cascade_of(folder), "base", str(folder))["fingerprint"] != before
    )


def test_if_networks_read_every_position(folder):
    files.write_stage(folder)
    part = load_base(folder)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 16, 16, 3)), jnp.float32)
    text = jnp.asarray(rng.normal(size=(1, 77, files.TEXT)), jnp.float32)
    time = jnp.ones((1,), jnp.float32)
    masks = jnp.arange(77)[None] < 3, jnp.ones((1, 77), bool)
    seen = [jax.jit(part.apply)(part.params, x, time, text, m, None) for m in masks]
    np.testing.assert_array_equal(*seen)
    changed = text.at[0, 70].add(1.0)
    other = jax.jit(part.apply)(part.params, x, time, changed, masks[0], None)
    assert np.abs(other - seen[0]).max() > 1e-6


MEASURE = """
import dataclasses, os, sys, threading
import jax, jax.numpy as jnp
from imagen_booth.distributed import sharding
from imagen_booth.cascade import by_name
from imagen_booth.weights.load import load, resolve

def resident():
    # Without pages of mapped files, which the system drops when memory is short.
    status = open("/proc/self/status").read()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

folder = sys.argv[1]
stages = by_name("if_m").stages[:1]
cascade = dataclasses.replace(by_name("if_m"), stages=stages)
cascade = resolve(cascade, {"text": "random", "base": folder})
mesh = sharding.make_mesh(1, -1)  # one copy, over all devices
jnp.zeros(3).block_until_ready()
before, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
jax.block_until_ready(load(cascade, "base", folder, mesh, jnp.float32).params)
done.set()
watcher.join()
size = os.path.getsize(folder + "/unet/diffusion_pytorch_model.safetensors")
print((peak - before) / size)
"""


@pytest.mark.slow
def test_memory_while_loading(folder):
    """The host holds the model, and little more at any time."""
    config = files.STAGE_1 | {
        "addition_embed_type_num_heads": 64,
        "block_out_channels": [96, 192, 288, 384],
        "cross_attention_dim": 384,
        "down_block_types": [
            "ResnetDownsampleBlock2D",
            *["SimpleCrossAttnDownBlock2D"] * 3,
        ],
        "encoder_hid_dim": 4096,
        "layers_per_block": 3,
        "sample_size": 64,
        "up_block_types": [
            *["SimpleCrossAttnUpBlock2D"] * 3,
            "ResnetUpsampleBlock2D",
        ],
    }
    files.write_stage(folder, config)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"peak of host memory: {float(done.stdout):.2f} x the file")
    assert float(done.stdout) < 1.25
