"""Weights out: of a run as tuned, or of a folder, in our layout or diffusers'."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.cascade import CASCADES, Cascade, Stage, by_name
from imagen_booth.config import build
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.errors import InputError
from imagen_booth.models import UNetConfig
from imagen_booth.models.t5 import T5Config
from imagen_booth.rundir import checkpoints
from imagen_booth.storage import write_atomic
from imagen_booth.train_state import flatten
from imagen_booth.weights import deepfloyd, load, model_card, native, t5, tensor_files
from imagen_booth.weights.tensor_files import Tensor, WeightFiles

TABLE = "token_embedder/embedding"  # of a text encoder


@dataclasses.dataclass(frozen=True)
class ExportedPart:
    """One part on its way out.

    Attributes:
        name: ``text`` or a stage's name.
        weights: by path.
        network: what it is.
        cascade: whose part it is, where that is known.
        licence: of the weights it was made from.
        pretrained: False for random weights.
        story: what the manifest says besides.
        steps: it was tuned for; 0 for weights as they came.
        sampler: whose spacing and threshold it was drawn with, if known.
    """

    name: str
    weights: Mapping[str, Tensor]
    network: Stage | T5Config
    cascade: str
    licence: str
    pretrained: bool
    story: Mapping[str, Any]
    steps: int = 0
    sampler: SamplerConfig | None = None


def export_run(run: epath.Path, parts: Sequence[str]) -> list[ExportedPart]:
    """The networks of a run that have a finished checkpoint.

    Args:
        run: work directory of a run, or of pretraining.
        parts: names of parts; empty for all that were tuned.

    Raises:
        InputError: no such run, or a part that was not tuned in it.
    """
    file = run / "manifest.json"
    if not file.exists():
        raise InputError(
            f"--run={run} is not a work directory: it has no manifest.json"
        )
    story = json.loads(file.read_text())
    config = json.loads((run / "config.json").read_text())
    cascade = by_name(story["cascade"]["name"])
    origins = story["cascade"].get("parts", {})
    for origin in origins.values():
        if "network" in origin:
            described = native.read_network(
                origin["network"], f"{file}: {origin['name']}"
            )
            cascade = cascade.having(described)
    tuned = [stage.name for stage in cascade.stages if (run / stage.name).exists()]
    kept = story.get("kept") or {}
    said = {
        "cleaning": origins.get("text", {}).get("cleaning"),
        "subject": story.get("subject", {}).get("instance_prompt"),
        "run": story.get("run"),
        "seed": story.get("seed"),
        "made_by": story.get("versions", {}),
        **{key: story[key] for key in ("prior",) if key in story},
    }
    parcels = []
    if (run / "text" / "recipe.json").exists() and (not parts or "text" in parts):
        tuned.insert(0, "text")
        parcels.append(_learnt_words(run, cascade, story, said))
    for stage in [name for name in tuned if name != "text"]:
        try:
            params, steps = checkpoints.read_params(run / stage)
        except FileNotFoundError:
            if stage in parts:
                raise InputError(
                    f"{run / stage} holds no finished checkpoint; finish the run first"
                ) from None
            continue
        steps = (kept.get(stage) or {}).get("step", steps)
        for kind, name in (("unet", stage), ("text", "text")):
            if kind not in params or (parts and name not in parts):
                continue
            network = cascade.text.encoder if name == "text" else cascade.stage(name)
            tuning = config.get(name, {})
            if isinstance(network, Stage) and tuning:
                network = network.tuned(tuning["hybrid"])
            origin = {k: v for k, v in origins.get(name, {}).items() if k != "network"}
            drawn = config.get("pictures", {}).get(name)
            parcels.append(
                ExportedPart(
                    name,
                    {
                        path: tensor_files.held(np.asarray(leaf))
                        for path, leaf in flatten(params[kind]).items()
                    },
                    network,
                    cascade.name,
                    origin.get("licence", cascade.licence),
                    True,
                    said | {"steps": steps, "made_from": origin},
                    steps,
                    build.build(SamplerConfig, drawn, "pictures") if drawn else None,
                )
            )
    absent = set(parts) - {parcel.name for parcel in parcels}
    if absent or not parcels:
        raise InputError(
            f"--parts={','.join(sorted(absent)) or 'all'}: nothing of it was tuned in "
            f"{run}; tuned stages there: {', '.join(tuned) or 'none'}"
        )
    return parcels


def _learnt_words(
    run: epath.Path,
    cascade: Cascade,
    story: Mapping[str, Any],
    said: Mapping[str, Any],
) -> ExportedPart:
    """The text encoder of a run with the rows that Textual Inversion gave it.

    Raises:
        InputError: the learning has not come to an end, or the weights that it began
            from are gone.
    """
    try:
        tree, steps = checkpoints.read_params(run / "text")
    except FileNotFoundError:
        raise InputError(
            f"{run / 'text'} holds no finished checkpoint; finish the run first"
        ) from None
    subject, origin = story["subject"], story["cascade"]["parts"]["text"]
    ids = list(dict.fromkeys(subject["identifier_ids"]))
    found = load.find(cascade, "text", origin["source"])
    if found is None:
        params = load.random_params(cascade, "text")
        weights = {
            path: tensor_files.held(each) for path, each in flatten(params).items()
        }
    else:
        weights = dict(found.matched(load.shapes(cascade, "text")))
    table = np.array(weights[TABLE].whole(), np.float32)
    table[ids] = np.asarray(tree["rows"]["vectors"], np.float32)
    weights[TABLE] = tensor_files.held(table)
    steps = ((story.get("kept") or {}).get("text") or {}).get("step", steps)
    return ExportedPart(
        "text",
        weights,
        cascade.text.encoder,
        cascade.name,
        origin.get("licence", cascade.licence),
        True,
        {
            **said,
            "steps": steps,
            "made_from": {name: origin[name] for name in origin if name != "network"},
            "learned": {"identifier": subject["identifier"], "ids": ids},
        },
        steps,
    )


def export_folder(folder: epath.Path, parts: Sequence[str]) -> list[ExportedPart]:
    """Weights that lie in a folder or a file, in any layout that can be read.

    Args:
        folder: in our layout or diffusers', or of a T5 encoder.
        parts: names of parts; empty for all of ours, and otherwise to be told by
            what the network is.

    Raises:
        InputError: nothing there that can be read.
    """
    if (folder / native.MANIFEST).exists():
        manifest = native.read_manifest(folder)
        names = parts or sorted(manifest.get("parts", {}))
        cascade = CASCADES.get(manifest.get("cascade", ""))
        return [_parcel(name, native.find(folder, name), cascade) for name in names]
    parcels = []
    place = deepfloyd.network_folder(folder)
    if place is not None and list(parts) != ["text"]:
        config, size = deepfloyd.read_network(place / "config.json")
        name = parts[0] if parts else "base"
        if config.level_input and not parts:
            name = "sr256" if size <= 256 else load.TOP
        like = CASCADES["if_m"].stage("sr256" if config.level_input else "base")
        found = deepfloyd.find(folder, dataclasses.replace(like, name=name))
        parcels.append(_parcel(name, found, CASCADES["if_m"]))
    if not parts or "text" in parts:
        found = t5.find(folder)
        if found is not None:
            parcels.append(_parcel("text", found, CASCADES["if_m"]))
    if not parcels:
        raise InputError(
            f"--from={folder} holds no weights known here: neither "
            f"{native.MANIFEST}, nor "
            "a unet folder in diffusers' layout, nor a T5 encoder in safetensors or a "
            "T5X checkpoint"
        )
    return parcels


def _parcel(name: str, found: WeightFiles, cascade: Cascade | None) -> ExportedPart:
    if found.describes is not None:
        cascade = (cascade or CASCADES["if_m"]).having(found.describes)
    if cascade is None:
        raise InputError(
            f"{found.where} does not say what network it is of; its manifest names "
            "neither a cascade nor a network"
        )
    network = cascade.text.encoder if name == "text" else cascade.stage(name)
    return ExportedPart(
        name,
        found.matched(load.shapes(cascade, name)),
        network,
        cascade.name,
        found.licence,
        found.pretrained,
        {"made_from": {"source": found.where, "licence": found.licence}},
        sampler=SamplerConfig(**found.sampler) if found.sampler else None,
    )


def write_native(
    to: epath.Path, parcels: Iterable[ExportedPart], dtype: np.dtype | None
) -> list[epath.Path]:
    """Writes parts in our layout; what the folder holds of others stays.

    Args:
        dtype: of the tensors; None for each its own.

    Returns:
        Paths of the files of tensors.

    Raises:
        StorageError: they cannot be written.
    """
    written = []
    for parcel in parcels:
        known = CASCADES[parcel.cascade]
        named = known.text.encoder
        if isinstance(parcel.network, Stage):
            names = [stage.name for stage in known.stages]
            named = known.stage(parcel.name) if parcel.name in names else None
        network = None if parcel.network == named else parcel.network
        entry = {**parcel.story, "licence": parcel.licence}
        if parcel.sampler is not None:
            dynamic = parcel.sampler.threshold == "dynamic"
            fields = ("spacing", "threshold", *(("ratio", "cap") if dynamic else ()))
            entry["sampler"] = {name: getattr(parcel.sampler, name) for name in fields}
        path = native.write(to, parcel.name, parcel.weights, network, entry, dtype)
        native.record(
            to,
            cascade=parcel.cascade,
            licence=parcel.licence,
            pretrained=parcel.pretrained,
        )
        written.append(path)
    return written


def write_diffusers(
    to: epath.Path, parcels: Iterable[ExportedPart], dtype: np.dtype | None
) -> list[epath.Path]:
    """Writes each stage as a folder that diffusers reads: ``TO/base``, ``TO/sr256``.

    It holds the U-Net, the schedulers and a model card. Text encoders are passed
    over: they belong to their own licence, and diffusers' IF pipelines take no learnt
    words.

    Returns:
        The folders.

    Raises:
        InputError: a network or a schedule that diffusers does not have.
        StorageError: they cannot be written.
    """
    written, parcels = [], list(parcels)
    if all(parcel.name == "text" for parcel in parcels):
        raise InputError(
            "there is only a text encoder to export, which diffusers' IF pipelines do "
            "not take from elsewhere; use --layout=own"
        )
    for parcel in parcels:
        stage = parcel.network
        if not isinstance(stage, Stage):
            continue
        model = stage.model
        if (
            not isinstance(model, UNetConfig)
            or not isinstance(stage.schedule, TableSchedule)
            or (model.patch, model.norm_groups) != (1, 32)
        ):
            raise InputError(
                f"{parcel.name} of the {parcel.cascade} cascade has no counterpart in "
                "diffusers; export it with --layout=own"
            )
        folder = to / parcel.name
        spelt = {}
        for path, tensor in parcel.weights.items():
            name, axes = deepfloyd.spell(path, len(tensor.shape))
            back = tuple(int(axis) for axis in np.argsort(axes))
            spelt[name] = tensor.transposed(back)
        learned = stage.learned_variance and not stage.stale_variance
        tensor_files.save(
            folder / "unet" / f"{deepfloyd.STEM}.safetensors", spelt, dtype
        )
        files = {
            "unet/config.json": deepfloyd.write_network(model, stage.resolution),
            "scheduler/scheduler_config.json": deepfloyd.write_scheduler(
                stage, parcel.sampler, learned
            ),
        }
        if stage.low_resolution is not None:
            name = "image_noising_scheduler/scheduler_config.json"
            files[name] = deepfloyd.write_noising(stage)
        for name, content in files.items():
            text = json.dumps(content, indent=2) + "\n"
            write_atomic(folder / name, text.encode())
        page = model_card.write(stage, parcel.licence, parcel.story, learned)
        write_atomic(folder / "README.md", page.encode())
        written.append(folder)
    return written
