"""Samples many prompts with one finished run; an interrupted job resumes.

    RUN/samples/NAME/64, 256, 1024/   every image at every stage, WORDS_SEED_KEY.png
    RUN/samples/NAME/index.jsonl      one line per finished image
    RUN/samples/NAME/index.html       pages that show the images

KEY is a digest of everything an image depends on: the run's weights, the prompt, the
seed and the settings. An image whose file exists is not sampled again, so a stopped job
resumes, and a longer file of prompts samples only what is new. Each stage reads the
PNG files of the stage before it, so no other state is stored.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from imagen_booth.cascade import Stage
from imagen_booth.data import image_files
from imagen_booth.data.examples import Embedding
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import device_memory, processes
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import DoesNotFit
from imagen_booth.rundir import lock
from imagen_booth.rundir.layout import cache_folder
from imagen_booth.sampling import batch_plan, batch_report, finished_run
from imagen_booth.sampling.batch_plan import PlannedImage, StagePass
from imagen_booth.sampling.batch_progress import LOADING, NETWORKS, ImageIndex, TimeLog
from imagen_booth.sampling.cascade_sampler import (
    LoadedStage,
    rows_at,
    run_metadata,
    sample_stage,
)
from imagen_booth.sampling.finished_run import FinishedRun
from imagen_booth.sampling.text_embeddings import embed_prompts
from imagen_booth.text import prompt_files, prompt_suites
from imagen_booth.weights import placement
from imagen_booth.weights.load import frozen_shapes

log = logging.getLogger(__name__)

CHUNK = 500  # images that one stage samples before the next starts; also one page
FIRST_BATCH = 64  # images per accelerator, at first; a CPU gains nothing from more
WRITERS = 8  # threads that encode PNG files


def run_batch(
    path: epath.Path,
    source: str,
    name: str,
    *,
    seeds: int,
    first_seed: int = 0,
    resolution: int = 0,
    batch: int = 0,
) -> epath.Path:
    """Samples the missing images of a file or suite into ``RUN/samples/NAME``.

    Args:
        path: Run directory of a finished run.
        source: File or suite of prompts, see ``prompt_files.read_source``; its rows
            are read as they are needed.
        name: Name of the folder; "" for the name of the source.
        seeds: Images per prompt.
        first_seed: First seed of the prompts without a seed of their own.
        resolution: Stop at this size in pixels; 0 for the cascade's last stage.
        batch: Images per batch at 64 px; 0 for the run's own setting on a CPU and the
            largest batch that fits elsewhere.

    Returns:
        The folder.

    Raises:
        InputError: No finished run at ``path``, or prompts that cannot be sampled; all
            are listed, and nothing is sampled.
        Stopped: A signal arrived; the same call resumes.
        StorageError: A file cannot be written; the same call resumes.
        InUse: Another process samples into the folder.
        DoesNotFit: One image per device does not fit in memory.
    """
    run = finished_run.read_run(path, resolution)
    source = prompt_suites.fitting_suite(source, run.job.subject.class_noun)
    folder = batch_plan.job_folder(path, name or epath.Path(source).stem)
    rows = prompt_files.read_source(source)
    count = batch_plan.check_rows(run, f"--prompts={source}", rows(), first_seed, seeds)
    with _open_sampler(run, folder, batch, count, indexed=True) as sampler:
        planned = batch_plan.plan_images(run, sampler.passes, rows(), first_seed, seeds)
        pages = -(-count // CHUNK)
        for number in range(1, pages + 1):
            chunk = list(itertools.islice(planned, CHUNK))
            sampler.sample(chunk)
            if processes.is_first():
                batch_report.write(
                    folder,
                    [sampler.entry(each) for each in _unique(chunk, -1)],
                    run_metadata(path, run.cascade) | {"job": folder.name},
                    (number, pages),
                )
    log.info("%s", sampler.summary())
    return folder


def sample_prompts(
    path: epath.Path,
    prompts: Sequence[str],
    name: str,
    *,
    seeds: int,
    first_seed: int = 0,
    guidance: float | None = None,
    resolution: int = 0,
) -> epath.Path:
    """Samples a few prompts into ``RUN/samples/NAME``, beside what is there.

    ``contact_sheet.png`` in the folder of each resolution shows the images of the last
    call.

    Args:
        path, name, seeds, first_seed, resolution: As for ``run_batch``.
        prompts: [V] stands for the identifier and [N] for the class noun, [V2] and
            [N2] for those of a second subject.
        guidance: Guidance weight of the base stage; None for the run's.

    Returns, Raises:
        As ``run_batch``.
    """
    run = finished_run.read_run(path, resolution)
    folder = batch_plan.job_folder(path, name)
    rows = prompt_files.flag_rows(prompts, guidance)
    count = batch_plan.check_rows(run, "--prompt", rows, first_seed, seeds)
    batch = run.job.pictures.batch
    with _open_sampler(run, folder, batch, count, indexed=False) as sampler:
        planned = list(
            batch_plan.plan_images(run, sampler.passes, rows, first_seed, seeds)
        )
        for start in range(0, count, CHUNK):
            sampler.sample(planned[start : start + CHUNK])
    if processes.is_first():
        for number, stage in enumerate(run.stages):
            sheet = image_files.contact_sheet(
                [image_files.load_png(folder / each.files[number]) for each in planned],
                [each.named.prompt for each in planned],
            )
            image_files.save_png(
                folder / str(stage.resolution) / "contact_sheet.png",
                sheet,
                run_metadata(path, run.cascade, run.identifier, run.noun, run.second),
            )
    return folder


@contextlib.contextmanager
def _open_sampler(
    run: FinishedRun,
    folder: epath.Path,
    batch: int,
    count: int,
    *,
    indexed: bool,
) -> Iterator["_BatchSampler"]:
    """A sampler with its mesh, signal handler, PNG writers and progress bar.

    Args:
        batch: As for ``run_batch``.
        count: Images of the whole job, for the progress bar.
        indexed: Whether ``index.jsonl`` lists the finished images. One process at a
            time writes it.
    """
    cache_folder(run.job.cache, run.path)  # before anything is compiled
    mesh = placement.sampling_mesh(run.cascade, run.job)
    if not batch:
        on_cpu = jax.default_backend() == "cpu"
        batch = run.job.pictures.batch if on_cpu else FIRST_BATCH * mesh.size
    dtype = placement.activation_dtype(run.job.dtype)
    first = processes.is_first()
    with (
        lock.held(folder) if indexed else contextlib.nullcontext(),
        jax.set_mesh(mesh),
        StopRequest() as stop,
        concurrent.futures.ThreadPoolExecutor(WRITERS) as writers,
        tqdm.tqdm(
            total=count, desc=folder.name, unit="image", disable=not first
        ) as bar,
    ):
        index = ImageIndex(folder / "index.jsonl") if indexed and first else None
        sampler = _BatchSampler(
            run,
            batch_plan.stage_passes(run, dtype),
            folder,
            batch=batch,
            mesh=mesh,
            dtype=dtype,
            index=index,
            check_stop=stop.check,
            writers=writers,
            bar=bar,
        )
        try:
            yield sampler
        finally:
            if index is not None:
                index.flush()


def _unique(images: Iterable[PlannedImage], number: int) -> list[PlannedImage]:
    """The images without those that share their file at stage ``number``."""
    return list({each.files[number]: each for each in images}.values())


class _BatchSampler:
    """Samples chunks of images, one stage after the other."""

    def __init__(
        self,
        run: FinishedRun,
        passes: Sequence[StagePass],
        folder: epath.Path,
        *,
        batch: int,
        mesh: jax.sharding.Mesh,
        dtype: Any,
        index: ImageIndex | None,
        check_stop: Callable[[], None],
        writers: concurrent.futures.Executor,
        bar: tqdm.tqdm,
    ):
        self.run, self.passes, self.folder = run, passes, folder
        self.mesh, self.dtype, self.index = mesh, dtype, index
        self.check_stop, self.writers, self.bar = check_stop, writers, bar
        # Multiples of the device count; images beyond those planned are discarded.
        self.batch_rows = {
            each.stage.name: -(-rows_at(each.stage, batch) // mesh.size) * mesh.size
            for each in passes
        }
        self.resident: dict[str, LoadedStage] = {}
        self.applies: dict[str, Callable[..., Any]] = {}
        self.together = _fit_together(run, mesh, dtype)
        self.learned = finished_run.learned_embedding(run)
        # The batch that is being written: stage number, images, pending writers.
        self.writing: tuple[int, Sequence[PlannedImage], list[Any]] | None = None
        self.clock, self.sampled = TimeLog(), 0

    def sample(self, chunk: Sequence[PlannedImage]) -> None:
        """Samples the missing images of a chunk."""
        missing = self._missing(chunk)
        self.bar.update(len(chunk) - len(missing[-1]))
        if any(missing):
            if not self.together:
                self.resident.clear()  # room for the text encoder
            with self.clock.at(LOADING):
                embeddings = self._embed(missing)
            for number, images in enumerate(missing):
                if images:
                    self._sample_stage(number, images, embeddings)
        self._list(_unique(chunk, -1))

    def entry(self, image: PlannedImage) -> dict[str, Any]:
        """The line of ``index.jsonl`` for a finished image."""
        return {
            "file": image.files[-1],
            "prompt": image.named.prompt,
            "negative_prompt": image.named.negative,
            "seed": image.seed,
            "guidance": image.sampler(self.passes[0]).guidance,
            "family": image.family,
            "files": image.files,
        }

    def summary(self) -> str:
        """One sentence on the job's time and the host's share of it."""
        if not self.sampled:
            return "every image was there already"
        total = self.clock.total()
        networks, loading = (self.clock.spent[what] for what in (NETWORKS, LOADING))
        rest = total - networks - loading
        return (
            f"sampled {self.sampled} images, counting every stage, in {total:.1f} s: "
            f"{networks:.1f} s in the networks, {loading:.1f} s loading text and "
            f"weights, {rest:.1f} s of other host work, "
            f"{1000 * rest / self.sampled:.1f} ms per image or {rest / networks:.1%} "
            "of the networks' time"
        )

    def _missing(self, chunk: Sequence[PlannedImage]) -> list[list[PlannedImage]]:
        """The images to sample, by stage: process 0 decides, all processes obey."""
        absent = np.zeros((len(self.passes), len(chunk)), np.uint8)
        if processes.is_first():
            rows = list(range(len(chunk)))
            for number in reversed(range(len(self.passes))):
                rows = [
                    row
                    for row in rows
                    if not (self.folder / chunk[row].files[number]).exists()
                ]
                absent[number, rows] = 1
        absent = processes.broadcast(absent)
        return [
            _unique((chunk[row] for row in np.flatnonzero(stage).tolist()), number)
            for number, stage in enumerate(absent)
        ]

    def _list(self, images: Sequence[PlannedImage]) -> None:
        if self.index is not None:
            self.index.add(self.entry(each) for each in images)

    def _embed(self, missing: Sequence[Sequence[PlannedImage]]) -> dict[str, Embedding]:
        job = self.run.job
        texts = [
            text
            for each, images in zip(self.passes, missing, strict=True)
            for image in images
            for text in image.texts(each)
        ]
        embeddings, _ = embed_prompts(
            job,
            self.run.cascade,
            texts,
            cache=cache_folder(job.cache, self.run.path),
            mesh=self.mesh,
            dtype=self.dtype,
            learned=self.learned,
        )
        return embeddings

    def _load(self, stage: Stage) -> LoadedStage:
        """A stage with its weights; unloads the others if both do not fit."""
        if stage.name not in self.resident:
            if not self.together:
                self.resident.clear()
            loaded = finished_run.load_stage(self.run, stage, self.mesh, self.dtype)
            # The sampler is compiled for a forward function: reuse the first one.
            apply = self.applies.setdefault(stage.name, loaded.part.apply)
            part = dataclasses.replace(loaded.part, apply=apply)
            self.resident[stage.name] = dataclasses.replace(loaded, part=part)
        return self.resident[stage.name]

    def _sample_stage(
        self,
        number: int,
        images: Sequence[PlannedImage],
        embeddings: dict[str, Embedding],
    ) -> None:
        each = self.passes[number]
        with self.clock.at(LOADING):
            loaded = self._load(each.stage)
        groups: dict[SamplerConfig, list[PlannedImage]] = {}
        for image in images:
            groups.setdefault(image.sampler(each), []).append(image)
        for sampler, group in groups.items():
            while group:
                rows = self.batch_rows[each.stage.name]
                try:
                    self.check_stop()
                    with self.clock.at(NETWORKS):
                        pixels = self._sample_batch(
                            number, loaded, sampler, group[:rows], embeddings
                        )
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    self._halve(each.stage)
                    continue
                finally:
                    # The previous batch is written while this one is sampled, and
                    # listed whatever happens to this one.
                    self._finish_writing()
                self._start_writing(number, group[:rows], pixels)
                group = group[rows:]
        self._finish_writing()

    def _sample_batch(
        self,
        number: int,
        loaded: LoadedStage,
        sampler: SamplerConfig,
        images: Sequence[PlannedImage],
        embeddings: dict[str, Embedding],
    ) -> np.ndarray:
        texts = [image.texts(self.passes[number]) for image in images]
        low = None
        if number:
            below = [self.folder / image.files[number - 1] for image in images]
            low = np.stack([image_files.load_png(path) for path in below])
        return sample_stage(
            loaded.stage,
            loaded.part,
            loaded.params,
            sampler,
            [embeddings[each.prompt] for each in texts],
            [embeddings[each.negative] for each in texts],
            [image.seed for image in images],
            mesh=self.mesh,
            low=low,
            level=loaded.level,
            rows=self.batch_rows[loaded.stage.name],
        )

    def _halve(self, stage: Stage) -> None:
        rows, size = self.batch_rows[stage.name], self.mesh.size
        if rows == size:
            raise DoesNotFit(
                f"{stage.name} at {stage.resolution} px does not fit in memory, even "
                "with one image per device; give a lower --resolution"
            )
        self.batch_rows[stage.name] = fewer = rows // size // 2 * size
        log.warning(
            "%d images of %d px do not fit in memory; the batch is now %d images",
            rows,
            stage.resolution,
            fewer,
        )

    def _start_writing(
        self, number: int, images: Sequence[PlannedImage], pixels: np.ndarray
    ) -> None:
        """Starts to write a batch; each host writes its share of the rows."""
        each, run = self.passes[number], self.run
        names = run.identifier, run.noun, run.second
        shared = run_metadata(run.path, run.cascade, *names) | {
            "stage": each.stage.name,
            "weights": each.weights,
            "tuned_steps": str(each.steps),
            **({"learned": self.learned.digest()} if self.learned else {}),
        }
        if each.stage.name in run.licences:
            shared["weights_licence"] = run.licences[each.stage.name]

        def write(row: int) -> None:
            image = images[row]
            own = {
                "prompt": image.named.prompt,
                "seed": str(image.seed),
                "sampler": json.dumps(dataclasses.asdict(image.sampler(each))),
            }
            if image.named.negative:
                own["negative_prompt"] = image.named.negative
            if image.family:
                own["family"] = image.family
            path = self.folder / image.files[number]
            image_files.save_png(path, pixels[row], own | shared)

        mine = range(processes.index(), len(images), processes.count())
        pending = [self.writers.submit(write, row) for row in mine]
        self.writing = (number, images, pending)

    def _finish_writing(self) -> None:
        """Waits until the batch is written, and lists the images it finishes.

        Raises:
            StorageError: An image cannot be written.
        """
        if self.writing is None:
            return
        (number, images, pending), self.writing = self.writing, None
        for each in concurrent.futures.as_completed(pending):
            each.result()  # raises the writer's error
        processes.wait("batch")
        self.sampled += len(images)
        if number == len(self.passes) - 1:
            self._list(images)
            self.bar.update(len(images))


def _fit_together(run: FinishedRun, mesh: jax.sharding.Mesh, dtype: Any) -> bool:
    """Whether all U-Nets fit in half of the memory; activations need the rest."""
    room = device_memory.available()
    if room is None:
        return False
    size = 0
    for stage in run.stages:
        parameters = frozen_shapes(run.cascade, stage.name, dtype)
        size += device_memory.size_per_device(
            parameters, mesh, run.job.mesh.rules, "unet"
        )
    return size <= room // 2
