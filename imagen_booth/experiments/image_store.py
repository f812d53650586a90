"""The pictures of the studies: sampled once, then found on disk."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth import storage
from imagen_booth.cascade import by_name
from imagen_booth.config.schema import Job
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.evaluation.run_images import FIRST_SEED
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
from imagen_booth.text.prompts import fill, second_naming
from imagen_booth.weights import placement
from imagen_booth.weights.load import Part, load, resolve, weight_origin
from imagen_booth.weights.placement import activation_dtype


class ImageStore:
    """Samples pictures with the stages of a cascade, pretrained or fine-tuned.

    Args:
        job: Names the cascade, its weights, and the samplers of all pictures.
        folder: Folder of the studies. Its runs are in ``runs/``.

    Attributes:
        cascade: The cascade, as its weights describe it.
        origins: Origin of the weights of every part, for a manifest.
    """

    def __init__(self, job: Job, folder: epath.Path):
        self.job = dataclasses.replace(job, cache=str(folder / "cache"))
        self.folder = folder
        self.cascade = resolve(by_name(job.cascade), dataclasses.asdict(job.weights))
        self.cache = cache_folder(self.job.cache, folder)
        self.mesh = placement.sampling_mesh(self.cascade, job)
        self.dtype = activation_dtype(job.dtype)
        self.origins = {
            name: weight_origin(self.cascade, name, getattr(job.weights, name))
            for name in ("text", *(stage.name for stage in self.cascade.stages))
        }
        self._parts: dict[str, Part] = {}

    def run_folder(self, name: str) -> epath.Path:
        """The run directory of a run."""
        return self.folder / "runs" / name

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a run; empty before the run begins."""
        return storage.read_json(self.run_folder(name) / "manifest.json", None)

    def is_finished(self, name: str, job: Job) -> bool:
        """Whether a run is done with these settings and from these weights."""
        manifest, file = self.manifest(name), self.run_folder(name) / "config.json"
        if manifest.get("status") != "done" or not file.exists():
            return False
        parts = manifest.get("cascade", {}).get("parts", {})
        return finished_run.read_job(file) == job and all(
            parts.get(part, {}).get("fingerprint") == origin["fingerprint"]
            for part, origin in self.origins.items()
        )

    def pretrained_part(self, name: str) -> Part:
        """The network of a stage with its pretrained weights."""
        if name not in self._parts:
            source = getattr(self.job.weights, name)
            self._parts[name] = load(
                self.cascade,
                name,
                source,
                self.mesh,
                self.dtype,
                self.job.mesh.rules,
                train=False,
            )
        return self._parts[name]

    def load_stage(self, name: str, run: str = "") -> LoadedStage:
        """A stage as a finished run fine-tuned it, or pretrained where ``run`` is "".

        Raises:
            InputError: The run is not finished.
        """
        stage = self.cascade.stage(name)
        if not run:
            part = self.pretrained_part(name)
            return LoadedStage(stage, part, part.params, stage.normal_level, 0, False)
        finished = finished_run.read_run(self.run_folder(run))
        return finished_run.load_stage(finished, stage, self.mesh, self.dtype)

    def learned_embedding(self, run: str) -> LearnedEmbedding | None:
        """The embedding that Textual Inversion learned in a finished run, if it did.

        Raises:
            InputError: The run is not finished.
        """
        return finished_run.learned_embedding(
            finished_run.read_run(self.run_folder(run))
        )

    def requests(
        self,
        templates: Sequence[str],
        numbers: Sequence[int],
        run: str = "",
        noun: str = "",
    ) -> list[ImageRequest]:
        """One picture per template and number, with the identifier of a run.

        Args:
            numbers: Picture ``n`` has the seed ``FIRST_SEED + n``, so that no picture
                shares its noise with a class image.
            run: Run whose identifier and class noun are filled in; "" for none.
            noun: Class noun where there is no run.
        """
        word, alone, second, no_name = "", False, None, None
        if run:
            manifest = self.manifest(run)
            subject, second = manifest["subject"], second_naming(manifest)
            word, noun = subject["identifier"], subject["class_noun"]
            alone = subject.get("alone", False)
            no_name = second and second._replace(identifier="")
        return [
            ImageRequest(
                prompt=fill(template, word, noun, alone=alone, second=second),
                plain=fill(template, "", noun, second=no_name),
                seed=FIRST_SEED + number,
                name=f"{index:02d}_{number}",
            )
            for index, template in enumerate(templates)
            for number in numbers
        ]

    def sample(
        self,
        name: str,
        loaded: LoadedStage,
        requests: Sequence[ImageRequest],
        low_images: Sequence[np.ndarray] | None = None,
        learned: LearnedEmbedding | None = None,
    ) -> list[epath.Path]:
        """Samples pictures with one stage, unless they were sampled before.

        Args:
            name: Folder in ``pictures/``, which names the run.
            loaded: The stage.
            requests: The pictures.
            low_images: uint8 [r, r, 3] pictures to enlarge, one per request; None for
                the base stage.
            learned: Embedding of the run's identifier, where one was learned.

        Returns:
            One file per request.
        """
        folder = self.folder / "pictures" / name
        files = [folder / f"{request.name}.png" for request in requests]
        stage = loaded.stage
        sampler = getattr(self.job.pictures, stage.name)
        made_from = {
            "requests": [dataclasses.asdict(request) for request in requests],
            "weights": [
                self.origins[part]["fingerprint"] for part in ("text", stage.name)
            ],
            "steps": loaded.steps,
            "level": loaded.level,
            "sampler": dataclasses.asdict(sampler),
            **({"learned": learned.digest()} if learned is not None else {}),
        }
        record = folder / "drawn.json"
        if storage.read_json(record, None) == made_from:
            return files
        images = self._sample(loaded, requests, low_images, learned)
        metadata = {"run": name, "cascade": self.cascade.name}
        metadata |= {"licence": self.cascade.licence}
        metadata |= image_metadata(loaded, sampler)
        save_images(folder, requests, images, metadata)
        storage.write_atomic(record, json.dumps(made_from).encode())
        return files

    def _sample(
        self,
        loaded: LoadedStage,
        requests: Sequence[ImageRequest],
        low_images: Sequence[np.ndarray] | None,
        learned: LearnedEmbedding | None,
    ) -> np.ndarray:
        """Pictures, uint8 [N, R, R, 3], in batches of one shape."""
        stage = loaded.stage
        prompts = [
            each.prompt if loaded.uses_identifier else each.plain for each in requests
        ]
        rows = rows_at(stage, self.job.pictures.batch)
        batches = []
        with jax.set_mesh(self.mesh), StopRequest() as stop:
            embeddings, _ = embed_prompts(
                self.job,
                self.cascade,
                prompts,
                cache=self.cache,
                mesh=self.mesh,
                dtype=self.dtype,
                learned=learned,
            )
            for start in range(0, len(requests), rows):
                stop.check()
                batch = slice(start, start + rows)
                images = sample_stage(
                    stage,
                    loaded.part,
                    loaded.params,
                    getattr(self.job.pictures, stage.name),
                    [embeddings[prompt] for prompt in prompts[batch]],
                    embeddings[""],
                    [request.seed for request in requests[batch]],
                    mesh=self.mesh,
                    low=None if low_images is None else np.stack(low_images[batch]),
                    level=loaded.level,
                    rows=rows,
                )
                batches.append(images)
        return np.concatenate(batches)
