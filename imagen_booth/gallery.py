"""More pictures from a run that is finished."""

import dataclasses
import json
from collections.abc import Iterable, Sequence

import jax
from etils import epath

from imagen_booth import checkpoint, hosts, loop, settings, sharding
from imagen_booth.booth import activation_dtype, cache_folder, story_of
from imagen_booth.cascade import by_name
from imagen_booth.embed import embed
from imagen_booth.errors import InputError
from imagen_booth.generate import Ready, Request, draw_cascade, store
from imagen_booth.job import Job
from imagen_booth.text import prompts as words
from imagen_booth.weights.load import load, place, resolve


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
    stages = [
        stage
        for stage in cascade.stages
        if not resolution or stage.resolution <= resolution
    ]
    subject = manifest["subject"]
    identifier, noun = subject["identifier"], subject["class_noun"]
    requests = [
        Request(
            words.fill(prompt, identifier, noun),
            words.fill(prompt, "", noun),
            seed,
            f"{index:04d}_{seed}",
        )
        for index, prompt in enumerate(prompts)
        for seed in seeds
    ]
    mesh = sharding.make_mesh(job.mesh.data, job.mesh.fsdp)
    dtype = activation_dtype(job.dtype)
    folder = run / "samples" / name
    with jax.set_mesh(mesh), loop.StopRequest() as stop:
        found, _ = embed(
            cascade,
            [text for each in requests for text in (each.prompt, each.plain)],
            weights=job.weights.text,
            vocabulary=job.weights.vocabulary,
            cleaning=job.cleaning,
            cache=cache_folder(job, run),
            mesh=mesh,
            dtype=dtype,
        )
        ready = []
        for stage in stages:
            part = load(
                cascade, stage.name, getattr(job.weights, stage.name), mesh, dtype
            )
            tuning = job.tuning(stage.name)
            params, level, steps = part.params, stage.normal_level, 0
            if (run / stage.name).exists():
                try:
                    tree, steps = checkpoint.read_params(run / stage.name)
                except FileNotFoundError:
                    raise InputError(
                        f"{run / stage.name} has no finished checkpoint; run the "
                        "training command again to finish it"
                    ) from None
                params, level = place(tree["unet"], mesh), tuning.level
                stage = stage.tuned(tuning.hybrid)
            ready.append(Ready(stage, part, params, level, steps))
        for stage, images in draw_cascade(
            ready,
            requests,
            found,
            {stage.name: getattr(job.pictures, stage.name) for stage in stages},
            batch=job.pictures.batch,
            mesh=mesh,
            check_stop=stop.check,
        ):
            if hosts.is_first():
                target = folder / str(stage.resolution)
                store(target, requests, images, story_of(run, cascade))
    return folder
