"""The programs of a job, compiled ahead of time for chips that need not be there.

A program is made by the functions that a run makes it with, from shapes in place of
arrays, and handed to the compiler. Where that refuses it for want of memory, the
figures that it names are the answer.
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

from imagen_booth.cascade import Cascade, Stage
from imagen_booth.config.schema import FineTuning
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import device_memory, sharding
from imagen_booth.errors import DoesNotFit
from imagen_booth.preflight import jaxpr_cost
from imagen_booth.preflight.jaxpr_cost import Cost
from imagen_booth.sampling import cascade_sampler, text_embeddings
from imagen_booth.storage import write_atomic
from imagen_booth.training import finetune, loop, optimizers
from imagen_booth.training.loop import InitialState
from imagen_booth.weights.load import network, shapes, to_frozen

FORM = 2  # of what is cached; a new one makes the old ones be compiled again
# The least of XLA's -1 to 1 for speed of the program. Compiling takes an eighth of the
# time, and memory comes out a little above that of a program compiled as runs do it
# (base step of imagen, v4: 19.7 GiB for 18.7). jax 0.11 has levels in its place.
EFFORT = (
    {"exec_time_optimization_effort": -1.0}
    if hasattr(jax.config, "jax_exec_time_optimization_effort")
    else {"optimization_level": "O0"}
)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+)([KMGT]?)(?:i?B)?"
# The sentences in which the compiler for TPUs says how much is asked of how much.
_REFUSALS = (
    rf"required for HLO temporaries \({_NUMBER}\) exceeds available HBM \({_NUMBER}\)",
    rf"Used {_NUMBER} of {_NUMBER} hbm",
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program as it is given to the compiler.

    Attributes:
        jitted: the function that a run calls.
        inputs, named: its arguments, as shapes with shardings.
        rows: rows of one call, on all devices.
        parameters, optimizer: bytes of them among the inputs, on each device.
    """

    jitted: Any
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    rows: int
    parameters: int
    optimizer: int

    def work(self, mesh: jax.sharding.Mesh) -> Cost:
        """What one device does in one call, from the traced program.

        A device reads all parameters, whoever keeps them, and its share of the rows.
        What devices tell each other is not counted.
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
    """What the compiler says of a program, per device, in bytes.

    Attributes:
        arguments, outputs, aliased: of the program; aliased is what outputs share with
            arguments. 0 where it was refused.
        temporaries: all else that it keeps in memory while it runs.
        peak: the most that is in use at once, or what was asked for in vain.
        usable: what one device lets a program use.
        refused: the compiler's own sentence, or empty.
        seconds: that the compiler took, when it was asked, of its CPU threads all
            together.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int
    usable: int
    refused: str
    seconds: float


def train_step(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
) -> Program:
    """One step of fine-tuning a stage, as ``tune`` runs it."""
    stage = stage.tuned(tuning.hybrid)
    _, apply = network(cascade, stage.name, dtype)
    optimizer, start = _start(cascade, stage, tuning, mesh, rules)
    step_fn = finetune.make_finetune_step(
        finetune.make_loss(stage, apply, tuning), optimizer, tuning, 0
    )
    pair = ImagePair(_black(stage.resolution), None)
    if stage.low_resolution is not None:
        pair = dataclasses.replace(pair, low=_black(stage.low_resolution))
    rows = [pair.example(_silence(cascade))]
    data = finetune.batches(
        stage, tuning, rows, rows, seed=0, host=0, hosts=1, devices=mesh.size
    )
    batch = _placed(data[0], sharding.rows(mesh))
    return Program(
        loop.jit_step(step_fn, start.abstract),
        (start.abstract, batch),
        {},
        rows=batch["image"].shape[0],
        parameters=device_memory.held(start.abstract.trainable),
        optimizer=_besides(start),
    )


def sampler(
    cascade: Cascade,
    stage: Stage,
    config: SamplerConfig,
    rows: int,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
) -> Program:
    """Drawing ``rows`` pictures with a stage, as ``generate.draw_stage`` does."""
    _, apply = network(cascade, stage.name, dtype)
    params = sharding.laid(shapes(cascade, stage.name), mesh, rules, "unet")
    low = stage.low_resolution
    silence = _silence(cascade)
    batch = cascade_sampler.sampler_inputs(
        [silence] * rows,
        silence,
        range(rows),
        None if low is None else np.stack([_black(low)] * rows),
        0.0,
        rows=rows,
        devices=mesh.size,
    )
    return Program(
        cascade_sampler.sampler_program(stage, apply, config),
        (params,),
        _placed(batch, sharding.rows(mesh)),
        rows=-(-rows // mesh.size) * mesh.size,
        parameters=device_memory.held(params),
        optimizer=0,
    )


def text_encoder(
    cascade: Cascade,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
) -> Program:
    """Encoding ``embed.ROWS`` prompts, as ``embed`` does."""
    _, apply = network(cascade, "text", dtype)
    kept = jax.eval_shape(
        lambda params: to_frozen(params, dtype), shapes(cascade, "text")
    )
    params = sharding.laid(kept, mesh, rules, "text")
    tokens = np.zeros((text_embeddings.ROWS, cascade.text.length), np.int32)
    placed = _placed((tokens, tokens > 0), sharding.copies(mesh))
    return Program(
        jax.jit(apply),
        (params, *placed),
        {},
        rows=text_embeddings.ROWS,
        parameters=device_memory.held(params),
        optimizer=0,
    )


def parameters(
    cascade: Cascade,
    name: str,
    mesh: jax.sharding.Mesh,
    rules: Sequence[sharding.Rule] = (),
) -> int:
    """Bytes of a stage's parameters on each device."""
    return device_memory.size_per_device(shapes(cascade, name), mesh, rules, "unet")


def optimizer_state(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    mesh: jax.sharding.Mesh,
    rules: Sequence[sharding.Rule] = (),
) -> int:
    """Bytes on each device that training a stage holds besides its parameters."""
    return _besides(_start(cascade, stage, tuning, mesh, rules)[1])


def _start(
    cascade: Cascade,
    stage: Stage,
    tuning: FineTuning,
    mesh: jax.sharding.Mesh,
    rules: Sequence[sharding.Rule],
) -> tuple[optax.GradientTransformation, InitialState]:
    """The optimizer of a tuning, and the state that it starts from."""
    optimizer = optimizers.build(tuning.optim, tuning.steps)
    params = {"unet": shapes(cascade, stage.name)}
    average = tuning.optim.ema > 0
    return optimizer, finetune.initial_state(
        params, optimizer, average, mesh, rules=rules
    )


def _besides(start: InitialState) -> int:
    """Bytes on each device of all in a state but its parameters."""
    return device_memory.held(start.abstract) - device_memory.held(
        start.abstract.trainable
    )


def _black(side: int) -> np.ndarray:
    return np.zeros((side, side, 3), np.uint8)


def _silence(cascade: Cascade) -> Embedding:
    """A prompt that says nothing, in the shape of any."""
    text = cascade.text
    return Embedding(
        np.zeros((text.length, text.encoder.width), np.float32),
        np.ones(text.length, bool),
    )


def _placed(arrays: Any, place: jax.sharding.NamedSharding) -> Any:
    """Arrays as shapes, all in one sharding."""
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
    """Hands a program to the compiler, unless it has been asked before.

    Args:
        mesh: of devices that need not be there.
        usable: bytes of a device that a program may use.
        cache: folder of answers, named by the program, compiler and topology.
        topology: what the devices are.
    """
    with jax.set_mesh(mesh):
        lowered = program.jitted.lower(*program.inputs, **program.named)
    versions = [jax.__version__, *_libtpu(), topology, str(FORM)]
    asked = "\n".join([*versions, lowered.as_text()])
    path = cache / "aot" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"
    if path.exists():
        return MemoryFigures(**json.loads(path.read_text()))
    start = time.process_time()
    try:
        # A number, whatever the types of jax say.
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
            refused="",
            seconds=0.0,
        )
    spent = round(time.process_time() - start, 1)
    figures = dataclasses.replace(figures, seconds=spent)
    write_atomic(path, json.dumps(dataclasses.asdict(figures), indent=1).encode())
    return figures


def parse_refusal(message: str) -> MemoryFigures:
    """The figures in a compiler's refusal for want of memory.

    Raises:
        DoesNotFit: it names none that are understood.
        RuntimeError: it refuses for another reason.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        raise RuntimeError(message)
    sentence = next(line for line in message.splitlines() if line.strip())
    for pattern in _REFUSALS:
        if match := re.search(pattern, message):
            asked, asked_unit, usable, usable_unit = match.groups()
            return MemoryFigures(
                arguments=0,
                outputs=0,
                aliased=0,
                temporaries=0,
                peak=int(float(asked) * _UNITS[asked_unit]),
                usable=int(float(usable) * _UNITS[usable_unit]),
                refused=sentence.partition(": ")[2] or sentence,
                seconds=0.0,
            )
    raise DoesNotFit(f"the compiler refuses a program: {sentence}")


def usable_memory(device: Any) -> int:
    """Bytes of one chip that a program may use, as its compiler says.

    It is asked for far more than any chip has, and its refusal names what there is.
    """
    mesh = sharding.make_mesh(1, 1, [device])
    much = jax.ShapeDtypeStruct(
        (2**32, 2**10), jnp.float32, sharding=sharding.copies(mesh)
    )
    try:
        jax.jit(lambda x: x + 1.0).lower(much).compile()
    except jax.errors.JaxRuntimeError as error:
        return parse_refusal(str(error)).usable
    raise RuntimeError("a program of 32 TiB was accepted")


def _libtpu() -> list[str]:
    if importlib.util.find_spec("libtpu") is None:
        return []
    return [metadata.version("libtpu")]
