"""More pictures from a run that is finished."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth.cascade import Cascade, Stage, by_name
from imagen_booth.config import build
from imagen_booth.config.schema import Job
from imagen_booth.distributed import processes
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import InputError
from imagen_booth.rundir import checkpoints
from imagen_booth.rundir.layout import cache_folder
from imagen_booth.sampling.cascade_sampler import (
    ImageRequest,
    LoadedStage,
    image_metadata,
    run_metadata,
    sample_cascade,
    save_images,
)
from imagen_booth.sampling.text_embeddings import LearnedEmbedding, embed_prompts
from imagen_booth.text import prompts as words
from imagen_booth.weights import placement
from imagen_booth.weights.load import Part, load, network, place, resolve, weight_origin
from imagen_booth.weights.placement import activation_dtype


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run as pictures are drawn from it.

    Attributes:
        path: its work directory.
        job: its settings.
        cascade: the model.
        stages: those to draw with, from low to high resolution.
        identifier, noun: what [V] and [N] stand for.
        alone: the identifier stands for a noun straight after it too.
        licences: of the weights of each part.
        kept: by stage, the step whose parameters it ended with, if not the last.
    """

    path: epath.Path
    job: Job
    cascade: Cascade
    stages: tuple[Stage, ...]
    identifier: str
    noun: str
    alone: bool = False
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def named(self, template: str) -> str:
        """A template for stages that know the identifier."""
        return words.fill(template, self.identifier, self.noun, alone=self.alone)

    def plain(self, template: str) -> str:
        """A template for those that do not."""
        return words.fill(template, "", self.noun)


def read_run(run: epath.Path, resolution: int = 0) -> FinishedRun:
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
    job = build.build(Job, config, "config")
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
    parts = (manifest.get("cascade") or {}).get("parts") or {}
    return FinishedRun(
        *(run, job, cascade, stages, subject["identifier"], subject["class_noun"]),
        alone=subject.get("alone", False),
        licences={name: each["licence"] for name, each in parts.items()},
        kept={
            name: each["step"]
            for name, each in (manifest.get("kept") or {}).items()
            if each
        },
    )


def tuned_steps(run: FinishedRun, stage: Stage) -> int:
    """Steps that a stage's parameters were tuned for; 0 if it is as it came.

    Raises:
        InputError: its tuning has not come to an end.
    """
    steps = _steps_in(run.path / stage.name)
    return run.kept.get(stage.name, steps) if steps else 0


def _steps_in(folder: epath.Path) -> int:
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


def learned_embedding(run: FinishedRun) -> LearnedEmbedding | None:
    """What a run's identifier was taught to mean; None where nothing was.

    Raises:
        InputError: the learning has not come to an end.
    """
    if run.job.text.steps == 0:
        return None
    folder = run.path / "text"
    if _steps_in(folder) == 0:
        raise InputError(
            f"{folder} does not exist: the identifier of this run was never learnt; "
            "run the training command again to finish it"
        )
    manifest = json.loads((run.path / "manifest.json").read_text())
    ids = dict.fromkeys(manifest["subject"]["identifier_ids"])
    tree, _ = checkpoints.read_params(folder)
    return LearnedEmbedding(tuple(ids), np.asarray(tree["rows"]["vectors"], np.float32))


def load_stage(
    run: FinishedRun, stage: Stage, mesh: jax.sharding.Mesh, dtype: Any
) -> LoadedStage:
    """A stage with the weights that the run left it, on the mesh.

    Raises:
        InputError: missing weights, or a tuning that has not come to an end.
    """
    source = getattr(run.job.weights, stage.name)
    steps = tuned_steps(run, stage)
    named = run.job.names(stage.name, steps)
    if steps == 0:
        part = load(run.cascade, stage.name, source, mesh, dtype, run.job.mesh.rules)
        return LoadedStage(stage, part, part.params, stage.normal_level, 0, named)
    # The weights it was tuned from stay on disk.
    tree, _ = checkpoints.read_params(run.path / stage.name)
    _, apply = network(run.cascade, stage.name, dtype)
    params = place(tree["unet"], mesh, run.job.mesh.rules)
    about = weight_origin(run.cascade, stage.name, source)
    known = about["sha256"], about["licence"], about["pretrained"]
    part = Part(apply, params, stage.name, source, *known)
    tuning = run.job.tuning(stage.name)
    stage = stage.tuned(tuning.hybrid)
    return LoadedStage(stage, part, params, tuning.level, steps, named)


def sample_prompts(
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
        ImageRequest(
            finished.named(prompt),
            finished.plain(prompt),
            seed,
            f"{index:04d}_{seed}",
        )
        for index, prompt in enumerate(prompts)
        for seed in seeds
    ]
    cache = cache_folder(job.cache, run)  # before anything is compiled
    mesh = placement.mesh_to_draw(finished.cascade, job)
    dtype = activation_dtype(job.dtype)
    folder = run / "samples" / name
    with jax.set_mesh(mesh), StopRequest() as stop:
        found, _ = embed_prompts(
            finished.cascade,
            [text for each in requests for text in (each.prompt, each.plain)],
            weights=job.weights.text,
            vocabulary=job.weights.vocabulary,
            cleaning=job.cleaning,
            cache=cache,
            mesh=mesh,
            dtype=dtype,
            learned=learned_embedding(finished),
            rules=job.mesh.rules,
        )
        story = run_metadata(run, finished.cascade, finished.identifier, finished.noun)
        for each, images in sample_cascade(
            [load_stage(finished, stage, mesh, dtype) for stage in finished.stages],
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
            if processes.is_first():
                target = folder / str(each.stage.resolution)
                drawn = image_metadata(each, getattr(job.pictures, each.stage.name))
                save_images(target, requests, images, story | drawn)
    return folder
