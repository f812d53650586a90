"""Reads a finished run: its settings, its words, its weights."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth.cascade import Cascade, Stage, by_name
from imagen_booth.config import build
from imagen_booth.config.schema import Job
from imagen_booth.errors import InputError
from imagen_booth.models import lora
from imagen_booth.rundir import checkpoints
from imagen_booth.rundir.layout import TRAIN_AGAIN
from imagen_booth.sampling.cascade_sampler import LoadedStage
from imagen_booth.sampling.text_embeddings import LearnedEmbedding
from imagen_booth.storage import read_json
from imagen_booth.text import prompts
from imagen_booth.text.prompts import Naming
from imagen_booth.weights.load import Part, load, network, place, resolve, weight_origin


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run, without its weights.

    Attributes:
        path: The run directory.
        job: The settings.
        cascade: The model.
        stages: The stages to sample with, from low to high resolution.
        identifier, noun: What [V] and [N] stand for.
        alone: Whether the identifier also replaces a noun right after it.
        second: What [V2] and [N2] stand for; None for a run of one subject.
        licences: Licence of the weights of each part.
        final_steps: Step of the parameters that a stage ended with, by stage, where it
            is not the last step.
    """

    path: epath.Path
    job: Job
    cascade: Cascade
    stages: tuple[Stage, ...]
    identifier: str
    noun: str
    alone: bool = False
    second: Naming | None = None
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    final_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def with_identifier(self, template: str) -> str:
        """The prompt for stages that know the identifier."""
        return prompts.fill(
            template, self.identifier, self.noun, alone=self.alone, second=self.second
        )

    def plain(self, template: str) -> str:
        """The prompt for stages that do not know the identifier."""
        second = self.second and self.second._replace(identifier="")
        return prompts.fill(template, "", self.noun, second=second)


def read_job(file: epath.Path) -> Job:
    """Reads the settings of a run, its ``config.json``.

    Raises:
        InputError: It is damaged, or has settings of another version.
    """
    config = read_json(file, TRAIN_AGAIN)
    try:
        return build.build(Job, config, "config")
    except InputError as error:
        raise InputError(
            f"{file}: {error}. Another version of imagen_booth wrote it: use that "
            "version, or correct the setting in the file"
        ) from error


def read_run(run: epath.Path, resolution: int = 0) -> FinishedRun:
    """Reads the settings and the manifest of a run; reads no weights.

    Args:
        run: The run directory.
        resolution: Stop at this size in pixels; 0 for the cascade's last stage.

    Raises:
        InputError: No run at this path, one of another version with other settings, or
            no stage of this resolution.
    """
    files = [run / file for file in ("config.json", "manifest.json")]
    if not all(file.exists() for file in files):
        raise InputError(f"--run={run} is not the run directory of a run")
    job, manifest = read_job(files[0]), read_json(files[1], TRAIN_AGAIN)
    cascade = resolve(by_name(job.cascade), dataclasses.asdict(job.weights))
    sizes = [stage.resolution for stage in cascade.stages]
    if resolution and resolution not in sizes:
        raise InputError(
            f"--resolution={resolution} is not the resolution of a stage of "
            f"{cascade.name}; use one of {', '.join(map(str, sizes))}"
        )
    subject = manifest["subject"]
    parts = (manifest.get("cascade") or {}).get("parts") or {}
    kept = manifest.get("kept") or {}
    return FinishedRun(
        path=run,
        job=job,
        cascade=cascade,
        stages=tuple(
            stage
            for stage in cascade.stages
            if not resolution or stage.resolution <= resolution
        ),
        identifier=subject["identifier"],
        noun=subject["class_noun"],
        alone=subject.get("alone", False),
        second=prompts.second_naming(manifest),
        licences={name: part["licence"] for name, part in parts.items()},
        final_steps={name: each["step"] for name, each in kept.items() if each},
    )


def finetuned_steps(run: FinishedRun, stage: Stage) -> int:
    """Steps of fine-tuning behind a stage's parameters; 0 if it is as published.

    Raises:
        InputError: Its fine-tuning is not finished.
    """
    steps = _last_step(run.path / stage.name)
    return run.final_steps.get(stage.name, steps) if steps else 0


def _last_step(folder: epath.Path) -> int:
    if not folder.exists():
        return 0
    names = [each.parent.name for each in folder.glob("*/params")]
    steps = [int(name) for name in names if name.isdecimal()]
    if not steps:
        raise InputError(
            f"{folder} has no finished checkpoint; run the training command again to "
            "finish it"
        )
    return max(steps)


def learned_embedding(run: FinishedRun) -> LearnedEmbedding | None:
    """The embedding that Textual Inversion learned; None for a run without it.

    Raises:
        InputError: Textual Inversion is not finished.
    """
    if run.job.text.steps == 0:
        return None
    folder = run.path / "text"
    if _last_step(folder) == 0:
        raise InputError(
            f"{folder} does not exist: this run has not learned the embedding of its "
            "identifier; run the training command again to finish it"
        )
    manifest = read_json(run.path / "manifest.json", TRAIN_AGAIN)
    ids = dict.fromkeys(manifest["subject"]["identifier_ids"])
    tree, _ = checkpoints.read_params(folder)
    return LearnedEmbedding(
        ids=tuple(ids), rows=np.asarray(tree["rows"]["vectors"], np.float32)
    )


def load_stage(
    run: FinishedRun, stage: Stage, mesh: jax.sharding.Mesh, dtype: Any
) -> LoadedStage:
    """A stage with the weights that the run ended with, on the mesh.

    Raises:
        InputError: Missing weights, or fine-tuning that is not finished.
    """
    source = getattr(run.job.weights, stage.name)
    rules = run.job.mesh.rules
    steps = finetuned_steps(run, stage)
    uses_identifier = run.job.uses_identifier(stage.name, steps)
    if steps == 0:
        part = load(run.cascade, stage.name, source, mesh, dtype, rules, train=False)
        return LoadedStage(
            stage=stage,
            part=part,
            params=part.params,
            level=stage.normal_level,
            steps=0,
            uses_identifier=uses_identifier,
        )
    tuning = run.job.finetuning(stage.name)
    tree, _ = checkpoints.read_params(run.path / stage.name)
    if tuning.adapts:
        part = load(run.cascade, stage.name, source, mesh, dtype, rules, train=False)
        add = jax.jit(functools.partial(lora.add, scale=tuning.adapter.scale))
        part = dataclasses.replace(
            part, params=add(part.params, place(tree["adapter"], mesh))
        )
    else:
        # The weights from before fine-tuning stay on disk.
        _, apply = network(run.cascade, stage.name, dtype)
        origin = weight_origin(run.cascade, stage.name, source)
        part = Part(
            apply=apply,
            params=place(tree["unet"], mesh, rules, dtype),
            name=stage.name,
            source=source,
            fingerprint=origin["fingerprint"],
            licence=origin["licence"],
            pretrained=origin["pretrained"],
        )
    return LoadedStage(
        stage=stage.after_finetuning(tuning.hybrid),
        part=part,
        params=part.params,
        level=tuning.level,
        steps=steps,
        uses_identifier=uses_identifier,
    )
