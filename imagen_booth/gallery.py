"""More pictures from a run that is finished."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth import checkpoint, hosts, loop, placement, settings
from imagen_booth.booth import activation_dtype, cache_folder, story_of
from imagen_booth.cascade import Cascade, by_name
from imagen_booth.embed import embed
from imagen_booth.errors import InputError
from imagen_booth.generate import Ready, Request, draw_cascade, store
from imagen_booth.job import Job
from imagen_booth.stage import Stage
from imagen_booth.text import prompts as words
from imagen_booth.weights.load import Part, load, network, origin, place, resolve


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run as pictures are drawn from it.

    Attributes:
        path: its work directory.
        job: its settings.
        cascade: the model.
        stages: those to draw with, from low to high resolution.
        identifier, noun: what [V] and [N] stand for.
    """

    path: epath.Path
    job: Job
    cascade: Cascade
    stages: tuple[Stage, ...]
    identifier: str
    noun: str


def read_run(run: epath.Path, resolution: int = 0) -> Finished:
    """What a run's files say of it; no weights are read.

    Args:
        run: its work directory.
        resolution: stop at this size in pixels; 0 for the cascade's last.

    Raises:
        InputError: no run there, or no stage of that resolution.
    """
    files = [run / file for file in ("config.json", "manifest.json")]
    if not all(file.exists() for file in files):
        raise InputError(f"--run={run} is not the work directory of a run")
    config, manifest = (json.loads(file.read_text()) for file in files)
    job = settings.build(Job, config, "config")
    cascade = resolve(by_name(job.cascade), dataclasses.asdict(job.weights))
    sizes = [stage.resolution for stage in cascade.stages]
    if resolution and resolution not in sizes:
        raise InputError(
            f"--resolution={resolution} is no stage of {cascade.name}; use one of "
            f"{', '.join(map(str, sizes))}"
        )
    stages = tuple(
        stage
        for stage in cascade.stages
        if not resolution or stage.resolution <= resolution
    )
    subject = manifest["subject"]
    return Finished(
        run, job, cascade, stages, subject["identifier"], subject["class_noun"]
    )


def tuned_steps(run: Finished, stage: Stage) -> int:
    """Steps that a stage was tuned for; 0 if it is as it came.

    Raises:
        InputError: its tuning has not come to an end.
    """
    folder = run.path / stage.name
    if not folder.exists():
        return 0
    kept = [each.parent.name for each in folder.glob("*/params")]
    steps = [int(name) for name in kept if name.isdecimal()]
    if not steps:
        raise InputError(
            f"{folder} has no finished checkpoint; run the training command again to "
            "finish it"
        )
    return max(steps)


def open_stage(
    run: Finished, stage: Stage, mesh: jax.sharding.Mesh, dtype: Any
) -> Ready:
    """A stage with the weights that the run left it, on the mesh.

    Raises:
        InputError: missing weights, or a tuning that has not come to an end.
    """
    source = getattr(run.job.weights, stage.name)
    if tuned_steps(run, stage) == 0:
        part = load(run.cascade, stage.name, source, mesh, dtype, run.job.mesh.rules)
        return Ready(stage, part, part.params, stage.normal_level, 0)
    # The weights it was tuned from stay on disk.
    tree, steps = checkpoint.read_params(run.path / stage.name)
    _, apply = network(run.cascade, stage.name, dtype)
    params = place(tree["unet"], mesh, run.job.mesh.rules)
    about = origin(run.cascade, stage.name, source)
    known = about["sha256"], about["licence"], about["pretrained"]
    part = Part(apply, params, stage.name, source, *known)
    tuning = run.job.tuning(stage.name)
    return Ready(stage.tuned(tuning.hybrid), part, params, tuning.level, steps)


def draw(
    run: epath.Path,
    prompts: Sequence[str],
    name: str,
    *,
    seeds: Iterable[int],
    resolution: int = 0,
) -> epath.Path:
    """Draws prompts with a run's tuned stages into ``RUN/samples/NAME``.

    Args:
        run: work directory of a finished run.
        prompts: [V] stands for the identifier, [N] for the class noun.
        name: of the folder.
        seeds: one picture per prompt and seed.
        resolution: stop at this size in pixels; 0 for the cascade's last.

    Returns:
        The folder, with one folder per resolution.

    Raises:
        InputError: no finished run there, or no stage of that resolution.
    """
    finished = read_run(run, resolution)
    job = finished.job
    requests = [
        Request(
            words.fill(prompt, finished.identifier, finished.noun),
            words.fill(prompt, "", finished.noun),
            seed,
            f"{index:04d}_{seed}",
        )
        for index, prompt in enumerate(prompts)
        for seed in seeds
    ]
    cache = cache_folder(job, run)  # before anything is compiled
    mesh = placement.mesh_to_draw(finished.cascade, job)
    dtype = activation_dtype(job.dtype)
    folder = run / "samples" / name
    with jax.set_mesh(mesh), loop.StopRequest() as stop:
        found, _ = embed(
            finished.cascade,
            [text for each in requests for text in (each.prompt, each.plain)],
            weights=job.weights.text,
            vocabulary=job.weights.vocabulary,
            cleaning=job.cleaning,
            cache=cache,
            mesh=mesh,
            dtype=dtype,
            rules=job.mesh.rules,
        )
        for stage, images in draw_cascade(
            [open_stage(finished, stage, mesh, dtype) for stage in finished.stages],
            requests,
            found,
            {
                stage.name: getattr(job.pictures, stage.name)
                for stage in finished.stages
            },
            batch=job.pictures.batch,
            mesh=mesh,
            check_stop=stop.check,
        ):
            if hosts.is_first():
                target = folder / str(stage.resolution)
                store(target, requests, images, story_of(run, finished.cascade))
    return folder
