"""Batch jobs: many prompts with one run, in as many sittings as it takes.

    RUN/samples/NAME/64, 256, 1024/   every picture at every stage, WORDS_SEED_KEY.png
    RUN/samples/NAME/index.jsonl      a line for each that is finished
    RUN/samples/NAME/index.html       pages to look at them

The key is a digest of all that makes a picture: the run's weights, prompt, seed and
settings.  What is there under its name is never drawn again, so a job that was stopped
anywhere goes on from there, and a longer file of prompts draws what is new.  The
pictures of a stage are what the next one reads: nothing else has to be kept.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
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
from imagen_booth.weights.load import shapes
from imagen_booth.weights.placement import activation_dtype

log = logging.getLogger(__name__)

CHUNK = 500  # pictures drawn with one stage before the next, and shown on one page
FIRST_BATCH = 64  # per accelerator, at first; a CPU gains nothing from large batches
WRITERS = 8  # threads that pack PNG files


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
    """Draws what is missing of a job into ``RUN/samples/NAME``.

    Args:
        path: work directory of a finished run.
        source: of the prompts, see ``batch_plan.rows_of``; read as they are needed.
        name: of the folder; "" for the source's.
        seeds: pictures per prompt.
        first_seed: of prompts that have none of their own.
        resolution: stop at this size in pixels; 0 for the cascade's last.
        batch: pictures drawn together at 64 px; 0 for the run's own on a CPU and for
            what fits elsewhere.

    Returns:
        The folder.

    Raises:
        InputError: no finished run there, or prompts that it cannot draw; all are
            named, and nothing is drawn.
        Stopped: a signal came; the same call goes on from there.
        StorageError: something cannot be written; likewise.
        DoesNotFit: not even one picture per device.
    """
    run = finished_run.read_run(path, resolution)
    source = prompt_suites.fitting_suite(source, run.job.subject.class_noun)
    rows = prompt_files.read_source(source)
    count = batch_plan.check_rows(run, source, rows(), first_seed, seeds)
    cache_folder(run.job.cache, path)  # before anything is compiled
    mesh = placement.mesh_to_draw(run.cascade, run.job)
    dtype = activation_dtype(run.job.dtype)
    passes = batch_plan.stage_passes(run, dtype)
    if not batch:
        on_cpu = jax.default_backend() == "cpu"
        batch = run.job.pictures.batch if on_cpu else FIRST_BATCH * mesh.size
    name = name or epath.Path(source).stem
    folder = path / "samples" / name
    found = batch_plan.plan_images(run, passes, rows(), first_seed, seeds)
    with (
        jax.set_mesh(mesh),
        StopRequest() as stop,
        concurrent.futures.ThreadPoolExecutor(WRITERS) as writers,
        tqdm.tqdm(
            total=count, desc=name, unit="picture", disable=not processes.is_first()
        ) as bar,
    ):
        easel = _BatchSampler(
            run, passes, folder, batch, mesh, dtype, stop.check, writers, bar
        )
        pages = -(-count // CHUNK)
        for number in range(1, pages + 1):
            some = list(itertools.islice(found, CHUNK))
            easel.draw(some)
            if processes.is_first():
                batch_report.write(
                    folder,
                    [easel.entry(each) for each in _once(some, -1)],
                    run_metadata(path, run.cascade) | {"job": name},
                    (number, pages),
                )
    log.info("%s", easel.summary())
    return folder


def _once(some: Iterable[PlannedImage], number: int) -> list[PlannedImage]:
    """Without those whose picture at stage ``number`` comes twice."""
    return list({each.files[number]: each for each in some}.values())


class _BatchSampler:
    """Draws chunks of pictures, one stage after the other."""

    def __init__(
        self,
        run: FinishedRun,
        passes: Sequence[StagePass],
        folder: epath.Path,
        batch: int,
        mesh: jax.sharding.Mesh,
        dtype: Any,
        check_stop: Callable[[], None],
        writers: concurrent.futures.Executor,
        bar: tqdm.tqdm,
    ):
        self.run, self.passes, self.folder = run, passes, folder
        self.mesh, self.dtype = mesh, dtype
        self.check_stop, self.writers, self.bar = check_stop, writers, bar
        # Multiples of the devices: what is drawn beyond the pictures is thrown away.
        self.rows = {
            each.stage.name: -(-rows_at(each.stage, batch) // mesh.size) * mesh.size
            for each in passes
        }
        self.index = (
            ImageIndex(folder / "index.jsonl") if processes.is_first() else None
        )
        self.resident: dict[str, LoadedStage] = {}
        self.applies: dict[str, Callable[..., Any]] = {}
        self.together = _fit_together(run, mesh)
        self.learned = finished_run.learned_embedding(run)
        # A batch on its way to the disk: its stage, its pictures, what packs them.
        self.writing: tuple[int, Sequence[PlannedImage], list[Any]] | None = None
        self.clock, self.drawn = TimeLog(), 0

    def draw(self, chunk: Sequence[PlannedImage]) -> None:
        """Draws what is missing of a chunk."""
        wanted, missing = [], chunk
        for number in reversed(range(len(self.passes))):
            missing = [
                each
                for each in _once(missing, number)
                # One answer for all hosts, or they would draw different batches.
                if processes.any_host(not (self.folder / each.files[number]).exists())
            ]
            wanted.insert(0, missing)
        self.bar.update(len(chunk) - len(wanted[-1]))
        if any(wanted):
            if not self.together:
                self.resident.clear()  # room for the text encoder
            with self.clock.at(LOADING):
                found = self._embed(wanted)
            for number, some in enumerate(wanted):
                if some:
                    self._draw_stage(number, some, found)
        self._list(_once(chunk, -1))

    def entry(self, picture: PlannedImage) -> dict[str, Any]:
        """A finished picture as ``index.jsonl`` has it."""
        first = self.passes[0]
        return {
            "file": picture.files[-1],
            "prompt": picture.named.prompt,
            "negative_prompt": picture.named.negative,
            "seed": picture.seed,
            "guidance": picture.sampler(first).guidance,
            "family": picture.family,
            "files": picture.files,
        }

    def summary(self) -> str:
        """What a job took, and how much of that is the host's."""
        if not self.drawn:
            return "nothing was missing"
        total = self.clock.total()
        networks, loading = (self.clock.spent[what] for what in (NETWORKS, LOADING))
        rest = total - networks - loading
        return (
            f"drew {self.drawn} pictures, those of every stage counted, in "
            f"{total:.1f} s: {networks:.1f} s in the networks, {loading:.1f} s on text "
            f"and weights, {rest:.1f} s on the host beside them, "
            f"{1000 * rest / self.drawn:.1f} ms a picture or {rest / networks:.1%} of "
            "the networks' time"
        )

    def _list(self, some: Sequence[PlannedImage]) -> None:
        if self.index is not None:
            self.index.add(self.entry(each) for each in some)

    def _embed(self, wanted: Sequence[Sequence[PlannedImage]]) -> dict[str, Embedding]:
        job = self.run.job
        spoken = [
            text
            for each, some in zip(self.passes, wanted, strict=True)
            for picture in some
            for text in picture.spoken(each)
        ]
        found, _ = embed_prompts(
            self.run.cascade,
            spoken,
            weights=job.weights.text,
            vocabulary=job.weights.vocabulary,
            cleaning=job.cleaning,
            cache=cache_folder(job.cache, self.run.path),
            mesh=self.mesh,
            dtype=self.dtype,
            learned=self.learned,
            rules=job.mesh.rules,
        )
        return found

    def _ready(self, stage: Stage) -> LoadedStage:
        """A stage's weights; those of another go first where both have no room."""
        if stage.name not in self.resident:
            if not self.together:
                self.resident.clear()
            ready = finished_run.load_stage(self.run, stage, self.mesh, self.dtype)
            # The sampler is compiled for a forward function: keep to the first one.
            apply = self.applies.setdefault(stage.name, ready.part.apply)
            part = dataclasses.replace(ready.part, apply=apply)
            self.resident[stage.name] = dataclasses.replace(ready, part=part)
        return self.resident[stage.name]

    def _draw_stage(
        self, number: int, some: Sequence[PlannedImage], found: dict[str, Embedding]
    ) -> None:
        each = self.passes[number]
        with self.clock.at(LOADING):
            ready = self._ready(each.stage)
        groups: dict[SamplerConfig, list[PlannedImage]] = {}
        for picture in some:
            groups.setdefault(picture.sampler(each), []).append(picture)
        for sampler, group in groups.items():
            while group:
                rows = self.rows[each.stage.name]
                try:
                    self.check_stop()
                    with self.clock.at(NETWORKS):
                        images = self._draw_batch(
                            number, ready, sampler, group[:rows], found
                        )
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    self._halve(each.stage)
                    continue
                finally:
                    # What was drawn before is packed while this is drawn, and kept
                    # whatever becomes of this.
                    self._finish()
                self._write(number, group[:rows], images)
                group = group[rows:]
        self._finish()

    def _draw_batch(
        self,
        number: int,
        ready: LoadedStage,
        sampler: SamplerConfig,
        some: Sequence[PlannedImage],
        found: dict[str, Embedding],
    ) -> np.ndarray:
        spoken = [picture.spoken(self.passes[number]) for picture in some]
        low = None
        if number:
            below = [self.folder / picture.files[number - 1] for picture in some]
            low = np.stack([image_files.load_png(path) for path in below])
        return sample_stage(
            ready.stage,
            ready.part,
            ready.params,
            sampler,
            [found[each.prompt] for each in spoken],
            [found[each.negative] for each in spoken],
            [picture.seed for picture in some],
            mesh=self.mesh,
            low=low,
            level=ready.level,
            rows=self.rows[ready.stage.name],
        )

    def _halve(self, stage: Stage) -> None:
        rows, size = self.rows[stage.name], self.mesh.size
        if rows == size:
            raise DoesNotFit(
                f"{stage.name} at {stage.resolution} px does not fit in memory, not "
                "with one picture per device; give a --resolution below that"
            )
        self.rows[stage.name] = fewer = rows // size // 2 * size
        log.warning(
            "%d pictures of %d px do not fit in memory; going on with %d at a time",
            *(rows, stage.resolution, fewer),
        )

    def _write(
        self, number: int, some: Sequence[PlannedImage], images: np.ndarray
    ) -> None:
        """Begins to store a batch; each host packs its share of the rows."""
        each, run = self.passes[number], self.run
        story = run_metadata(run.path, run.cascade) | {
            "subject": run.noun,
            "identifier": run.identifier,
            "stage": each.stage.name,
            "weights": each.weights,
            "tuned_steps": str(each.steps),
            **({"learned": self.learned.digest()} if self.learned else {}),
        }
        if each.stage.name in run.licences:
            story["weights_licence"] = run.licences[each.stage.name]

        def store(row: int) -> None:
            picture = some[row]
            about = {
                "prompt": picture.named.prompt,
                "seed": str(picture.seed),
                "sampler": json.dumps(dataclasses.asdict(picture.sampler(each))),
            }
            if picture.named.negative:
                about["negative_prompt"] = picture.named.negative
            if picture.family:
                about["family"] = picture.family
            path = self.folder / picture.files[number]
            image_files.save_png(path, images[row], about | story)

        mine = range(processes.index(), len(some), processes.count())
        self.writing = (number, some, [self.writers.submit(store, row) for row in mine])

    def _finish(self) -> None:
        """Waits for the batch that is being stored, and lists what it finishes.

        Raises:
            StorageError: a picture cannot be written.
        """
        if self.writing is None:
            return
        (number, some, packing), self.writing = self.writing, None
        for each in concurrent.futures.as_completed(packing):
            each.result()  # raises what a writer raised
        processes.wait("batch")
        self.drawn += len(some)
        if number == len(self.passes) - 1:
            self._list(some)
            self.bar.update(len(some))


def _fit_together(run: FinishedRun, mesh: jax.sharding.Mesh) -> bool:
    """Whether all U-Nets may stay: by half the memory, the rest is for the work."""
    room = device_memory.available()
    if room is None:
        return False
    size = 0
    for stage in run.stages:
        parameters = shapes(run.cascade, stage.name)
        size += device_memory.size_per_device(
            parameters, mesh, run.job.mesh.rules, "unet"
        )
    return size <= room // 2
