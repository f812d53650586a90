"""Folders of pictures of any system, with their prompts, and the subjects' photos.

A folder has the pictures of one subject, or one folder per subject. The prompts of its
pictures come from the first of these that exists:

1. an ``index.jsonl`` in the folder, with an object per line that has ``file`` and
   ``prompt``, as sampling jobs write it;
2. a list of prompts, where the name of each picture begins with the number of its
   prompt, from 0: ``07_2.png`` belongs to the eighth;
3. ``prompt`` in the metadata of every PNG file, as all our pictures have it.

Prompts lose the identifier and become those of the class: no public network knows the
identifier, and the paper does not say whether it was left in.
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

SHEET = "contact_sheet.png"  # left out: it repeats other pictures
INDEX = "index.jsonl"
WHITE = (255, 255, 255)  # background of transparent pixels
NAMED = 8  # files listed in an error

Templates = Callable[[str], Sequence[str]]  # class noun -> prompts


@dataclasses.dataclass(frozen=True)
class SubjectPhotos:
    """A subject and its photos.

    Attributes:
        name: Name of the subject.
        noun: Class noun; "" where it is not known.
        photos: Files of the photos.
    """

    name: str
    noun: str
    photos: tuple[epath.Path, ...]


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """A picture, and its prompt without the identifier; "" where not known."""

    file: epath.Path
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A system's pictures of one subject.

    Attributes:
        subject: The subject and its photos.
        pictures: Pictures of the subject.
        class_pictures: Pictures of the class alone, for PRES, generated after
            fine-tuning.
        skipped: Files in the folder that are not pictures.
    """

    subject: SubjectPhotos
    pictures: tuple[GeneratedImage, ...]
    class_pictures: tuple[epath.Path, ...] = ()
    skipped: tuple[epath.Path, ...] = ()

    def by_prompt(self) -> dict[str, list[int]]:
        """Indices into ``pictures`` by prompt."""
        groups: dict[str, list[int]] = {}
        for number, picture in enumerate(self.pictures):
            groups.setdefault(picture.prompt, []).append(number)
        return groups


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """The size of a picture, (width, height) in pixels, and a digest of its pixels."""

    size: tuple[int, int]
    digest: str


def image_files(
    folder: epath.Path, flag: str
) -> tuple[list[epath.Path], list[epath.Path]]:
    """Pictures in a folder, by suffix, and the other files in it.

    Args:
        folder: The folder; folders in it are not searched.
        flag: The user's flag, such as ``--photos=DIR``, for errors.

    Raises:
        InputError: The folder does not exist or is empty.
    """
    files = [each for each in _entries(folder, flag) if not each.is_dir()]
    files = [each for each in files if each.name not in (SHEET, INDEX)]
    pictures = [
        file
        for file in files
        if not file.name.startswith(".") and file.suffix.lower() in readers.SUFFIXES
    ]
    return pictures, [file for file in files if file not in pictures]


def subjects(
    folder: epath.Path, nouns: Mapping[str, str], flag: str
) -> dict[str, SubjectPhotos]:
    """The subjects whose photos are in a folder, or in one folder each.

    Args:
        folder: The folder.
        nouns: Class noun of each subject by name; under "" that of all others.
        flag: The user's flag, for errors.

    Raises:
        InputError: There are no photos.
    """
    known = {}
    found, _ = image_files(folder, flag)
    for each in [folder] if found else _folders(folder):
        photos = found or image_files(each, f"{flag}/{each.name}")[0]
        if photos:
            noun = nouns.get(each.name, nouns.get("", ""))
            known[each.name] = SubjectPhotos(each.name, noun, tuple(photos))
    if not known:
        raise InputError(
            f"{flag} has no photos; put them there, or each subject's into a folder "
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
    """A system's pictures of each subject.

    Args:
        folder: The pictures of the only subject, or one folder per subject.
        known: The subjects by name.
        templates: Prompts by class noun, for pictures whose names have the number of
            a prompt.
        flag: The user's flag, for errors.
        class_folder: Pictures of the class alone, for PRES, in the same layout.

    Raises:
        InputError: There are no pictures, or subjects or prompts do not match.
    """
    names = {each.name for each in _folders(folder)}
    single = len(known) == 1 and not names & known.keys()
    if not single:
        _check_subjects(folder, names, known, flag)
    found = []
    for name, subject in known.items():
        pictures, skipped = _pictures(
            folder if single else folder / name, subject, templates, flag
        )
        class_pictures = []
        if class_folder is not None:
            where = class_folder if single else class_folder / name
            class_flag = f"--class_images={where}"
            class_pictures, _ = image_files(_largest(where), class_flag)
            if not class_pictures:
                raise InputError(f"{class_flag} has no pictures")
        found.append(
            ImageSet(subject, tuple(pictures), tuple(class_pictures), tuple(skipped))
        )
    return found


def _check_subjects(
    folder: epath.Path, names: set[str], known: Mapping[str, SubjectPhotos], flag: str
) -> None:
    """Raises InputError unless there is a folder for each subject and no other."""
    _entries(folder, flag)
    missing = [name for name in known if name not in names]
    unknown = sorted(name for name in names - known.keys() if name[0] != ".")
    problems = [f"lacks {', '.join(missing[:NAMED])}"] if missing else []
    problems += [f"has {', '.join(unknown[:NAMED])} besides"] if unknown else []
    if problems:
        raise InputError(
            f"{flag} should have a folder for each subject of --photos; it "
            f"{' and '.join(problems)}"
        )


def strip_identifier(prompt: str, identifier: str, noun: str) -> str:
    """The prompt of the class: "a dog in the snow" of "an axo dog in the snow".

    An article before the identifier is chosen again for the word that follows.
    """
    if identifier:
        name = rf"(?<!\w){re.escape(identifier)}(?!\w)"

        def choose(match: re.Match[str]) -> str:
            chosen = words.article(match[2])
            return f"{chosen.capitalize() if match[1][0] == 'A' else chosen} {match[2]}"

        prompt = re.sub(rf"\b([Aa]n?)\s+{name}\s+(\w+)", choose, prompt)
        prompt = re.sub(rf"{name}\s*", "", prompt)
    return words.fill(prompt, "", noun)


def inspect_images(sets: Sequence[ImageSet]) -> dict[epath.Path, ImageInfo]:
    """Reads every file once, so that a bad file stops the work before it begins.

    Raises:
        InputError: Files that cannot be read, with their names.
    """
    files = [
        file
        for images in sets
        for file in (
            *images.subject.photos,
            *(picture.file for picture in images.pictures),
            *images.class_pictures,
        )
    ]
    found, bad = {}, []
    for file in dict.fromkeys(files):
        try:
            image = read(file)
        except InputError as error:
            bad.append(f"  {error}")
            continue
        found[file] = ImageInfo((image.shape[1], image.shape[0]), digest(image))
    if bad:
        first = (
            f"{len(bad)} of {len(bad) + len(found)} pictures cannot be read, so "
            "nothing was scored; replace or remove them"
        )
        more = [f"  and {len(bad) - NAMED} more"] if len(bad) > NAMED else []
        raise InputError("\n".join([first, *bad[:NAMED], *more]))
    return found


def read(file: epath.Path) -> np.ndarray:
    """A picture, upright, in sRGB, on white: uint8 [H, W, 3].

    Raises:
        InputError: The file cannot be read.
    """
    return readers.load(file, WHITE)


def read_index(folder: epath.Path) -> list[tuple[epath.Path, str]]:
    """Files and prompts of the ``index.jsonl`` of a folder.

    Raises:
        InputError: A line is incomplete, or a picture does not exist.
    """
    path, found = folder / INDEX, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            file, prompt = folder / entry["file"], str(entry["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number} has no file and prompt; if a job was stopped, "
                "run it again to finish it"
            ) from error
        if not file.exists():
            raise InputError(f"{path}: line {number} names {file}, which is not there")
        found.append((file, prompt))
    if not found:
        raise InputError(f"{path} is empty; run the job again to finish it")
    return found


def _pictures(
    folder: epath.Path, subject: SubjectPhotos, templates: Templates | None, flag: str
) -> tuple[list[GeneratedImage], list[epath.Path]]:
    """The pictures of one subject with their prompts, and the other files."""
    if (folder / INDEX).exists():
        return [
            GeneratedImage(
                file, strip_identifier(prompt, _metadata(file)[1], subject.noun)
            )
            for file, prompt in read_index(folder)
        ], []
    files, skipped = image_files(_largest(folder), flag)
    if not files:
        raise InputError(f"{folder} ({flag}) has no pictures")
    if templates is not None:
        return _match_numbers(files, subject, templates), skipped
    metadata = [_metadata(file) for file in files]
    unknown = [
        file
        for file, (prompt, _) in zip(files, metadata, strict=True)
        if prompt is None
    ]
    if unknown and len(unknown) < len(files):
        raise InputError(
            f"{flag}: {len(unknown)} of {len(files)} pictures have no prompt in their "
            f"metadata, such as {unknown[0].name}; give --prompts, or an {INDEX}"
        )
    return [
        GeneratedImage(file, strip_identifier(prompt or "", identifier, subject.noun))
        for file, (prompt, identifier) in zip(files, metadata, strict=True)
    ], skipped


def _match_numbers(
    files: Sequence[epath.Path], subject: SubjectPhotos, templates: Templates
) -> list[GeneratedImage]:
    """Pictures with the prompts whose numbers their names begin with."""
    listed = templates(subject.noun)
    if not subject.noun and any("[n]" in each.lower() for each in listed):
        raise InputError(
            f"the prompts have [N], but the class noun of {subject.name} is not known; "
            f"give --noun={subject.name}=dog"
        )
    prompts = [words.fill(each, "", subject.noun) for each in listed]
    matches = [re.match(r"\d+", file.name) for file in files]
    numbers = [int(match[0]) if match else len(prompts) for match in matches]
    unmatched = [
        file.name
        for file, number in zip(files, numbers, strict=True)
        if number >= len(prompts)
    ]
    if unmatched:
        raise InputError(
            f"{files[0].parent}: {len(unmatched)} of {len(files)} pictures cannot be "
            f"matched to the {len(prompts)} prompts, such as {unmatched[0]}; a name "
            f"must begin with the number of its prompt, 0 to {len(prompts) - 1}"
        )
    missing = sorted(set(range(len(prompts))) - set(numbers))
    if missing:
        raise InputError(
            f"{files[0].parent}: {len(missing)} of {len(prompts)} prompts have no "
            f"picture, such as number {missing[0]}, {prompts[missing[0]]!r}"
        )
    return [
        GeneratedImage(file, prompts[number])
        for file, number in zip(files, numbers, strict=True)
    ]


def _metadata(file: epath.Path) -> tuple[str | None, str]:
    """Prompt and identifier in the metadata of a PNG file; None and "" without."""
    if file.suffix.lower() != ".png":
        return None, ""
    try:
        metadata = read_png_metadata(file)
    except (OSError, AssertionError, SyntaxError):
        return None, ""  # inspect_images reports the damage
    return metadata.get("prompt"), metadata.get("identifier", "")


def _largest(folder: epath.Path) -> epath.Path:
    """The folder of the largest resolution in a folder, or the folder itself."""
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
        raise InputError(f"{flag} is a file; name the folder that contains it")
    entries = sorted(folder.iterdir(), key=lambda each: each.name)
    if not entries:
        raise InputError(f"{flag} is empty; put pictures there")
    return entries
