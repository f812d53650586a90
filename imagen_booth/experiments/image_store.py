"""Draws and keeps the pictures that the studies measure, stage by stage."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth import storage
from imagen_booth.cascade import by_name
from imagen_booth.config import build
from imagen_booth.config.schema import Job
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.rundir.layout import cache_folder
from imagen_booth.sampling import finished_run
from imagen_booth.sampling.cascade_sampler import (
    ImageRequest,
    LoadedStage,
    image_metadata,
    rows_at,
    sample_stage,
    save_images,
)
from imagen_booth.sampling.text_embeddings import LearnedEmbedding, embed_prompts
from imagen_booth.text.prompts import fill
from imagen_booth.weights import placement
from imagen_booth.weights.load import Part, load, resolve, weight_origin
from imagen_booth.weights.placement import activation_dtype


class ImageStore:
    """The stages of a cascade, as they came or as a run tuned them.

    Args:
        job: names the cascade, its weights, and the samplers of all pictures.
        folder: of the studies; runs are in ``runs/`` there.

    Attributes:
        cascade: as its weights describe it.
        origins: where the weights of every part come from, for a manifest.
    """

    def __init__(self, job: Job, folder: epath.Path):
        self.job = dataclasses.replace(job, cache=str(folder / "cache"))
        self.folder = folder
        self.cascade = resolve(by_name(job.cascade), dataclasses.asdict(job.weights))
        self.cache = cache_folder(self.job.cache, folder)
        self.mesh = placement.mesh_to_draw(self.cascade, job)
        self.dtype = activation_dtype(job.dtype)
        self.origins = {
            name: weight_origin(self.cascade, name, getattr(job.weights, name))
            for name in ("text", *(stage.name for stage in self.cascade.stages))
        }
        self._parts: dict[str, Part] = {}

    def run_folder(self, name: str) -> epath.Path:
        """Work directory of a run."""
        return self.folder / "runs" / name

    def manifest(self, name: str) -> dict[str, Any]:
        """What a run says of itself; empty before it begins."""
        file = self.run_folder(name) / "manifest.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def finished(self, name: str, job: Job) -> bool:
        """Whether a run is done, by these settings and from these weights."""
        manifest, file = self.manifest(name), self.run_folder(name) / "config.json"
        if manifest.get("status") != "done" or not file.exists():
            return False
        parts = manifest.get("cascade", {}).get("parts", {})
        made = build.build(Job, json.loads(file.read_text()), "config")
        return made == job and all(
            parts.get(part, {}).get("sha256") == each["sha256"]
            for part, each in self.origins.items()
        )

    def part(self, name: str) -> Part:
        """A stage's network with its weights as they came."""
        if name not in self._parts:
            source = getattr(self.job.weights, name)
            self._parts[name] = load(
                self.cascade,
                name,
                source,
                self.mesh,
                self.dtype,
                self.job.mesh.rules,
            )
        return self._parts[name]

    def ready(self, name: str, run: str = "") -> LoadedStage:
        """A stage to draw with: as a finished run tuned it, or as it came.

        Raises:
            InputError: the run has not come to its end.
        """
        stage = self.cascade.stage(name)
        if not run:
            part = self.part(name)
            return LoadedStage(stage, part, part.params, stage.normal_level, 0, False)
        finished = finished_run.read_run(self.run_folder(run))
        return finished_run.load_stage(finished, stage, self.mesh, self.dtype)

    def learned(self, run: str) -> LearnedEmbedding | None:
        """What a finished run's identifier was taught to mean; None where nothing was.

        Raises:
            InputError: the run has not come to its end.
        """
        return finished_run.learned_embedding(
            finished_run.read_run(self.run_folder(run))
        )

    def requests(
        self,
        templates: Sequence[str],
        seeds: Sequence[int],
        run: str = "",
        noun: str = "",
    ) -> list[ImageRequest]:
        """One picture per template and seed, in the words of a run.

        Args:
            run: whose identifier and class noun are filled in; "" for none.
            noun: the class noun where there is no run.
        """
        word, alone = "", False
        if run:
            said = self.manifest(run)["subject"]
            word, noun = said["identifier"], said["class_noun"]
            alone = said.get("alone", False)
        return [
            ImageRequest(
                fill(template, word, noun, alone=alone),
                fill(template, "", noun),
                seed,
                f"{index:02d}_{seed}",
            )
            for index, template in enumerate(templates)
            for seed in seeds
        ]

    def draw(
        self,
        name: str,
        ready: LoadedStage,
        requests: Sequence[ImageRequest],
        lows: Sequence[np.ndarray] | None = None,
        learned: LearnedEmbedding | None = None,
    ) -> list[epath.Path]:
        """Draws pictures with one stage, or finds them drawn already.

        Args:
            name: of their folder in ``pictures/``; it says which run drew them.
            lows: uint8 pictures to enlarge, one per request; None for the base stage.
            learned: what the run's identifier was taught to mean.

        Returns:
            A file per request.
        """
        folder = self.folder / "pictures" / name
        files = [folder / f"{request.name}.png" for request in requests]
        stage = ready.stage
        sampler = getattr(self.job.pictures, stage.name)
        made = {
            "requests": [dataclasses.asdict(each) for each in requests],
            "weights": [self.origins[part]["sha256"] for part in ("text", stage.name)],
            "steps": ready.steps,
            "level": ready.level,
            "sampler": dataclasses.asdict(sampler),
            **({"learned": learned.digest()} if learned is not None else {}),
        }
        done = folder / "drawn.json"
        if done.exists() and json.loads(done.read_text()) == made:
            return files
        spoken = [each.prompt if ready.named else each.plain for each in requests]
        rows = rows_at(stage, self.job.pictures.batch)
        drawn = []
        with jax.set_mesh(self.mesh), StopRequest() as stop:
            found, _ = embed_prompts(
                self.cascade,
                spoken,
                weights=self.job.weights.text,
                vocabulary=self.job.weights.vocabulary,
                cleaning=self.job.cleaning,
                cache=self.cache,
                mesh=self.mesh,
                dtype=self.dtype,
                learned=learned,
                rules=self.job.mesh.rules,
            )
            for start in range(0, len(requests), rows):
                stop.check()
                some = slice(start, start + rows)
                images = sample_stage(
                    stage,
                    ready.part,
                    ready.params,
                    sampler,
                    [found[prompt] for prompt in spoken[some]],
                    found[""],
                    [each.seed for each in requests[some]],
                    mesh=self.mesh,
                    low=None if lows is None else np.stack(lows[some]),
                    level=ready.level,
                    rows=rows,
                )
                drawn.append(images)
        story = {"run": name, "cascade": self.cascade.name}
        story |= {"licence": self.cascade.licence} | image_metadata(ready, sampler)
        save_images(folder, requests, np.concatenate(drawn), story)
        storage.write_atomic(done, json.dumps(made).encode())
        return files
