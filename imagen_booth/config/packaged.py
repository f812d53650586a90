"""Finds the config files of an installed package."""

import pathlib
from collections.abc import Sequence
from importlib import metadata

FOLDER = "configs"


def resolve_config(arguments: Sequence[str]) -> list[str]:
    """Replaces the path of ``--config`` by that of the installed file of this name.

    A path stays as it is where there is such a file, or where the package has none:
    ``--config=configs/dog.py`` reads the file of a checkout inside of it, and the one
    of the installed package elsewhere.

    Args:
        arguments: Arguments of a command, as ``--config=PATH:CASCADE`` or ``--config
            PATH:CASCADE``.
    """
    resolved = list(arguments)
    for number, argument in enumerate(resolved):
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            continue
        if equals:
            resolved[number] = f"{name}={_resolve(value)}"
        elif number + 1 < len(resolved):
            resolved[number + 1] = _resolve(resolved[number + 1])
    return resolved


def _resolve(value: str) -> str:
    """``PATH:CASCADE`` with the path of the installed file, if there is no other."""
    path, colon, cascade = value.partition(":")
    pure = pathlib.PurePath(path)
    if pathlib.Path(path).is_file() or pure.parts[:-1] != (FOLDER,):
        return value
    found = installed_file(pure.name)
    return value if found is None else f"{found}{colon}{cascade}"


def installed_file(name: str) -> pathlib.Path | None:
    """Path of an installed config file; None if the package has none of the name."""
    for file in metadata.files("imagen_booth") or ():
        if file.parts[-3:] == ("imagen_booth", FOLDER, name):
            path = pathlib.Path(str(file.locate()))
            return path.resolve() if path.is_file() else None
    return None
