"""The programs of a job, compiled ahead of time for chips that need not be there.

The functions of a run build each program from shapes in place of arrays. If the
compiler refuses a program for lack of memory, its message contains the figures.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from imagen_booth import train_state
from imagen_booth.cascade import Cascade, Stage
from imagen_booth.config.schema import FineTuning
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import device_memory, sharding
from imagen_booth.errors import DoesNotFit
from imagen_booth.models import lora
from imagen_booth.preflight import jaxpr_cost
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.sampling import cascade_sampler, text_embeddings
from imagen_booth.storage import read_json, write_atomic
from imagen_booth.training import adapters, finetune, loop, optimizers
from imagen_booth.training.frozen_targets import FrozenPrior
from imagen_booth.training.loop import InitialState
from imagen_booth.weights.load import frozen_shapes, network, shapes

FORM = 2  # version of the cached answers; with a new one, programs compile again
# The least of XLA's -1 to 1 for speed of the program. Compiling takes an eighth of the
# time, and memory is a little above that of a program compiled as in a run (base step
# of imagen on v4: 19.7 GiB instead of 18.7). jax 0.11 has levels instead.
EFFORT = (
    {"exec_time_optimization_effort": -1.0}
    if hasattr(jax.config, "jax_exec_time_optimization_effort")
    else {"optimization_level": "O0"}
)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+)([KMGT]?)(?:i?B)?"
# How the TPU compiler reports the bytes that a program needs and the bytes there are.
_REFUSALS = (
    rf"required for HLO temporaries \({_NUMBER}\) exceeds available HBM \({_NUMBER}\)",
    rf"Used {_NUMBER} of {_NUMBER} hbm",
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program for the compiler.

    Attributes:
        jitted: The function that a run calls.
        inputs: Its positional arguments, as shapes with shardings.
        named: Its keyword arguments, likewise.
        parameters: Bytes of the parameters on each device.
        optimizer: Bytes of the rest of the training state on each device.
    """

    jitted: Any
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    parameters: int
    optimizer: int

    def work(self, mesh: jax.sharding.Mesh) -> Cost:
        """Work of one device in one call.

        A device reads all parameters, wherever they are stored, and its share of the
        rows. Communication between devices is not counted.
        """

        def share(leaf: Any) -> Any:
            shape = leaf.shape
            if leaf.sharding == sharding.rows(mesh):
                shape = (shape[0] // mesh.size, *shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        inputs, named = jax.tree.map(share, (self.inputs, self.named))
        function = self.jitted.__wrapped__
        return jaxpr_cost.count_cost(jax.make_jaxpr(function)(*inputs, **named))


@dataclasses.dataclass(frozen=True)
class MemoryFigures:
    """The compiler's figures for a program, per device, in bytes.

    Attributes:
        peak: Peak bytes in use, or the bytes requested when the compiler refused.
        usable: Bytes of one device that a program may use.
        arguments: Bytes of the arguments; this and the next three are 0 if the compiler
            refused the program.
        outputs: Bytes of the outputs.
        aliased: Bytes that outputs share with arguments.
        temporaries: Bytes of everything else in memory while the program runs.
        refused: The compiler's refusal in its own words, or empty.
        seconds: CPU seconds of the compiler, all threads together.
    """

    peak: int
    usable: int
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    refused: str = ""
    seconds: float = 0.0


def train_step(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
    prior: FrozenPrior | None = None,
) -> Program:
    """One step of fine-tuning a stage.

    Args:
        prior: How the frozen model gives the class rows their targets, if it does.
    """
    stage = stage.after_finetuning(tuning.hybrid)
    _, apply = network(cascade, stage.name, dtype)
    optimizer, start = _start(cascade, stage, tuning, mesh, dtype, rules)
    step_fn = finetune.make_finetune_step(
        finetune.make_loss(stage, apply, tuning, prior), optimizer, tuning, 0
    )
    pair = ImagePair(_blank_image(stage.resolution), None)
    if stage.low_resolution is not None:
        pair = dataclasses.replace(pair, low=_blank_image(stage.low_resolution))
    null = _blank_embedding(cascade)
    rows, sizes = [[pair.example(null)]], {"host": 0, "hosts": 1, "devices": mesh.size}
    data = finetune.batches(stage, tuning, rows, rows, seed=0, **sizes)
    batch = _placed(data[0], sharding.rows(mesh))
    fixed = ()
    if prior is not None and not tuning.adapts:
        copy = frozen_shapes(cascade, stage.name, dtype)
        fixed = (sharding.sharded_shapes(copy, mesh, rules, "unet"),)
    return Program(
        loop.jit_step(step_fn, start.abstract),
        (start.abstract, batch, *fixed),
        _placed({"ok": np.bool_(True)}, sharding.copies(mesh)),
        parameters=_params_of(start) + device_memory.held(fixed),
        optimizer=_other_state(start),
    )


def sampler(
    cascade: Cascade,
    stage: Stage,
    config: SamplerConfig,
    rows: int,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
    *,
    train: bool = True,
) -> Program:
    """Sampling ``rows`` images with a stage, as ``sample_stage`` does.

    Args:
        train: Whether the parameters are f32, as in the previews of a stage of which
            all parameters train; see ``load.load``.
    """
    _, apply = network(cascade, stage.name, dtype)
    params = sharding.sharded_shapes(
        frozen_shapes(cascade, stage.name, jnp.float32 if train else dtype),
        mesh,
        rules,
        "unet",
    )
    low = stage.low_resolution
    blank = _blank_embedding(cascade)
    batch = cascade_sampler.sampler_inputs(
        [blank] * rows,
        blank,
        range(rows),
        None if low is None else np.stack([_blank_image(low)] * rows),
        0.0,
        rows=rows,
        devices=mesh.size,
    )
    return Program(
        cascade_sampler.sampler_program(stage, apply, config),
        (params,),
        _placed(batch, sharding.rows(mesh)),
        parameters=device_memory.held(params),
        optimizer=0,
    )


def text_encoder(
    cascade: Cascade,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
) -> Program:
    """Encoding ``text_embeddings.ROWS`` prompts."""
    _, apply = network(cascade, "text", dtype)
    params = sharding.sharded_shapes(
        frozen_shapes(cascade, "text", dtype), mesh, rules, "text"
    )
    tokens = np.zeros((text_embeddings.ROWS, cascade.text.length), np.int32)
    placed = _placed((tokens, tokens > 0), sharding.copies(mesh))
    return Program(
        jax.jit(apply),
        (params, *placed),
        {},
        parameters=device_memory.held(params),
        optimizer=0,
    )


def beside_preview(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
) -> int:
    """Bytes on each device of a stage's training state beside what a preview samples.

    This is the optimizer state; and of a stage with an adapter the adapter, and the
    frozen kernels to which it is added in a copy.
    """
    start = _start(cascade, stage, tuning, mesh, dtype, rules)[1]
    beside = _other_state(start)
    if tuning.adapts:
        unet, config = start.abstract.frozen["unet"], tuning.adapter
        frozen = train_state.flatten(unet)
        paths = lora.kernel_paths(unet, config.kernels, config.rank)
        beside += device_memory.held([frozen[path] for path in paths])
        beside += device_memory.held(start.abstract.trainable)
    return beside


def _start(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule],
) -> tuple[optax.GradientTransformation, InitialState]:
    """The optimizer of a stage, and its initial training state."""
    optimizer = optimizers.build(tuning.optim, tuning.steps)
    unet = shapes(cascade, stage.name)
    return optimizer, finetune.initial_state(
        adapters.param_shapes(stage.name, unet, tuning, dtype),
        optimizer,
        tuning.optim.ema > 0,
        mesh,
        adapters.trainable(tuning),
        rules,
    )


def _params_of(start: InitialState) -> int:
    """Bytes on each device of all parameters of a training state."""
    state = start.abstract
    return device_memory.held(state.trainable) + device_memory.held(state.frozen)


def _other_state(start: InitialState) -> int:
    """Bytes on each device of a training state, without its parameters."""
    return device_memory.held(start.abstract) - _params_of(start)


def _blank_image(side: int) -> np.ndarray:
    return np.zeros((side, side, 3), np.uint8)


def _blank_embedding(cascade: Cascade) -> Embedding:
    """Zeros in the shape of an embedded prompt."""
    text = cascade.text
    return Embedding(
        np.zeros((text.length, text.encoder.width), np.float32),
        np.ones(text.length, bool),
    )


def _placed(arrays: Any, place: jax.sharding.NamedSharding) -> Any:
    """The shapes of arrays, all with one sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        arrays,
    )


def compile_program(
    program: Program,
    mesh: jax.sharding.Mesh,
    usable: int,
    cache: epath.Path,
    topology: str,
) -> MemoryFigures:
    """Compiles a program, unless its figures are in the cache.

    Args:
        mesh: Mesh of devices that need not be there.
        usable: Bytes of a device that a program may use.
        cache: Folder of answers by program, compiler and topology.
        topology: Name of the devices.
    """
    with jax.set_mesh(mesh):
        lowered = program.jitted.lower(*program.inputs, **program.named)
    versions = [jax.__version__, *_libtpu(), topology, str(FORM)]
    question = "\n".join([*versions, lowered.as_text()])
    path = cache / "aot" / f"{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"
    if figures := read_json(path, None):
        return MemoryFigures(**figures)
    start = time.process_time()
    try:
        # The effort is a number; the types of jax do not allow it.
        executable = lowered.compile(EFFORT)  # pyright: ignore[reportArgumentType]
        stats = executable.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        figures = parse_refusal(str(error))
    else:
        used = stats.argument_size_in_bytes + stats.output_size_in_bytes
        used += stats.temp_size_in_bytes - stats.alias_size_in_bytes
        figures = MemoryFigures(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes,
            aliased=stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            peak=used + stats.generated_code_size_in_bytes,
            usable=usable,
        )
    spent = round(time.process_time() - start, 1)
    figures = dataclasses.replace(figures, seconds=spent)
    write_atomic(path, json.dumps(dataclasses.asdict(figures), indent=1).encode())
    return figures


def parse_refusal(message: str) -> MemoryFigures:
    """The figures in a compiler's refusal for lack of memory.

    Raises:
        DoesNotFit: The message contains no known figures.
        RuntimeError: The reason is another one.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        raise RuntimeError(message)
    sentence = next(line for line in message.splitlines() if line.strip())
    for pattern in _REFUSALS:
        if match := re.search(pattern, message):
            needed, needed_unit, usable, usable_unit = match.groups()
            return MemoryFigures(
                peak=int(float(needed) * _UNITS[needed_unit]),
                usable=int(float(usable) * _UNITS[usable_unit]),
                refused=sentence.partition(": ")[2] or sentence,
            )
    raise DoesNotFit(f"the compiler refuses a program: {sentence}")


def _libtpu() -> list[str]:
    if importlib.util.find_spec("libtpu") is None:
        return []
    return [metadata.version("libtpu")]
