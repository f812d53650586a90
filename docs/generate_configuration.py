"""Writes docs/configuration.md from the schema and the presets.

python docs/generate_configuration.py
"""

import dataclasses
import inspect
import pathlib
import re
import types
import typing
from typing import Any

from imagen_booth.cascade import CASCADES
from imagen_booth.config import presets, schema
from imagen_booth.config.build import from_config, limits, range_text
from imagen_booth.diffusion.sampler import SamplerConfig

PAGE = pathlib.Path(__file__).with_name("configuration.md")
PRESETS = ("toybox", "tiny", "if_m", "imagen")  # if_l and if_xl are as if_m
PRETRAININGS = ("toybox_base", "toybox_sr256", "sr1024_div2k")
# Sections of the page: the class, and where its fields stand in a config.
SECTIONS = (
    (schema.Job, "config"),
    (schema.Subject, "config.subject, config.second"),
    (schema.ClassImages, "config.class_images"),
    (schema.FrozenModel, "config.frozen_model"),
    (schema.FineTuning, "config.base, config.sr256, config.sr1024"),
    (schema.OptimConfig, "config.base.optim, ..."),
    (schema.Adapter, "config.base.adapter, ..."),
    (schema.TextualInversion, "config.text"),
    (schema.Pictures, "config.pictures"),
    (SamplerConfig, "config.pictures.base, config.class_images.sampler, ..."),
    (schema.Weights, "config.weights"),
    (schema.Mesh, "config.mesh"),
    (schema.Subjects, "config, with configs/subjects.py"),
)
PRETRAINING_SECTIONS = (
    (schema.Pretraining, "config"),
    (schema.JudgeTraining, "config"),
)
HEAD = """\
# Configuration

<!-- Written by `python docs/generate_configuration.py`; edit the docstrings of
imagen_booth/config/schema.py instead. -->

Any setting can follow a command as `--config.NAME=VALUE`, for example
`--config.base.steps=600`. The message for a misspelt one names the nearest that exists.
A setting with a dataclass as its type has settings of its own: `config.base.optim.lr`.

    python -m imagen_booth.train --config=configs/dog.py --config.base.steps=600

The cascade follows the colon of `--config`, and variants follow the cascade: `:lora`
sets adapters in place of whole stages, and their rates; `:paper` sets the paper's
counts of steps and class images; `:fast` sets a few-step sampler, fewer previews
and no class images. Variants can be combined: `:if_xl:lora:fast`.
"""
MIDDLE = """\
## Defaults by cascade

Settings that differ between cascades. `if_l` and `if_xl` have the settings of `if_m`.

"""
TAIL = """\
## Settings of pretraining

`python -m imagen_booth.pretrain --config=configs/pretrain.py:STAGE` reads these.

"""


def attributes(kind: type) -> dict[str, str]:
    """Descriptions by field, from the ``Attributes:`` of a class and of its bases.

    An entry may describe several fields: ``b1, b2, eps: ...``.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _entries(inspect.getdoc(base) or "")
    return found


def _entries(doc: str) -> dict[str, str]:
    """The entries of a docstring's ``Attributes:`` section, by field."""
    found, names, indent = {}, (), 0
    inside = False
    for line in doc.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if line.strip() == "Attributes:":
            inside, indent = True, 0
        elif inside and depth == 0:
            inside = False
        elif inside:
            indent = indent or depth
            match = re.match(r"([a-z]\w*(?:, [a-z]\w*)*): (.*)", line.strip())
            if depth == indent and match:
                names = tuple(match[1].split(", "))
                found |= dict.fromkeys(names, match[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def summary(kind: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def type_name(kind: Any) -> str:
    """A type as a reader would write it."""
    if isinstance(kind, type) and not typing.get_args(kind):
        return "None" if kind is type(None) else kind.__name__
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " | ".join(type_name(each) for each in typing.get_args(kind))
    return str(kind).replace("typing.", "").replace("NoneType", "None")


def allowed(kind: Any) -> str:
    """The range that a type declares, of its first part that has one."""
    parts = [kind] if limits(kind) else typing.get_args(kind)
    return next((text for text in map(range_text, map(limits, parts)) if text), "")


def literal(value: Any) -> str:
    """A default value as a cell of a table."""
    if dataclasses.is_dataclass(value):
        return "its own"
    if isinstance(value, tuple) and len(value) > 3:
        return f"{len(value)} entries"
    return f"`{value!r}`"


def cell(text: str) -> str:
    """Text in a Markdown table, with the docstring's double backquotes as single."""
    text = re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")
    # Brackets followed by brackets would be a link.
    return re.sub(r"\[([VN][12]?)\]", r"`[\1]`", text) if "`[" not in text else text


def section(kind: type, where: str) -> str:
    """Heading, summary and table of one dataclass, which stands at ``where``."""
    texts, hints = attributes(kind), typing.get_type_hints(kind)
    declared = typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            default = literal(field.default)
        else:
            default = "by cascade"
        kind_name = f"`{type_name(hints[field.name])}`".replace("|", "\\|")
        if dataclasses.is_dataclass(hints[field.name]):
            kind_name = f"[{kind_name}](#{kind_name.strip('`').lower()})"
        text = cell(texts.get(field.name, ""))
        rows.append(
            f"| `{field.name}` | {kind_name} | {allowed(declared[field.name])} | "
            f"{default} | {text} |"
        )
    return "\n".join(
        [
            f"## {kind.__name__}",
            "",
            f"`{where}`",
            "",
            cell(summary(kind)),
            "",
            "| setting | type | range | default | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def flatten(part: Any, prefix: str) -> dict[str, Any]:
    """{``config.base.steps``: value} of a dataclass."""
    found = {}
    for field in dataclasses.fields(part):
        value, name = getattr(part, field.name), f"{prefix}.{field.name}"
        found |= (
            flatten(value, name) if dataclasses.is_dataclass(value) else {name: value}
        )
    return found


def comparison(jobs: dict[str, dict[str, Any]]) -> str:
    """A table of the settings that are not the same in all jobs."""
    names = list(next(iter(jobs.values())))
    lines = [f"| setting | {' | '.join(f'`:{name}`' for name in jobs)} |"]
    lines.append("|---" * (1 + len(jobs)) + "|")
    for name in names:
        values = [literal(job[name]) for job in jobs.values()]
        if len(set(values)) > 1:
            lines.append(f"| `{name}` | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    jobs = {
        name: flatten(from_config(schema.Job, presets.dreambooth(name)), "config")
        for name in PRESETS
    }
    alike = flatten(from_config(schema.Job, presets.dreambooth("if_xl")), "config")
    assert alike == jobs["if_m"] | {"config.cascade": "if_xl"}
    assert set(PRESETS) <= CASCADES.keys()
    stages = {
        name: flatten(
            from_config(schema.Pretraining, presets.pretraining(name)), "config"
        )
        for name in PRETRAININGS
    }
    return "\n".join(
        [
            HEAD,
            *(section(kind, where) for kind, where in SECTIONS),
            MIDDLE + comparison(jobs),
            TAIL + section(*PRETRAINING_SECTIONS[0]),
            "## Defaults by pretrained stage\n\n" + comparison(stages),
            section(*PRETRAINING_SECTIONS[1]).rstrip() + "\n",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
