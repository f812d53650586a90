"""What is scored: folders of pictures by any system, and the photos beside them.

A folder holds the pictures of one subject, or one folder for each subject. What a
picture was asked to show is told, in this order of precedence, by

1. an ``index.jsonl`` in the folder, an object with ``file`` and ``prompt`` in each
   line, as batch jobs leave it;
2. a list of prompts, where the name of each picture begins with the number of its
   prompt, from 0: ``07_2.png`` is another picture of the eighth;
3. the text ``prompt`` inside every PNG file, as all of ours have it.

Prompts are kept without the identifier, as those of the class: no public network knows
what it stands for, and the paper does not say whether it was left in.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from imagen_booth.data import photos as readers
from imagen_booth.data.image_files import read_png_metadata
from imagen_booth.errors import InputError
from imagen_booth.evaluation.features import digest
from imagen_booth.text import prompts as words

SHEET = "contact_sheet.png"  # shows other pictures once more
INDEX = "index.jsonl"
WHITE = (255, 255, 255)  # under transparent pixels
NAMED = 8  # files named in an error

Templates = Callable[[str], Sequence[str]]  # prompts for a subject of a class


@dataclasses.dataclass(frozen=True)
class SubjectPhotos:
    """A subject and its photos.

    Attributes:
        name: tells it from other subjects.
        noun: its class; empty where nobody said.
        photos: files.
    """

    name: str
    noun: str
    photos: tuple[epath.Path, ...]


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """A picture, and its prompt without the identifier; empty where not known."""

    file: epath.Path
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A system's pictures of one subject.

    Attributes:
        pictures: of the subject.
        class_pictures: of its class alone, drawn after tuning, for PRES.
        skipped: files that are no pictures.
    """

    subject: SubjectPhotos
    pictures: tuple[GeneratedImage, ...]
    class_pictures: tuple[epath.Path, ...] = ()
    skipped: tuple[epath.Path, ...] = ()

    def by_prompt(self) -> dict[str, list[int]]:
        """Numbers of the pictures of each prompt."""
        groups: dict[str, list[int]] = {}
        for number, shot in enumerate(self.pictures):
            groups.setdefault(shot.prompt, []).append(number)
        return groups


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What a picture file holds.

    Attributes:
        size: (width, height) in pixels.
        digest: of its pixels.
    """

    size: tuple[int, int]
    digest: str


def image_files(
    folder: epath.Path, flag: str
) -> tuple[list[epath.Path], list[epath.Path]]:
    """Pictures of a folder by their suffix, and what else lies there.

    Args:
        flag: what the user said, such as ``--photos=DIR``, for errors.

    Raises:
        InputError: no such folder, or nothing in it.
    """
    entries = _entries(folder, flag)
    kept = [
        each
        for each in entries
        if not each.is_dir()
        and not each.name.startswith(".")
        and each.suffix.lower() in readers.SUFFIXES
        and each.name != SHEET
    ]
    rest = [
        each for each in entries if each not in kept and each.name not in (SHEET, INDEX)
    ]
    return kept, [each for each in rest if not each.is_dir()]


def subjects(
    folder: epath.Path, nouns: Mapping[str, str], flag: str
) -> dict[str, SubjectPhotos]:
    """The subjects whose photos a folder has: itself, or one per folder in it.

    Args:
        nouns: class of each subject by name; under ``""`` that of all others.

    Raises:
        InputError: no photos there.
    """
    found, _ = image_files(folder, flag)
    if found:
        noun = nouns.get(folder.name, nouns.get("", ""))
        return {folder.name: SubjectPhotos(folder.name, noun, tuple(found))}
    known = {}
    for each in _folders(folder):
        inside, _ = image_files(each, f"{flag}/{each.name}")
        if inside:
            noun = nouns.get(each.name, nouns.get("", ""))
            known[each.name] = SubjectPhotos(each.name, noun, tuple(inside))
    if not known:
        raise InputError(
            f"{flag} holds no photos; put them there, or each subject's into a folder "
            "of its own"
        )
    return known


def image_sets(
    folder: epath.Path,
    known: Mapping[str, SubjectPhotos],
    templates: Templates | None,
    flag: str,
    class_folder: epath.Path | None = None,
) -> list[ImageSet]:
    """What a system drew of each subject.

    Args:
        folder: of the pictures of the only subject, or with a folder for each.
        templates: prompts by class noun, for pictures that are named by number.
        class_folder: the same with pictures of the class alone, for PRES.

    Raises:
        InputError: no pictures, subjects that do not match, prompts that do not.
    """
    held = {each.name for each in _folders(folder)} if folder.is_dir() else set()
    one = len(known) == 1 and not held & known.keys()
    if not one:
        _entries(folder, flag)
        missing = [name for name in known if name not in held]
        strange = sorted(
            name for name in held - known.keys() if not name.startswith(".")
        )
        if missing or strange:
            said = [f"lacks {', '.join(missing[:NAMED])}"] if missing else []
            said += [f"has {', '.join(strange[:NAMED])} besides"] if strange else []
            raise InputError(
                f"{flag} should have a folder for each subject of --photos; it "
                f"{' and '.join(said)}"
            )
    found = []
    for name, subject in known.items():
        place = folder if one else folder / name
        shots, skipped = _shots(place, subject, templates, flag)
        of_class = ()
        if class_folder is not None:
            where = class_folder if one else class_folder / name
            of_class = tuple(image_files(_largest(where), f"--class_images={where}")[0])
            if not of_class:
                raise InputError(f"--class_images={where} holds no pictures")
        found.append(ImageSet(subject, tuple(shots), of_class, tuple(skipped)))
    return found


def strip_identifier(prompt: str, identifier: str, noun: str) -> str:
    """A prompt as that of the class, the identifier taken out: "a dog in the snow".

    An article before it is chosen anew for the word that follows.
    """
    if identifier:
        name = rf"(?<!\w){re.escape(identifier)}(?!\w)"

        def choose(match: re.Match[str]) -> str:
            chosen = words.article(match[2])
            return f"{chosen.capitalize() if match[1][0] == 'A' else chosen} {match[2]}"

        prompt = re.sub(rf"\b([Aa]n?)\s+{name}\s+(\w+)", choose, prompt)
        prompt = re.sub(rf"{name}\s*", "", prompt)
    return words.fill(prompt, "", noun)


def inspect_images(all_works: Sequence[ImageSet]) -> dict[epath.Path, ImageInfo]:
    """Reads every file once, so that a bad one is known before any work.

    Raises:
        InputError: naming the files that are no pictures.
    """
    wanted = [
        each
        for work in all_works
        for each in (
            *work.subject.photos,
            *(shot.file for shot in work.pictures),
            *work.class_pictures,
        )
    ]
    looks, bad = {}, []
    for file in dict.fromkeys(wanted):
        try:
            image = read(file)
        except InputError as error:
            bad.append(f"  {error}")
            continue
        looks[file] = ImageInfo((image.shape[1], image.shape[0]), digest(image))
    if bad:
        more = [f"  and {len(bad) - NAMED} more"] if len(bad) > NAMED else []
        raise InputError(
            "\n".join(
                [
                    f"{len(bad)} of {len(bad) + len(looks)} pictures cannot be read; "
                    "mend or remove them, nothing was scored",
                    *bad[:NAMED],
                    *more,
                ]
            )
        )
    return looks


def read(file: epath.Path) -> np.ndarray:
    """A picture, upright, in sRGB, on white: uint8 [H, W, 3].

    Raises:
        InputError: it cannot be read.
    """
    return readers.load(file, WHITE)


def indexed(folder: epath.Path) -> list[tuple[epath.Path, str]]:
    """Files and prompts of a folder's ``index.jsonl``.

    Raises:
        InputError: a line that is cut short, or a picture that is not there.
    """
    path, found = folder / INDEX, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            file, prompt = folder / entry["file"], str(entry["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number} has no file and prompt; where a job was "
                "stopped, run it again to finish it"
            ) from error
        if not file.exists():
            raise InputError(f"{path}: line {number} names {file}, which is not there")
        found.append((file, prompt))
    if not found:
        raise InputError(f"{path} is empty; run the job again to finish it")
    return found


def _shots(
    folder: epath.Path, subject: SubjectPhotos, templates: Templates | None, flag: str
) -> tuple[list[GeneratedImage], list[epath.Path]]:
    """The pictures of one subject with their prompts, and files that are none."""
    if (folder / INDEX).exists():
        found = indexed(folder)
        names = [_prompt_inside(file)[1] for file, _ in found]
        return [
            GeneratedImage(file, strip_identifier(prompt, name, subject.noun))
            for (file, prompt), name in zip(found, names, strict=True)
        ], []
    kept, skipped = image_files(_largest(folder), flag)
    if not kept:
        raise InputError(f"{folder} ({flag}) holds no pictures")
    if templates is not None:
        return _numbered(kept, subject, templates), skipped
    told = [_prompt_inside(file) for file in kept]
    silent = [
        file for file, (prompt, _) in zip(kept, told, strict=True) if prompt is None
    ]
    if silent and len(silent) < len(kept):
        raise InputError(
            f"{flag}: {len(silent)} of {len(kept)} pictures do not say their prompt, "
            f"such as {silent[0].name}; give --prompts, or an {INDEX}"
        )
    return [
        GeneratedImage(
            file,
            ""
            if prompt is None
            else strip_identifier(prompt, identifier, subject.noun),
        )
        for file, (prompt, identifier) in zip(kept, told, strict=True)
    ], skipped


def _numbered(
    kept: Sequence[epath.Path], subject: SubjectPhotos, templates: Templates
) -> list[GeneratedImage]:
    listed = templates(subject.noun)
    if not subject.noun and any("[n]" in each.lower() for each in listed):
        raise InputError(
            f"the prompts have [N], and nothing says what {subject.name} is; give "
            f"--noun={subject.name}=dog"
        )
    filled = [words.fill(each, "", subject.noun) for each in listed]
    shots, strange, seen = [], [], set()
    for file in kept:
        match = re.match(r"\d+", file.name)
        number = int(match[0]) if match else len(filled)
        if number < len(filled):
            seen.add(number)
            shots.append(GeneratedImage(file, filled[number]))
        else:
            strange.append(file.name)
    bare = sorted(set(range(len(filled))) - seen)
    if strange:
        raise InputError(
            f"{kept[0].parent}: {len(strange)} of {len(kept)} pictures cannot be "
            f"matched to the {len(filled)} prompts, such as {strange[0]}; a name has "
            f"to begin with the number of its prompt, 0 to {len(filled) - 1}"
        )
    if bare:
        raise InputError(
            f"{kept[0].parent}: {len(bare)} of {len(filled)} prompts have no picture, "
            f"such as number {bare[0]}, {filled[bare[0]]!r}"
        )
    return shots


def _prompt_inside(file: epath.Path) -> tuple[str | None, str]:
    """Prompt and identifier that a PNG file tells of; None and "" if it does not."""
    if file.suffix.lower() != ".png":
        return None, ""
    try:
        told = read_png_metadata(file)
    except (OSError, AssertionError, SyntaxError):
        return None, ""  # the survey says what is wrong with it
    return told.get("prompt"), told.get("identifier", "")


def _largest(folder: epath.Path) -> epath.Path:
    """Of folders by resolution, the one of the largest; else the folder itself."""
    sizes = [each for each in _folders(folder) if each.name.isdecimal()]
    return max(sizes, key=lambda each: int(each.name)) if sizes else folder


def _folders(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        return []
    found = (each for each in folder.iterdir() if each.is_dir())
    return sorted(found, key=lambda each: each.name)


def _entries(folder: epath.Path, flag: str) -> list[epath.Path]:
    if not folder.exists():
        raise InputError(f"{flag} does not exist; name a folder of pictures")
    if not folder.is_dir():
        raise InputError(f"{flag} is a file; name the folder that holds it")
    entries = sorted(folder.iterdir(), key=lambda each: each.name)
    if not entries:
        raise InputError(f"{flag} is empty; put pictures there")
    return entries
