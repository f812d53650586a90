"""The subject and the generated pictures of a fine-tuning run.

Pictures that are scored never share noise with the class images of the run. Class image
``i`` has the seed ``config.seed + i``; PRES from the same seeds and the same sampler
would find the training images again, however far the class has drifted. The pictures
of an evaluation therefore have seeds from ``FIRST_SEED`` on.
"""

import dataclasses
import re
from collections.abc import Sequence

from etils import epath

from imagen_booth.config.schema import FROZEN_MODEL, TOYBOX
from imagen_booth.data.image_files import read_png_metadata
from imagen_booth.errors import InputError
from imagen_booth.evaluation import image_sets
from imagen_booth.evaluation.image_sets import ImageSet, SubjectPhotos, Templates
from imagen_booth.rundir.layout import TRAIN_AGAIN, RunDirectory
from imagen_booth.storage import read_json
from imagen_booth.text import prompts as words
from imagen_booth.text.prompt_suites import DREAMBENCH, fitting_suite

FIRST_SEED = 1_000_000  # seed of an evaluation's first picture of each prompt
FINAL = "final"  # folder of the pictures that training ends with
CLASS = "class"  # folder of the pictures of the class alone, for PRES


def is_toybox_run(path: epath.Path) -> bool:
    """Whether the subject of a run is a toybox subject, which the judge can read."""
    return _photo_setting(path).startswith(f"{TOYBOX}:")


def finished_runs(
    path: epath.Path,
    name: str = "",
    source: str = "",
    templates: Templates | None = None,
) -> tuple[str, ImageSet]:
    """The name of a finished run's system, and its pictures.

    The photos are the square crops that training saw, 512 px. The pictures of the
    class alone are those in ``samples/class``, if the folder exists.

    Args:
        path: The run directory.
        name: Folder in ``samples``. "" takes the folder that ``source`` names, else the
            only batch job, else the pictures that training ended with.
        source: Source of the prompts, as the user gave it.
        templates: Returns the prompts of ``source`` for a class noun. Each of them
            must have a picture.

    Raises:
        InputError: The run is missing or not finished, the pictures are missing, a
            prompt has no picture, or pictures of the class share their noise with
            the run's class images.
    """
    manifest = RunDirectory(path).manifest
    if "subject" not in manifest or not (path / "config.json").exists():
        raise InputError(f"--run={path} is not the directory of a run")
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
            f"--run={path} --prompts={wanted} --seeds=4 makes it"
        )
    work = run_image_set(path, name)
    if templates is not None:
        _check_whole(path, work, templates(noun), source)
    of_class = _class_pictures(path, work.subject)
    work = dataclasses.replace(work, class_pictures=of_class)
    return f"DreamBooth ({manifest['cascade']['name']})", work


def run_image_set(path: epath.Path, name: str) -> ImageSet:
    """The pictures in ``samples/NAME`` of a run, which need not be finished.

    Of a run of two subjects, it is the first one's photos, and the pictures whose
    prompts do not name the second.

    Raises:
        InputError: The folder has no pictures, or the run no photos.
    """
    manifest = RunDirectory(path).manifest
    about, second = manifest["subject"], words.second_naming(manifest)
    setting = epath.Path(_photo_setting(path).removeprefix(f"{TOYBOX}:"))
    called = "/".join(setting.parts[-2:]) if is_toybox_run(path) else setting.name
    photos, _ = image_sets.image_files(path / "photos", f"{path}/photos")
    if not photos:
        raise InputError(f"{path}/photos holds no photos; run the training again")
    subject = SubjectPhotos(called or path.name, about["class_noun"], tuple(photos))
    work = _of(path / "samples" / name, subject, about["identifier"])
    if second is None:
        return work
    other = re.compile(rf"(?<!\w){re.escape(second.identifier)}(?!\w)")
    alone = tuple(shot for shot in work.pictures if not other.search(shot.prompt))
    if not alone:
        raise InputError(
            f"{path / 'samples' / name} has no picture of the first subject alone: all "
            "prompts name the second; sample some with [V] and without [V2]"
        )
    return dataclasses.replace(work, pictures=alone)


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
    return read_json(path / "config.json", TRAIN_AGAIN)["subject"]["photos"]


def _folder_name(path: epath.Path, source: str, noun: str) -> str:
    if source:
        return epath.Path(fitting_suite(source, noun)).stem
    jobs = sorted(
        each.parent.name for each in (path / "samples").glob(f"*/{image_sets.INDEX}")
    )
    jobs = [each for each in jobs if each != CLASS]
    if len(jobs) > 1:
        raise InputError(
            f"{path}/samples has the jobs {', '.join(jobs)}; choose one with --name"
        )
    return jobs[0] if jobs else FINAL


def _check_whole(
    path: epath.Path, work: ImageSet, listed: Sequence[str], source: str
) -> None:
    """Raises InputError if a prompt has no picture."""
    filled = [words.fill(each, "", work.subject.noun) for each in listed]
    missing = [each for each in filled if each not in work.by_prompt()]
    if missing:
        raise InputError(
            f"--run={path}: {len(missing)} of {len(filled)} prompts of {source} have "
            f"no picture, such as {missing[0]!r}; python -m imagen_booth.sample "
            f"--run={path} --prompts={source} adds what is missing"
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
            f"{folder} has pictures of {others[0]!r}, but PRES needs {wanted!r} alone; "
            "move the others away"
        )
    files = tuple(shot.file for shot in work.pictures)
    _check_seeds(path, files)
    return files


def _check_seeds(path: epath.Path, files: Sequence[epath.Path]) -> None:
    """Raises InputError if pictures of the class have seeds of the class images.

    A picture whose metadata has no seed passes.
    """
    trained = _class_image_seeds(path)
    seeds = [read_png_metadata(file).get("seed", "") for file in files]
    shared = [seed for seed in seeds if seed.isdecimal() and int(seed) in trained]
    if not shared:
        return
    free = trained.stop <= FIRST_SEED or FIRST_SEED + len(files) <= trained.start
    raise InputError(
        f"{files[0].parent}: {len(shared)} of {len(files)} pictures, such as that of "
        f"seed {shared[0]}, share their noise with the run's class images (seeds "
        f"{trained.start} to {trained.stop - 1}), so PRES would compare training "
        f"images; delete {path / 'samples' / CLASS} and run python -m "
        f'imagen_booth.sample --run={path} --prompt="a [N]" --seeds={len(files)} '
        f"--first_seed={FIRST_SEED if free else trained.stop} --name={CLASS}"
    )


def _class_image_seeds(path: epath.Path) -> range:
    """Seeds of the class images that a run was trained on."""
    config = read_json(path / "config.json", TRAIN_AGAIN)
    stages = (config[name] for name in ("base", "sr256", "sr1024"))
    used = any(stage["steps"] and stage["class_rows"] for stage in stages)
    if not used or config.get("prior") == FROZEN_MODEL:
        return range(0)
    return range(config["seed"], config["seed"] + config["class_images"]["count"])
