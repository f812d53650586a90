"""What a fine-tuning run has to be scored: its subject, and what it drew."""

import dataclasses
import json
from collections.abc import Sequence

from etils import epath

from imagen_booth.config.schema import TOYBOX
from imagen_booth.errors import InputError
from imagen_booth.evaluation import image_sets
from imagen_booth.evaluation.image_sets import ImageSet, SubjectPhotos, Templates
from imagen_booth.rundir.layout import RunDirectory
from imagen_booth.text import prompts as words
from imagen_booth.text.prompt_suites import DREAMBENCH, fitting_suite

FINAL = "final"  # what a run draws by itself
CLASS = "class"  # where pictures of the class alone are looked for


def is_toybox_run(path: epath.Path) -> bool:
    """Whether a run's subject is one of the toybox, which the judge can read."""
    return _photo_setting(path).startswith(f"{TOYBOX}:")


def finished_runs(
    path: epath.Path,
    name: str = "",
    source: str = "",
    templates: Templates | None = None,
) -> tuple[str, ImageSet]:
    """What a run drew, and the name of its system.

    The photos are the square crops that training saw, 512 px. Pictures of the class
    alone are those in ``samples/class``, if it is there.

    Args:
        path: work directory.
        name: of the folder in ``samples``; "" for the one that ``source`` names, or the
            only batch job, or what the run drew by itself.
        source: where the prompts come from that have to be there, as the user gave it.
        templates: gives them by class noun.

    Raises:
        InputError: no run, not finished, no such pictures, or prompts without one.
    """
    manifest = RunDirectory(path).manifest
    if "subject" not in manifest or not (path / "config.json").exists():
        raise InputError(f"--run={path} is not the work directory of a run")
    if manifest.get("status") != "done":
        raise InputError(
            f"--run={path} is not finished ({manifest.get('status')}); run the "
            "training command again to finish it"
        )
    noun = manifest["subject"]["class_noun"]
    name = name or _folder_name(path, source, noun)
    if not (path / "samples" / name).exists():
        wanted = fitting_suite(source or DREAMBENCH, noun)
        raise InputError(
            f"{path / 'samples' / name} does not exist; python -m imagen_booth.sample "
            f"--run={path} --prompts={wanted} --seeds=4 draws it"
        )
    work = run_image_set(path, name)
    if templates is not None:
        _check_whole(path, work, templates(noun), source)
    of_class = _class_pictures(path, work.subject)
    work = dataclasses.replace(work, class_pictures=of_class)
    return f"DreamBooth ({manifest['cascade']['name']})", work


def run_image_set(path: epath.Path, name: str) -> ImageSet:
    """The pictures in ``samples/NAME`` of a run, finished or not.

    Raises:
        InputError: no pictures, or no photos.
    """
    about = RunDirectory(path).manifest["subject"]
    setting = epath.Path(_photo_setting(path).removeprefix(f"{TOYBOX}:"))
    called = "/".join(setting.parts[-2:]) if is_toybox_run(path) else setting.name
    photos, _ = image_sets.image_files(path / "photos", f"{path}/photos")
    if not photos:
        raise InputError(f"{path}/photos holds no photos; run the training again")
    subject = SubjectPhotos(called or path.name, about["class_noun"], tuple(photos))
    return _of(path / "samples" / name, subject, about["identifier"])


def _of(folder: epath.Path, subject: SubjectPhotos, identifier: str) -> ImageSet:
    (work,) = image_sets.image_sets(folder, {subject.name: subject}, None, str(folder))
    shots = tuple(
        dataclasses.replace(
            shot,
            prompt=image_sets.strip_identifier(shot.prompt, identifier, subject.noun),
        )
        for shot in work.pictures
    )
    return dataclasses.replace(work, pictures=shots)


def _photo_setting(path: epath.Path) -> str:
    return json.loads((path / "config.json").read_text())["subject"]["photos"]


def _folder_name(path: epath.Path, source: str, noun: str) -> str:
    if source:
        return epath.Path(fitting_suite(source, noun)).stem
    jobs = sorted(
        each.parent.name for each in (path / "samples").glob(f"*/{image_sets.INDEX}")
    )
    jobs = [each for each in jobs if each != CLASS]
    if len(jobs) > 1:
        raise InputError(
            f"{path}/samples has the jobs {', '.join(jobs)}; say which by --name"
        )
    return jobs[0] if jobs else FINAL


def _check_whole(
    path: epath.Path, work: ImageSet, listed: Sequence[str], source: str
) -> None:
    """Every prompt needs a picture."""
    filled = [words.fill(each, "", work.subject.noun) for each in listed]
    missing = [each for each in filled if each not in work.by_prompt()]
    if missing:
        raise InputError(
            f"--run={path}: {len(missing)} of {len(filled)} prompts of {source} have "
            f"no picture, such as {missing[0]!r}; python -m imagen_booth.sample "
            f"--run={path} --prompts={source} draws what is missing"
        )


def _class_pictures(path: epath.Path, subject: SubjectPhotos) -> tuple[epath.Path, ...]:
    folder = path / "samples" / CLASS
    if not folder.exists():
        return ()
    work = _of(folder, subject, "")
    wanted = words.class_prompt(subject.noun)
    others = [shot.prompt for shot in work.pictures if shot.prompt != wanted]
    if others:
        raise InputError(
            f"{folder} has pictures of {others[0]!r}; PRES wants {wanted!r} alone, so "
            "move the others away"
        )
    return tuple(shot.file for shot in work.pictures)
