"""The command lines behind the page's buttons."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_booth.config import presets
from imagen_booth.config.build import flat
from imagen_booth.config.schema import LORA
from imagen_booth.errors import InputError

MAX_PROMPTS, MAX_SEEDS = 100, 64  # of one job of the page
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_RESERVED = ("cache",)  # a folder beside the runs that they share
FULL, ADAPTER, DIFFUSERS = "full", "adapter", "diffusers"  # kinds of an export
LAYOUTS = {FULL: "own", ADAPTER: "own", DIFFUSERS: "diffusers"}


def run_name(text: str) -> str:
    """The name of a new run, checked: it becomes the name of a folder.

    Raises:
        InputError: It is not the name of one plain folder.
    """
    name = text.strip()
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise InputError(
            f"the name {name!r} cannot be used; give 1 to 40 letters, digits, - or _, "
            "such as my_dog"
        )
    return name


def subject_config(
    cascade: str, settings: Mapping[str, Any], extra: Sequence[str] = ()
) -> tuple[str, ...]:
    """The ``--config`` flags of train and doctor for a subject.

    Args:
        cascade: What follows the colon of ``--config``, such as ``toybox:lora``.
        settings: Values by name, ``{"subject.class_noun": "dog"}``. Those that the
            cascade has anyway are left out.
        extra: Flags from the server's own command line.
    """
    defaults = flat(presets.dreambooth(cascade).to_dict())
    return (
        f"--config=configs/subject.py:{cascade}",
        *(
            f"--config.{name}={value}"
            for name, value in settings.items()
            if value != defaults[name]
        ),
        *extra,
    )


def train(config: Sequence[str], workdir: pathlib.Path) -> tuple[str, ...]:
    """The command that starts or resumes a run."""
    return ("imagen_booth.train", *config, f"--workdir={workdir}")


def doctor(config: Sequence[str], workdir: pathlib.Path, clip: str) -> tuple[str, ...]:
    """The command that checks a run."""
    clips = (f"--clip={clip}",) if clip else ()
    return ("imagen_booth.doctor", *config, f"--workdir={workdir}", "--json", *clips)


def resume(config: Mapping[str, Any], workdir: pathlib.Path) -> tuple[str, ...]:
    """The command that resumes a run that was not started from the page.

    Args:
        config: The settings of the run, from its ``config.json``.
    """
    cascade = config["cascade"]
    found = flat(config)
    defaults = flat(presets.dreambooth(cascade).to_dict())
    changed = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in defaults and _plain(value) != _plain(defaults[name])
    }
    return train(subject_config(cascade, changed), workdir)


def sample(
    run: pathlib.Path,
    prompts: Sequence[str],
    *,
    seeds: int,
    first_seed: int,
    guidance: float | None,
    resolution: int,
) -> tuple[str, ...]:
    """The command that samples prompts with a run.

    Args:
        seeds: Pictures per prompt.
        guidance: Guidance weight of the base stage; None for the run's.
        resolution: Stop at this size in pixels; 0 for the last stage.

    Raises:
        InputError: There are no prompts, or too many.
    """
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InputError(
            f"{len(prompts)} prompts are given; write 1 to {MAX_PROMPTS}, one per line"
        )
    if not 1 <= seeds <= MAX_SEEDS:
        raise InputError(f"{seeds} pictures per prompt; use 1 to {MAX_SEEDS}")
    if not 0 <= first_seed < 2**32:
        raise InputError(f"seed {first_seed} is not usable; use 0 to {2**32 - 1}")
    return (
        "imagen_booth.sample",
        f"--run={run}",
        *(f"--prompt={prompt}" for prompt in prompts),
        f"--seeds={seeds}",
        *([f"--first_seed={first_seed}"] if first_seed else []),
        *([f"--guidance={guidance:g}"] if guidance is not None else []),
        *([f"--resolution={resolution}"] if resolution else []),
    )


def export(run: pathlib.Path, kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The command that exports the fine-tuned networks of a run.

    Args:
        kind: ``full`` for whole networks, ``adapter`` for adapters alone, or
            ``diffusers`` for whole networks in diffusers' layout.
        config: The settings of the run.

    Raises:
        InputError: There is no such kind, or the run has no adapter.
    """
    if kind not in LAYOUTS:
        raise InputError(f"export {kind!r} is not known; use {', '.join(LAYOUTS)}")
    stages = [each for each in config.values() if isinstance(each, Mapping)]
    adapted = any(each.get("adapter", {}).get("kind") == LORA for each in stages)
    if kind == ADAPTER and not adapted:
        raise InputError(
            f"{run.name} was fine-tuned without an adapter; export it as {FULL}, or "
            "train a run with an adapter"
        )
    return (
        "imagen_booth.convert",
        "merge" if adapted and kind != ADAPTER else "export",
        f"--run={run}",
        f"--to={export_folder(run, kind)}",
        f"--layout={LAYOUTS[kind]}",
    )


def export_folder(run: pathlib.Path, kind: str) -> pathlib.Path:
    """Where an export is written."""
    return run / "export" / kind


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    return json.loads(json.dumps(value))
