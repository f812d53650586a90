"""Exports the weights of a run or of a folder, in our layout or diffusers'."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.cascade import CASCADES, Cascade, Stage, by_name
from imagen_booth.config import build
from imagen_booth.config.schema import Adapter
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import TableSchedule
from imagen_booth.errors import InputError
from imagen_booth.models import UNetConfig
from imagen_booth.models.t5 import T5Config
from imagen_booth.rundir import checkpoints
from imagen_booth.rundir.layout import TRAIN_AGAIN
from imagen_booth.storage import read_json, write_atomic
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import (
    deepfloyd,
    load,
    lora_files,
    model_card,
    native,
    t5,
    tensor_files,
)
from imagen_booth.weights.tensor_files import Tensor, WeightFiles

TABLE = "token_embedder/embedding"  # of a text encoder


@dataclasses.dataclass(frozen=True)
class ExportedPart:
    """One part to export.

    Attributes:
        name: ``text`` or a stage's name.
        weights: Tensors by path of the parameter.
        network: The network they belong to.
        cascade: Name of the cascade, where it is known.
        licence: Licence of the weights it was made from.
        pretrained: False for random weights.
        entries: Further entries for the manifest.
        steps: Fine-tuning steps; 0 for weights that were only converted.
        sampler: Sampler of the run, whose spacing and threshold are exported; None if
            not known.
        scale: Factor of A B if the weights are an adapter; None for whole weights.
    """

    name: str
    weights: Mapping[str, Tensor]
    network: Stage | T5Config
    cascade: str
    licence: str
    pretrained: bool
    entries: Mapping[str, Any]
    steps: int = 0
    sampler: SamplerConfig | None = None
    scale: float | None = None


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run directory as its files describe it.

    Attributes:
        folder: The run directory.
        manifest: Content of ``manifest.json``.
        config: Content of ``config.json``.
        cascade: The cascade, with networks as the manifest describes them.
        origins: The weights that each part began with, by part.
        metadata: Entries of the manifest that every exported part gets.
    """

    folder: epath.Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    cascade: Cascade
    origins: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def read(self, part: str) -> tuple[Params, int]:
        """Reads the parameters of a finished part, and the step they are from.

        Raises:
            FileNotFoundError: The part has no finished checkpoint.
        """
        params, steps = checkpoints.read_params(self.folder / part)
        best = (self.manifest.get("kept") or {}).get(part) or {}
        return params, best.get("step", steps)

    def origin(self, part: str) -> dict[str, Any]:
        """Returns where a part's weights came from, without the network."""
        origin = self.origins.get(part, {})
        return {key: value for key, value in origin.items() if key != "network"}

    def scale(self, stage: str) -> float:
        """Returns the factor of A B of a stage's adapter."""
        field = f"config.{stage}.adapter"
        return build.build(Adapter, self.config[stage]["adapter"], field).scale

    def unfinished(self, part: str) -> InputError:
        return InputError(
            f"{self.folder / part} holds no finished checkpoint; finish the run first"
        )


def export_run(run: epath.Path, parts: Sequence[str]) -> list[ExportedPart]:
    """Collects the networks and adapters of a run that have a finished checkpoint.

    Args:
        run: Run directory of a run, or of pretraining.
        parts: Names of parts; empty for all that were fine-tuned.

    Raises:
        InputError: There is no such run, or a part was not fine-tuned in it.
    """
    opened = _open_run(run)
    stages = [
        stage.name for stage in opened.cascade.stages if (run / stage.name).exists()
    ]
    tuned, exported = list(stages), []
    if (run / "text" / "recipe.json").exists() and (not parts or "text" in parts):
        tuned.insert(0, "text")
        exported.append(_learned_words(opened))
    for stage in stages:
        try:
            params, steps = opened.read(stage)
        except FileNotFoundError:
            if stage in parts:
                raise opened.unfinished(stage) from None
            continue
        for kind, name in (("unet", stage), ("text", "text"), ("adapter", stage)):
            if kind in params and (not parts or name in parts):
                part = _fine_tuned(opened, name, params[kind], steps)
                if kind == "adapter":
                    part = dataclasses.replace(part, scale=opened.scale(stage))
                exported.append(part)
    absent = set(parts) - {part.name for part in exported}
    if absent or not exported:
        raise InputError(
            f"--parts={','.join(sorted(absent)) or 'all'}: not fine-tuned in {run}; "
            f"tuned stages there: {', '.join(tuned) or 'none'}"
        )
    return exported


def _open_run(run: epath.Path) -> _Run:
    file = run / "manifest.json"
    if not file.exists():
        raise InputError(f"--run={run} is not a run directory: it has no manifest.json")
    manifest = read_json(file, TRAIN_AGAIN)
    cascade = by_name(manifest["cascade"]["name"])
    origins = manifest["cascade"].get("parts", {})
    for origin in origins.values():
        if "network" in origin:
            where = f"{file}: {origin['name']}"
            cascade = cascade.having(native.read_network(origin["network"], where))
    metadata = {
        "cleaning": origins.get("text", {}).get("cleaning"),
        "subject": manifest.get("subject", {}).get("instance_prompt"),
        "run": manifest.get("run"),
        "seed": manifest.get("seed"),
        "made_by": manifest.get("versions", {}),
    }
    if "second" in manifest:
        metadata["second"] = manifest["second"].get("instance_prompt")
    if "prior" in manifest:
        metadata["prior"] = manifest["prior"]
    config = read_json(run / "config.json", TRAIN_AGAIN)
    return _Run(run, manifest, config, cascade, origins, metadata)


def _fine_tuned(run: _Run, name: str, params: Params, steps: int) -> ExportedPart:
    """A part of which all parameters, or an adapter, were fine-tuned."""
    network = run.cascade.text.encoder if name == "text" else run.cascade.stage(name)
    settings = run.config.get(name, {})
    if isinstance(network, Stage) and settings:
        network = network.after_finetuning(settings["hybrid"])
    sampler = run.config.get("pictures", {}).get(name)
    own = isinstance(network, Stage) and network.licence
    return ExportedPart(
        name=name,
        weights=_in_memory(params),
        network=network,
        cascade=run.cascade.name,
        licence=run.origin(name).get("licence", own or run.cascade.licence),
        pretrained=True,
        entries={**run.metadata, "steps": steps, "made_from": run.origin(name)},
        steps=steps,
        sampler=build.build(SamplerConfig, sampler, "pictures") if sampler else None,
    )


def _learned_words(run: _Run) -> ExportedPart:
    """The text encoder with the embedding rows that Textual Inversion learned.

    Raises:
        InputError: Textual Inversion has not finished, or the weights that it began
            with are gone.
    """
    try:
        tree, steps = run.read("text")
    except FileNotFoundError:
        raise run.unfinished("text") from None
    subject, origin = run.manifest["subject"], run.origin("text")
    ids = list(dict.fromkeys(subject["identifier_ids"]))
    found = load.find(run.cascade, "text", origin["source"])
    if found is None:
        weights = _in_memory(load.random_params(run.cascade, "text"))
    else:
        weights = dict(found.matched(load.shapes(run.cascade, "text")))
    table = np.array(weights[TABLE].whole(), np.float32)
    table[ids] = np.asarray(tree["rows"]["vectors"], np.float32)
    weights[TABLE] = tensor_files.held(table)
    return ExportedPart(
        name="text",
        weights=weights,
        network=run.cascade.text.encoder,
        cascade=run.cascade.name,
        licence=origin.get("licence", run.cascade.licence),
        pretrained=True,
        entries={
            **run.metadata,
            "steps": steps,
            "made_from": origin,
            "learned": {"identifier": subject["identifier"], "ids": ids},
        },
        steps=steps,
    )


def _in_memory(params: Params) -> dict[str, Tensor]:
    return {
        path: tensor_files.held(np.asarray(leaf))
        for path, leaf in flatten(params).items()
    }


def export_folder(folder: epath.Path, parts: Sequence[str]) -> list[ExportedPart]:
    """Collects the weights of a folder or a file in any layout that can be read.

    Args:
        folder: Folder in our layout or diffusers', or the place of a T5 encoder.
        parts: Names of parts. Empty for all parts in our layout; in other layouts the
            network then decides the name.

    Raises:
        InputError: There are no weights that can be read.
    """
    if (folder / native.MANIFEST).exists():
        manifest = native.read_manifest(folder)
        names = parts or sorted(manifest.get("parts", {}))
        cascade = CASCADES.get(manifest.get("cascade", ""))
        return [_converted(name, native.find(folder, name), cascade) for name in names]
    exported = []
    place = deepfloyd.network_folder(folder)
    if place is not None and list(parts) != ["text"]:
        config, size = deepfloyd.read_network(place / "config.json")
        name = parts[0] if parts else "base"
        if config.level_input and not parts:
            name = "sr256" if size <= 256 else "sr1024"
        like = CASCADES["if_m"].stage("sr256" if config.level_input else "base")
        found = deepfloyd.find(folder, dataclasses.replace(like, name=name))
        exported.append(_converted(name, found, CASCADES["if_m"]))
    if not parts or "text" in parts:
        found = t5.find(folder)
        if found is not None:
            exported.append(_converted("text", found, CASCADES["if_m"]))
    if not exported:
        raise InputError(
            f"--from={folder} holds no weights that can be read: no {native.MANIFEST}, "
            "no unet folder in diffusers' layout, and no T5 encoder as safetensors or "
            "T5X checkpoint"
        )
    return exported


def _converted(name: str, found: WeightFiles, cascade: Cascade | None) -> ExportedPart:
    if found.describes is not None:
        cascade = (cascade or CASCADES["if_m"]).having(found.describes)
    if cascade is None:
        raise InputError(
            f"{found.where} belongs to an unknown network: its manifest names neither "
            "a cascade nor a network"
        )
    network = cascade.text.encoder if name == "text" else cascade.stage(name)
    return ExportedPart(
        name=name,
        weights=found.matched(load.shapes(cascade, name)),
        network=network,
        cascade=cascade.name,
        licence=found.licence,
        pretrained=found.pretrained,
        entries={"made_from": {"source": found.where, "licence": found.licence}},
        sampler=SamplerConfig(**found.sampler) if found.sampler else None,
    )


def merge_run(run: epath.Path, parts: Sequence[str]) -> list[ExportedPart]:
    """Collects the networks of a run, with adapters added to the weights they are for.

    Args:
        run: Run directory of a run.
        parts: Names of parts; empty for all that were fine-tuned.

    Raises:
        InputError: As ``export_run``; or the weights of a part are not those that its
            adapter was trained on.
    """
    opened, merged = _open_run(run), []
    for part in export_run(run, parts):
        if part.scale is None:
            merged.append(part)
            continue
        origin, name = opened.origins[part.name], part.name
        found = load.find(opened.cascade, name, origin["source"])
        if found is None:
            weights = _in_memory(load.random_params(opened.cascade, name))
        elif found.fingerprint() == origin["fingerprint"]:
            weights = found.matched(load.shapes(opened.cascade, name))
        else:
            raise InputError(
                f"{found.where} changed since the run {run} trained an adapter on it; "
                "bring back the weights of that time"
            )
        adapter = unflatten({at: each.whole() for at, each in part.weights.items()})
        merged.append(_merged(part, weights, adapter, part.scale))
    return merged


def merge_folder(
    adapters: epath.Path, folder: epath.Path, parts: Sequence[str]
) -> list[ExportedPart]:
    """Collects the weights of a folder, with adapters from files added.

    Args:
        adapters: Folder or file of the adapters, see ``lora_files.find``.
        folder: As for ``export_folder``.
        parts: Names of stages; empty for all that have an adapter.

    Raises:
        InputError: There are no weights or no adapter, or they do not fit together.
    """
    merged = []
    for part in export_folder(folder, parts):
        if not parts and lora_files.place_of(adapters, part.name) is None:
            continue
        path = lora_files.find(adapters, part.name, "--adapter")
        adapter = lora_files.read(path, unflatten(dict(part.weights)), "--adapter")
        merged.append(_merged(part, part.weights, adapter, 1.0))
    if not merged:
        raise InputError(
            f"--adapter={adapters} holds no adapter of a part in --from={folder}; name "
            f"the folder that has {lora_files.FILE}"
        )
    return merged


def _merged(
    part: ExportedPart, weights: Mapping[str, Tensor], adapter: Params, scale: float
) -> ExportedPart:
    sums = lora_files.merged(weights, adapter, scale)
    return dataclasses.replace(part, weights=sums, scale=None)


def _write_adapter(
    to: epath.Path, part: ExportedPart, dtype: np.dtype | None
) -> epath.Path:
    """Writes an adapter and its model card into ``TO/STAGE``; returns the folder."""
    assert part.scale is not None
    assert isinstance(part.network, Stage)
    folder = to / part.name
    lora_files.save(folder / lora_files.FILE, part.weights, part.scale, dtype)
    learned = part.network.learned_variance and not part.network.stale_variance
    page = model_card.write(
        part.network, part.licence, part.entries, learned, adapter=True
    )
    write_atomic(folder / "README.md", page.encode())
    return folder


def write_native(
    to: epath.Path, parts: Iterable[ExportedPart], dtype: np.dtype | None
) -> list[epath.Path]:
    """Writes parts in our layout; other parts in the folder stay as they are.

    Adapters are written as by ``write_diffusers``: they have one layout.

    Args:
        to: Folder to write.
        parts: Parts to export.
        dtype: Dtype of the tensors; None to keep each tensor's own.

    Returns:
        Paths of the tensor files.

    Raises:
        StorageError: They cannot be written.
    """
    written = []
    for part in parts:
        if part.scale is not None:
            written.append(_write_adapter(to, part, dtype) / lora_files.FILE)
            continue
        known = CASCADES[part.cascade]
        named = known.text.encoder
        if isinstance(part.network, Stage):
            names = [stage.name for stage in known.stages]
            named = known.stage(part.name) if part.name in names else None
        network = None if part.network == named else part.network
        entry = {**part.entries, "licence": part.licence}
        if part.sampler is not None:
            dynamic = part.sampler.threshold == "dynamic"
            fields = ("spacing", "threshold", *(("ratio", "cap") if dynamic else ()))
            entry["sampler"] = {name: getattr(part.sampler, name) for name in fields}
        path = native.write(to, part.name, part.weights, network, entry, dtype)
        native.record(
            to,
            cascade=part.cascade,
            licence=part.licence,
            pretrained=part.pretrained,
        )
        written.append(path)
    return written


def write_diffusers(
    to: epath.Path, parts: Iterable[ExportedPart], dtype: np.dtype | None
) -> list[epath.Path]:
    """Writes each stage as a folder that diffusers reads: ``TO/base``, ``TO/sr256``.

    The folder of an adapter holds it and a model card; any other one holds the U-Net,
    the schedulers and a model card. Text encoders are not written: they have their own
    licence, and diffusers' IF pipelines cannot load learned words.

    Args:
        to: Folder to write.
        parts: Parts to export.
        dtype: Dtype of the tensors; None to keep each tensor's own.

    Returns:
        The folders.

    Raises:
        InputError: diffusers does not have the network or the schedule.
        StorageError: They cannot be written.
    """
    written, parts = [], list(parts)
    if all(part.name == "text" for part in parts):
        raise InputError(
            "the only part to export is a text encoder, which diffusers' IF pipelines "
            "cannot load; use --layout=own"
        )
    for part in parts:
        if part.scale is not None:
            written.append(_write_adapter(to, part, dtype))
        elif isinstance(part.network, Stage):
            written.append(_write_stage(to, part, part.network, dtype))
    return written


def _write_stage(
    to: epath.Path, part: ExportedPart, stage: Stage, dtype: np.dtype | None
) -> epath.Path:
    """Writes a stage's U-Net, schedulers and model card; returns the folder.

    Raises:
        InputError: diffusers does not have the network or the schedule.
    """
    model = stage.model
    if (
        not isinstance(model, UNetConfig)
        or not isinstance(stage.schedule, TableSchedule)
        or (model.patch, model.norm_groups) != (1, 32)
    ):
        raise InputError(
            f"{part.name} of the {part.cascade} cascade has no counterpart in "
            "diffusers; export it with --layout=own"
        )
    folder = to / part.name
    spelt = {}
    for path, tensor in part.weights.items():
        name, axes = deepfloyd.spell(path, len(tensor.shape))
        back = tuple(int(axis) for axis in np.argsort(axes))
        spelt[name] = tensor.transposed(back)
    learned = stage.learned_variance and not stage.stale_variance
    tensor_files.save(folder / "unet" / f"{deepfloyd.STEM}.safetensors", spelt, dtype)
    files = {
        "unet/config.json": deepfloyd.write_network(model, stage.resolution),
        "scheduler/scheduler_config.json": deepfloyd.write_scheduler(
            stage, part.sampler, learned
        ),
    }
    if stage.low_resolution is not None:
        name = "image_noising_scheduler/scheduler_config.json"
        files[name] = deepfloyd.write_noising(stage)
    for name, content in files.items():
        text = json.dumps(content, indent=2) + "\n"
        write_atomic(folder / name, text.encode())
    page = model_card.write(stage, part.licence, part.entries, learned)
    write_atomic(folder / "README.md", page.encode())
    return folder
