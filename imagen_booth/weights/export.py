"""A run's fine-tuned networks as a folder of weights."""

import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath

from imagen_booth import checkpoint
from imagen_booth.cascade import by_name
from imagen_booth.data.pictures import write_atomic
from imagen_booth.errors import InputError
from imagen_booth.state import flatten
from imagen_booth.weights import own


def export(
    run: epath.Path, to: epath.Path, parts: Sequence[str], dtype: str
) -> list[epath.Path]:
    """Writes tuned networks of a run as safetensors with a manifest.

    Args:
        run: work directory of a finished run, or of pretraining.
        to: folder to write; what it holds of other parts stays.
        parts: names of parts; empty for all that have a checkpoint.
        dtype: of the written tensors.

    Returns:
        Paths of the files written.

    Raises:
        InputError: no such run, or a part that was not tuned in it.
    """
    file = run / "manifest.json"
    if not file.exists():
        raise InputError(f"--run={run} is not a work directory: it has no manifest.json")
    story = json.loads(file.read_text())
    cascade = by_name(story["cascade"]["name"])
    stages = [stage.name for stage in cascade.stages if (run / stage.name).exists()]
    written = []
    manifest: dict[str, Any] = {"parts": {}}
    if (to / own.MANIFEST).exists():
        manifest = own.read_manifest(to)
    for stage in stages:
        try:
            params, step = checkpoint.read_params(run / stage)
        except FileNotFoundError:
            if stage in parts:
                raise InputError(
                    f"{run / stage} holds no finished checkpoint; finish the run first"
                ) from None
            continue
        for part, name in (("unet", stage), ("text", "text")):
            if part not in params or (parts and name not in parts):
                continue
            path = to / f"{name}.safetensors"
            own.save(path, params[part], jnp.dtype(dtype))
            written.append(path)
            manifest["parts"][name] = {
                "sha256": own.sha256(path),
                "dtype": dtype,
                "parameters": sum(leaf.size for leaf in flatten(params[part]).values()),
                "steps": step,
            }
    absent = set(parts) - {path.stem for path in written}
    if absent or not written:
        raise InputError(
            f"--parts={','.join(sorted(absent)) or 'all'}: nothing of it was tuned in "
            f"{run}; tuned stages there: {', '.join(stages) or 'none'}"
        )
    manifest |= {
        "cascade": cascade.name,
        "licence": story["cascade"].get("licence", cascade.licence),
        "pretrained": True,
        "subject": story.get("subject", {}).get("instance_prompt"),
        "made_by": story.get("versions", {}),
    }
    write_atomic(to / own.MANIFEST, json.dumps(manifest, indent=1).encode())
    return written
