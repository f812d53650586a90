"""Lists of sampler steps from text files."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_booth.diffusion.schedule import UNITS
from imagen_booth.errors import InputError
from imagen_booth.storage import user_path

SUFFIX = ".txt"


def with_list(sampler: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A sampler's settings with the list of the file that ``steps`` names, if it does.

    The list replaces the path, so a run depends on its numbers and not on the file.

    Args:
        sampler: Fields of ``SamplerConfig``.
        where: Name of the setting, for errors.

    Raises:
        InputError: The file is missing or holds no list.
    """
    steps = sampler.get("steps")
    if not isinstance(steps, str) or not steps.endswith(SUFFIX):
        return sampler
    name = f"{where}.steps"
    path = epath.Path(user_path(name, steps))
    unit, values = read_steps(path, f"{name}={steps!r}")
    return {**sampler, "steps": values, "spacing": unit}


def read_steps(path: epath.Path, where: str) -> tuple[str, tuple[float, ...]]:
    """Reads a list of steps.

    The first word of the file is the unit of the numbers after it: ``time``, ``logsnr``
    or ``sigma``. Spaces, commas and line breaks separate them; ``#`` begins a comment.

    Args:
        where: Name and value of the setting, for errors.

    Raises:
        InputError: The file is missing, or a word is not a number.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{where} cannot be read: {error}; give the path of a text file"
        ) from error
    words = " ".join(line.partition("#")[0] for line in lines).replace(",", " ").split()
    if not words or words[0] not in UNITS:
        raise InputError(
            f"{where} should begin with one of {', '.join(UNITS)}, the unit of its "
            f"numbers are, not with {' '.join(words[:1])!r}"
        )
    try:
        return words[0], tuple(float(word) for word in words[1:])
    except ValueError as error:
        raise InputError(f"{where} holds more than numbers: {error}") from error
