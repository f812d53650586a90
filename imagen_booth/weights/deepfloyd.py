"""Reads and writes DeepFloyd IF in the folder layout of diffusers.

A pipeline's folder has ``unet/config.json``, ``unet/*.safetensors`` and
``scheduler/scheduler_config.json``; a super-resolution pipeline adds
``image_noising_scheduler/``. The network is described by these files. A field that
our network does not implement must have the one value that the network computes.

Names map by rule (see models/unet.py). PyTorch stores convolutions as (out, in,
height, width) and linear maps as (out, in); ours are (height, width, in, out) and
(in, out).
"""

import dataclasses
import json
import re
from typing import Any

from etils import epath

from imagen_booth.cascade import Stage
from imagen_booth.config import build
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.errors import InputError
from imagen_booth.models import UNetConfig
from imagen_booth.weights import tensor_files
from imagen_booth.weights.tensor_files import WeightFiles

LICENCE = "DeepFloyd IF License Agreement (non-commercial research only)"
NETWORK = "UNet2DConditionModel"
STEM = "diffusion_pytorch_model"

# The value that our network computes, and diffusers' default for a missing field.
FIXED: dict[str, tuple[Any, Any]] = {
    "addition_embed_type": ("text", None),
    "addition_time_embed_dim": (None, None),
    "attention_type": ("default", "default"),
    "center_input_sample": (False, False),
    "class_embeddings_concat": (False, False),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "dropout": (0.0, 0.0),
    "dual_cross_attention": (False, False),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"),
    "norm_eps": (1e-5, 1e-5),
    "norm_num_groups": (32, 32),  # diffusers uses 32 for the text in any case
    "num_attention_heads": (None, None),
    "num_class_embeds": (None, None),
    "projection_class_embeddings_input_dim": (None, None),
    "resnet_time_scale_shift": ("scale_shift", "default"),
    "reverse_transformer_layers_per_block": (None, None),
    "time_cond_proj_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
}
# Without effect in these blocks, or with float32 attention.
WITHOUT_EFFECT = {
    "downsample_padding": 1,
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "use_linear_projection": False,
}
DOWN = {False: "ResnetDownsampleBlock2D", True: "SimpleCrossAttnDownBlock2D"}
UP = {False: "ResnetUpsampleBlock2D", True: "SimpleCrossAttnUpBlock2D"}
ACTIVATIONS = {"gelu": "gelu", "silu": "swish", "swish": "swish"}
TEXT_NORMS = {"group_norm": "group", "layer_norm": "layer"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
UNBOUNDED = 1e6  # stands for no cap: no image reaches this bound


class _Fields:
    """A JSON object that records which fields were read.

    Errors name the file, the field and the value.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        try:
            self._values = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist; a folder in diffusers' layout has it"
            ) from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        if not isinstance(self._values, dict):
            raise InputError(f"{path} should hold one JSON object")
        self._seen: set[str] = set()

    def get(self, name: str, absent: Any = None) -> Any:
        """Returns the value of a field, a list as a tuple."""
        self._seen.add(name)
        value = self._values.get(name, absent)
        return tuple(value) if isinstance(value, list) else value

    def choose(self, name: str, absent: Any, choices: dict[Any, Any]) -> Any:
        """Returns the choice for the value of a field."""
        value = self.get(name, absent)
        if value not in choices:
            raise self.refuse(name, f"use {' or '.join(map(repr, choices))}")
        return choices[value]

    def require(self, name: str, value: Any, absent: Any) -> None:
        """Raises InputError if the field has another value."""
        if self.get(name, absent) != value:
            raise self.refuse(name, f"only {value!r} is supported")

    def number(self, name: str, absent: Any = None) -> int:
        """Returns a positive integer, or the one that fills a list."""
        value = self.get(name, absent)
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(name, "one whole number is supported")
        return value

    def each(self, name: str, count: int, absent: Any) -> tuple[int, ...]:
        """Returns an integer per level; one integer stands for all levels."""
        value = self.get(name, absent)
        value = (value,) * count if isinstance(value, int) else value
        if not isinstance(value, tuple) or len(value) != count:
            raise self.refuse(name, f"a number, or {count} of them, is supported")
        return value

    def refuse(self, name: str, hint: str) -> InputError:
        """Makes the error for a field."""
        value = self._values.get(name, "not given")
        return InputError(f"{self.path}: {name} is {value!r}; {hint}")

    def finish(self) -> None:
        """Raises InputError for fields that were not read and have a value."""
        for name, value in self._values.items():
            known = name in self._seen or name.startswith("_")
            if not known and value not in (None, False):
                raise self.refuse(name, "this field is not known, remove it")


def read_network(path: epath.Path) -> tuple[UNetConfig, int]:
    """Reads the network that a ``config.json`` describes.

    Returns:
        The network, and its resolution in pixels.

    Raises:
        InputError: There is no such file, or our network does not compute a value.
    """
    fields = _Fields(path)
    fields.require("_class_name", NETWORK, NETWORK)
    for name, (value, absent) in FIXED.items():
        fields.require(name, value, absent)
    for name in WITHOUT_EFFECT:
        fields.get(name)
    fields.choose("encoder_hid_dim_type", None, {"text_proj": True, None: True})
    widths, attention = _read_levels(fields)
    residual = fields.get("resnet_out_scale_factor", 1.0)
    fields.require("mid_block_scale_factor", residual, 1.0)
    config = UNetConfig(
        widths=widths,
        blocks=fields.each("layers_per_block", len(widths), 2),
        attention=attention,
        in_channels=fields.number("in_channels", 4),
        out_channels=fields.number("out_channels", 4),
        level_input=fields.choose(
            "class_embed_type", None, {None: False, "timestep": True}
        ),
        text_width=fields.number("encoder_hid_dim"),
        cross_width=fields.number("cross_attention_dim", 1280),
        time_width=fields.get("time_embedding_dim") or 4 * widths[0],
        head_width=fields.number("attention_head_dim", 8),
        pool_heads=fields.number("addition_embed_type_num_heads", 64),
        text_norm=fields.choose("cross_attention_norm", None, TEXT_NORMS),
        self_attention=_read_self_attention(fields),
        activation=_read_activation(fields),
        residual_scale=float(residual),
    )
    size = fields.number("sample_size")
    fields.finish()
    if config.in_channels != (6 if config.level_input else 3):
        raise fields.refuse(
            "in_channels", "it is 3, or 6 with class_embed_type 'timestep'"
        )
    if config.out_channels not in (3, 6):
        raise fields.refuse("out_channels", "it is 3, or 6 with a learned variance")
    return config, size


def _read_levels(fields: _Fields) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Reads each level's width and whether it has attention."""
    widths = fields.get("block_out_channels", (320, 640, 1280, 1280))
    down = fields.get("down_block_types")
    if not down or any(kind not in DOWN.values() for kind in down):
        raise fields.refuse("down_block_types", f"use {' and '.join(DOWN.values())}")
    attention = tuple(kind == DOWN[True] for kind in down)
    if len(widths) != len(down):
        raise fields.refuse("block_out_channels", f"give {len(down)}, one per level")
    up = tuple(UP[attends] for attends in reversed(attention))
    fields.require("up_block_types", up, None)
    return widths, attention


def _read_activation(fields: _Fields) -> str:
    activation = fields.choose("act_fn", "silu", ACTIVATIONS)
    # Applied once to the embedding or in every block, which is the same function; but
    # not both.
    once = fields.get("resnet_skip_time_act", False)
    early = fields.get("time_embedding_act_fn")
    if once != (early is not None) or early not in (None, fields.get("act_fn", "silu")):
        raise fields.refuse(
            "time_embedding_act_fn",
            "it goes with resnet_skip_time_act and equals act_fn, or is null",
        )
    return activation


def _read_self_attention(fields: _Fields) -> bool:
    """Reads whether image positions attend to each other, not to the text alone."""
    only_text = fields.get("only_cross_attention", False)
    if isinstance(only_text, tuple):
        middle = False
        only_text = only_text[0] if len(set(only_text)) == 1 else None
    else:
        middle = only_text
    given = fields.get("mid_block_only_cross_attention")
    if only_text is None or (middle if given is None else given) != only_text:
        raise fields.refuse(
            "only_cross_attention",
            "it has to be the same for all levels and the middle",
        )
    return not only_text


def write_network(config: UNetConfig, size: int) -> dict[str, Any]:
    """Makes the ``config.json`` of a network; inverse of ``read_network``.

    Args:
        config: The network.
        size: Its resolution in pixels.
    """
    assert config.patch == 1, "diffusers folds no pixels into channels"
    activation = "gelu" if config.activation == "gelu" else "silu"
    fixed = {name: value for name, (value, _) in FIXED.items()}
    described = {
        "act_fn": activation,
        "addition_embed_type_num_heads": config.pool_heads,
        "attention_head_dim": config.head_width,
        "block_out_channels": list(config.widths),
        "class_embed_type": "timestep" if config.level_input else None,
        "cross_attention_dim": config.cross_width,
        "cross_attention_norm": (
            "group_norm" if config.text_norm == "group" else "layer_norm"
        ),
        "down_block_types": [DOWN[attends] for attends in config.attention],
        "encoder_hid_dim": config.text_width,
        "encoder_hid_dim_type": "text_proj",
        "in_channels": config.in_channels,
        "layers_per_block": list(config.blocks),
        "mid_block_only_cross_attention": not config.self_attention,
        "mid_block_scale_factor": config.residual_scale,
        "only_cross_attention": not config.self_attention,
        "out_channels": config.out_channels,
        "resnet_out_scale_factor": config.residual_scale,
        "resnet_skip_time_act": config.level_input,
        "sample_size": size,
        "time_embedding_act_fn": activation if config.level_input else None,
        "time_embedding_dim": config.time_width,
        "up_block_types": [UP[attends] for attends in config.attention[::-1]],
    }
    fields = sorted((fixed | WITHOUT_EFFECT | described).items())
    return {"_class_name": NETWORK} | dict(fields)


def read_scheduler(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a ``scheduler_config.json``.

    The number of steps, the prediction type and whether the variance is up to date
    belong to the trained network, so they become fields of the stage. A noise schedule
    other than IF's is refused. Spacing and threshold are the user's choice: the job's
    settings apply, and ``cascade_sampler.scheduler_warnings`` names differences.

    Returns:
        Fields of a Stage, and of a SamplerConfig.

    Raises:
        InputError: There is no such file, the noise schedule is not IF's, or sampling
            does not support a value.
    """
    fields = _Fields(path)
    fields.require("beta_schedule", "squaredcos_cap_v2", "linear")
    fields.require("trained_betas", None, None)
    fields.require("rescale_betas_zero_snr", False, False)
    stale = fields.choose(
        "variance_type",
        "fixed_small",
        {"learned_range": False, None: False, "fixed_small": True},
    )
    stage = {
        "schedule": TableSchedule(fields.number("num_train_timesteps", 1000)),
        "prediction": fields.choose("prediction_type", "epsilon", PREDICTIONS),
        "stale_variance": stale,
    }
    fields.require("steps_offset", 0, 0)
    sampler = {"spacing": fields.get("timestep_spacing", "leading")}
    if fields.get("thresholding", False):
        cap = fields.get("sample_max_value", 1.0)
        sampler |= {
            "threshold": "dynamic",
            "ratio": fields.get("dynamic_thresholding_ratio", 0.995),
            "cap": None if cap == UNBOUNDED else cap,
        }
    elif fields.get("clip_sample", True):
        fields.require("clip_sample_range", 1.0, 1.0)
        sampler |= {"threshold": "static"}
    else:
        sampler |= {"threshold": "none"}
    try:
        build.build(SamplerConfig, sampler, "sampler")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return stage, sampler


def write_scheduler(
    stage: Stage, sampler: SamplerConfig | None, learned: bool
) -> dict[str, Any]:
    """Makes the ``scheduler_config.json`` of a stage.

    Args:
        stage: A stage with IF's noise schedule.
        sampler: Sampler whose thresholds and spacing are written; None for IF's own.
        learned: Whether the network's variance output is up to date.
    """
    assert isinstance(stage.schedule, TableSchedule)
    kinds = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    base = stage.low_resolution is None
    own = sampler or SamplerConfig(
        spacing="leading", ratio=0.95, cap=1.5 if base else 1.0
    )
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": own.threshold == "static",
        "dynamic_thresholding_ratio": own.ratio,
        "num_train_timesteps": stage.schedule.size,
        "prediction_type": kinds[stage.prediction],
        "sample_max_value": UNBOUNDED if own.cap is None else own.cap,
        "thresholding": own.threshold == "dynamic",
        "timestep_spacing": own.spacing,
        "variance_type": "learned_range" if learned else "fixed_small",
    }


def write_noising(stage: Stage) -> dict[str, Any]:
    """Makes the ``image_noising_scheduler``'s config, which defines IF's levels."""
    assert stage.low_resolution is not None
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": TableSchedule().size,
    }


def spell(path: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Returns the name and the axes in diffusers of one of our parameters.

    ``down_blocks_0/resnets_1/conv1/kernel`` is ``down_blocks.0.resnets.1.conv1.weight``
    with its axes in the order (2, 3, 1, 0).
    """
    *parts, leaf = path.split("/")
    numbered = r"^(\w+blocks|resnets|attentions|\w+samplers)_(\d+)$"
    parts = [re.sub(numbered, r"\1.\2", part) for part in parts]
    if parts[-1] == "to_out":
        parts.append("0")
    name = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    axes = tuple(range(ndim))
    if leaf == "kernel":
        axes = {2: (1, 0), 4: (2, 3, 1, 0)}[ndim]
    return ".".join([*parts, name]), axes


def network_folder(folder: epath.Path) -> epath.Path | None:
    """Returns the U-Net's folder, this one or ``unet`` in it; None if there is none."""
    for place in (folder / "unet", folder):
        file = place / "config.json"
        if file.exists() and NETWORK in file.read_text():
            return place
    return None


def find(folder: epath.Path, stage: Stage) -> WeightFiles:
    """Finds a stage's weights in a folder in diffusers' layout.

    Args:
        folder: Folder of a pipeline, or of its ``unet`` alone.
        stage: The stage; its fields apply where the files do not state them.

    Raises:
        InputError: There are no weights, a file is damaged, the network belongs to
            another stage, or a value is not supported.
    """
    place = network_folder(folder)
    assert place is not None
    config, size = read_network(place / "config.json")
    if config.level_input != (stage.low_resolution is not None):
        other = "a super-resolution" if config.level_input else "a base"
        raise InputError(
            f"config.weights.{stage.name}={folder}: {place / 'config.json'} describes "
            f"{other} network (in_channels={config.in_channels}); give it to that stage"
        )
    opened = tensor_files.open_stem(place, STEM)
    if opened is None:
        raise InputError(
            f"{place} has no {STEM}.safetensors; fetch it, or its shards and index"
        )
    found, where = opened
    root = place.parent if place.name == "unet" else place
    noising = root / "image_noising_scheduler/scheduler_config.json"
    if noising.exists():
        fields = _Fields(noising)
        fields.require("beta_schedule", "squaredcos_cap_v2", "linear")
        fields.require("num_train_timesteps", TableSchedule().size, 1000)
    trained: dict[str, Any] = {"schedule": TableSchedule(), "prediction": "eps"}
    sampler: dict[str, Any] = {}
    scheduler = root / "scheduler/scheduler_config.json"
    if scheduler.exists():
        trained, sampler = read_scheduler(scheduler)
    described = dataclasses.replace(
        stage,
        model=config,
        resolution=size,
        learned_variance=config.out_channels == 6,
        level_map="if_index",
        aligned=True,
        crop=None,
        **trained,
    )
    return WeightFiles(found, spell, described, where, LICENCE, sampler=sampler)
