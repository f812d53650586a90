"""Many subjects in one job, each as a run of ``dreambooth``, and what they share.

read the subjects -> check all -> embed all prompts -> the run of each -> index page

``DIR/NAME`` is what a job of this subject alone leaves there, bit for bit; a job only
does once what several runs need: weights are read, programs traced and compiled,
prompts embedded and class images sampled once. A subject that fails does not stop the
others. Several processes on one folder, on one machine or on many, share the subjects
by the locks of the run directories: each takes one that is not done and not owned, and
the subjects of a process that died go to the others.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth import dreambooth
from imagen_booth.config import subject_table
from imagen_booth.config.schema import REFUSE, Job, Subjects
from imagen_booth.distributed import processes
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import BoothError, InputError, InUse, Stopped, SubjectsFailed
from imagen_booth.reports import subject_costs, subjects_page
from imagen_booth.reports.subject_costs import SubjectCost
from imagen_booth.rundir import programs
from imagen_booth.rundir.layout import RunDirectory, cache_folder, utc_now
from imagen_booth.rundir.lock import PAUSE, FolderLock
from imagen_booth.sampling.text_embeddings import embed_prompts
from imagen_booth.storage import read_json
from imagen_booth.training import run_checks, subject_prompts
from imagen_booth.training.run_checks import AcceptedRun
from imagen_booth.weights import host_copies

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AcceptedSubject:
    """A subject that was found good.

    Attributes:
        name: Its name and that of its run directory.
        job: Its settings.
        accepted: What the checks found.
        seconds: Seconds that they took.
    """

    name: str
    job: Job
    accepted: AcceptedRun
    seconds: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a subject failed; it holds no arrays, as the error's traceback does."""

    text: str
    exit_code: int


def run(
    settings: Subjects,
    job: Job,
    workdir: epath.Path,
    overwrite: frozenset[str],
    *,
    profile: bool = False,
) -> epath.Path:
    """Runs the subjects of a job that are not done, and returns the index page.

    Args:
        settings: The subjects, and what happens to bad ones.
        job: The settings of all of them.
        workdir: Folder of the run directories, local or ``gs://``.
        overwrite: Parts of each run to redo, see ``rundir.layout.PARTS``.
        profile: Whether to trace early steps of each stage of each run.

    Raises:
        InputError: Some subjects cannot be trained; found before any work.
        Stopped: A signal came; the same command resumes the job.
        SubjectsFailed: Some subjects failed; the others are done.
        StorageError: The index page cannot be written.
    """
    cache_folder(job.cache, workdir / "run")  # before anything is compiled
    with StopRequest() as stop, programs.shared():
        subjects, problems = check(settings, job, workdir, overwrite)
        if problems and (settings.bad_subjects == REFUSE or not subjects):
            raise InputError(refusal(problems))
        for problem in problems:
            log.warning("not trained: %s", problem)
        work = _ManyRuns(settings, workdir, overwrite, problems, subjects, profile)
        try:
            work.run(stop)
        finally:
            page = work.write_page()
    table = work.costs()
    if table and processes.is_first():
        print(subject_costs.in_text(table))
    if work.failures:
        raise SubjectsFailed(
            f"{len(work.failures)} of {len(subjects)} subjects failed, see {page}:\n"
            + "\n".join(f"  {name}: {one.text}" for name, one in work.failures.items()),
            max(one.exit_code for one in work.failures.values()),
        )
    return page


def check(
    settings: Subjects, job: Job, workdir: epath.Path, overwrite: frozenset[str]
) -> tuple[list[AcceptedSubject], list[str]]:
    """Checks every subject as a job of its own is checked.

    Returns:
        The good ones, and what is wrong with the others, one sentence each.

    Raises:
        InputError: The list of subjects cannot be read.
    """
    good, problems = [], []
    for row in subject_table.read(settings, job):
        found, begun = list(row.problems), time.perf_counter()
        if row.job is not None:
            try:
                photos = row.job.subject.photos
                processes.check_same_files(f"the photos of {row.name}", photos)
                directory = RunDirectory(workdir / row.name, overwrite)
                accepted = run_checks.check_run(row.job, directory)
                seconds = time.perf_counter() - begun
                good.append(AcceptedSubject(row.name, row.job, accepted, seconds))
            except BoothError as error:
                found.append(str(error))
        known = f" ({row.name})" if row.name and row.name not in row.where else ""
        problems += [f"{row.where}{known}: {problem}" for problem in found]
    return good, problems


def refusal(problems: Sequence[str]) -> str:
    """The error that names every bad subject."""
    return "\n".join(
        [
            f"{len(problems)} problem{'s' * (len(problems) > 1)} in the subjects, and "
            "nothing is trained; give --config.bad_subjects=skip to train the others:",
            *(f"  {problem}" for problem in problems),
        ]
    )


class _ManyRuns:
    """The runs of the accepted subjects, in this process.

    Attributes:
        failures: Subjects that failed here, by name.
    """

    def __init__(
        self,
        settings: Subjects,
        workdir: epath.Path,
        overwrite: frozenset[str],
        problems: Sequence[str],
        subjects: Sequence[AcceptedSubject],
        profile: bool,
    ):
        self._settings, self._workdir, self._profile = settings, workdir, profile
        self._overwrite, self._problems = overwrite, problems
        self._subjects = {subject.name: subject for subject in subjects}
        self._trained = 0
        self._begun = utc_now()
        self._shared: dict[str, float] = {}  # seconds for all, which the first pays
        self.failures: dict[str, Failure] = {}

    def run(self, stop: StopRequest) -> None:
        """Runs every subject that is not done and that no other process runs.

        It returns when all are done or failed, also those of other processes.
        """
        waiting = {
            name: FolderLock(self._workdir / name)
            for name, subject in self._subjects.items()
            if not self._is_done(subject)
        }
        done = len(self._subjects) - len(waiting)
        log.info("%d subjects, %d of them done", len(self._subjects), done)
        first = [self._subjects[name] for name in waiting]
        with contextlib.ExitStack() as copies:
            if any(each.job.text.steps > 0 for each in first):
                # Textual Inversion needs the encoder again.
                copies.enter_context(host_copies.shared())
            self._embed_prompts(first)
            copies.enter_context(host_copies.shared())
            self._take_turns(waiting, stop)

    def _take_turns(self, waiting: dict[str, FolderLock], stop: StopRequest) -> None:
        """Runs the subjects one by one, each when no other process owns it."""
        logged = False
        while waiting:
            taken = False
            for name, lock in list(waiting.items()):
                stop.check()
                if self._is_done(self._subjects[name]):
                    del waiting[name]
                elif _take(lock):
                    taken = True
                    del waiting[name]
                    try:
                        self._run_one(self._subjects[name])
                    finally:
                        lock.release()
            if waiting and not taken:
                if not logged:
                    log.info("other processes run %s", ", ".join(waiting))
                logged = True
                time.sleep(PAUSE)

    def _embed_prompts(self, subjects: Sequence[AcceptedSubject]) -> None:
        """Embeds all prompts of some subjects into their cache, in one pass."""
        groups: dict[Any, list[AcceptedSubject]] = defaultdict(list)
        for each in subjects:
            job, accepted = each.job, each.accepted
            devices = accepted.mesh, accepted.dtype, job.mesh.rules
            cache = cache_folder(job.cache, self._workdir / each.name)
            text = job.weights.text, job.weights.vocabulary, job.cleaning, cache
            groups[accepted.cascade, devices, text].append(each)
        begun = time.perf_counter()
        for (cascade, (mesh, dtype, _), (*_, cache)), some in groups.items():
            prompts = [
                prompt
                for each in some
                for prompt in subject_prompts.choose_prompts(each.job, cascade).every
            ]
            with jax.set_mesh(mesh):  # as in a run: it decides how rows are spread
                embed_prompts(
                    some[0].job, cascade, prompts, cache=cache, mesh=mesh, dtype=dtype
                )
        self._shared["text"] = time.perf_counter() - begun

    def _run_one(self, subject: AcceptedSubject) -> None:
        """Runs one subject, whose run directory this process owns."""
        begun = time.perf_counter()
        try:
            directory = RunDirectory(self._workdir / subject.name, self._overwrite)
            is_new = not directory.manifest
            log.info("%s: a run of its own in %s", subject.name, directory.path)
            dreambooth.run_accepted(
                subject.job,
                subject.accepted,
                directory,
                profile=self._profile,
            )
            if is_new and processes.is_first():
                seconds = time.perf_counter() - begun
                self._record_cost(subject, directory, seconds)
            self._trained += 1
        except Stopped:
            raise
        except Exception as error:
            if processes.is_lost_host(error):
                raise
            self._record_failure(subject, error)
        self.write_page()

    def _record_failure(self, subject: AcceptedSubject, error: Exception) -> None:
        code, text = BoothError.exit_code, f"{type(error).__name__}: {error}"
        if isinstance(error, BoothError):
            code = error.exit_code
            log.warning("%s failed: %s", subject.name, text)
        else:
            log.warning("%s failed", subject.name, exc_info=error)
            with contextlib.suppress(BoothError, OSError):  # the first error counts
                RunDirectory(self._workdir / subject.name).record(status=text)
        self.failures[subject.name] = Failure(text, code)

    def _record_cost(
        self, subject: AcceptedSubject, directory: RunDirectory, seconds: float
    ) -> None:
        parts = {"checks": subject.seconds} | directory.manifest["timings"]
        parts["the rest"] = subject.seconds + seconds - sum(parts.values())
        if not self._trained:
            parts |= {name: parts[name] + more for name, more in self._shared.items()}
        cost = SubjectCost(parts, not self._trained, subject.accepted.mesh.size)
        folder = self._workdir / subject_costs.FOLDER
        subject_costs.record(folder, subject.name, cost)

    def costs(self) -> list[tuple[str, str, str]]:
        """The cost of the first and of each further subject."""
        found = subject_costs.read(self._workdir / subject_costs.FOLDER)
        return subject_costs.table(found, self._settings.price)

    def write_page(self) -> epath.Path:
        """Writes the index page of what is there now."""
        if processes.is_first():
            failed = {name: one.text for name, one in self.failures.items()}
            subjects_page.write(
                self._workdir,
                list(self._subjects),
                self._problems,
                failed,
                self.costs(),
            )
        return self._workdir / subjects_page.PAGE

    def _is_done(self, subject: AcceptedSubject) -> bool:
        """Whether a run is finished with its settings, and nothing is to be redone."""
        return processes.decide(lambda: self._finds_done(subject))

    def _finds_done(self, subject: AcceptedSubject) -> bool:
        folder = self._workdir / subject.name
        manifest = read_json(folder / "manifest.json", None)
        finished = manifest.get("finished", "")
        if manifest.get("status") != "done" or manifest.get("reported") != finished:
            return False  # the page may be that of an earlier stop
        if not (folder / "report.html").exists():
            return False
        if self._overwrite and finished <= self._begun:
            return False
        settings = json.dumps(dataclasses.asdict(subject.job), default=str)
        return read_json(folder / "config.json", None) == json.loads(settings)


def _take(lock: FolderLock) -> bool:
    """Takes a run directory; False if another process owns it, or may own it."""
    try:
        return processes.decide(lock.try_to_take)
    except InUse:
        return False
