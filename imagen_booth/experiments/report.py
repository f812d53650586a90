"""reproduce.html: the pictures of every study, its scores and the verdicts.

The page is made from ``results.json`` and the pictures that it names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from imagen_booth import storage
from imagen_booth.data import image_files
from imagen_booth.experiments import claims
from imagen_booth.experiments.plan import STUDIES
from imagen_booth.reports import html
from imagen_booth.reports.curves import scatter
from imagen_booth.sampling.cascade_sampler import grid

NAME = "reproduce.html"
LARGE = 560  # pixels of a picture by itself
CELL, ACROSS = 128, 8  # pixels of a picture in a group, and most pictures in a row

# By metric: its name, the paper's metric, and the number of decimals.
METRICS = {
    "right": ("share correct", "", 2),
    "subject": ("subject fidelity", "DINO", 3),
    "prompt": ("prompt fidelity", "CLIP-T", 3),
    "true_subject": ("subject fidelity, true renders", "", 3),
    "true_prompt": ("prompt fidelity, true renders", "", 3),
    "pres": ("PRES, lower is better", "PRES", 3),
    "div": ("DIV, higher is better", "DIV", 3),
    "seconds": ("seconds of class images and steps", "", 0),
    "seconds_tuning": ("seconds of steps", "", 0),
    "memory": ("MiB at a step's peak", "", 0),
    "export": ("MB of an export", "", 2),
    "error_256": ("high-frequency error at 256 px", "", 2),
    "amount_256": ("detail at 256 px", "", 2),
    "error_1024": ("high-frequency error at 1024 px", "", 2),
    "amount_1024": ("detail at 1024 px", "", 2),
}
VERDICTS = {
    claims.SHOWN: "Shown",
    claims.PAIRED: "Shown subject by subject",
    claims.OPEN: "Not shown",
    claims.PAIRED_REVERSED: "Does not reproduce, subject by subject",
    claims.REVERSED: "Does not reproduce",
}


def write(folder: epath.Path, results: Mapping[str, Any]) -> epath.Path:
    """Writes the page and returns its path.

    Args:
        folder: Folder of the studies; the files in ``results`` are relative to it.
        results: The content of ``results.json``.
    """
    weights, judge = results["weights"], results["judge"]
    studies = {n: results["studies"][n] for n in STUDIES if n in results["studies"]}
    document = html.render(
        "experiments.html.j2",
        title="The claims, measured",
        hashes={
            **{name: each["fingerprint"] for name, each in weights.items()},
            # A judge that was not loaded from a file has none.
            **({"judge": judge["sha256"]} if "sha256" in judge else {}),
        },
        untrained=[n for n, each in weights.items() if not each["pretrained"]],
        judge_correct=judge.get("held_out", {}).get("words", {}),
        studies=studies,
        paper=claims.PAPER,
        metrics=METRICS,
        verdicts=VERDICTS,
        open_verdict=claims.OPEN,
        enough_subjects=claims.ENOUGH,
        drift={
            name: scatter(each["drift"])
            for name, each in studies.items()
            if "drift" in each
        },
        pictures={name: _pictures(folder, each) for name, each in studies.items()},
    )
    path = folder / NAME
    storage.write_atomic(path, document.encode())
    return path


def _pictures(
    folder: epath.Path, study: Mapping[str, Any]
) -> dict[str, list[html.Picture]]:
    """Pictures that stand alone, and groups of pictures as one sheet each."""
    pictures = {"single": [], "sheets": []}
    for cell in study["pictures"]:
        images = [image_files.load_png(folder / file) for file in cell["files"]]
        caption = cell["caption"]
        if len(images) == 1:
            image = Image.fromarray(_centre(images[0], cell["crop"]))
            # A contact sheet is not square and must stay legible.
            side = LARGE if image.width == image.height else 0
            shown = html.picture(image, caption, lines=(caption,), side=side)
            pictures["single"].append(shown)
        else:
            cells = [np.asarray(_cell(image)) for image in images]
            rows = -(-len(cells) // ACROSS)
            sheet = Image.fromarray(grid(cells, -(-len(cells) // rows)))
            pictures["sheets"].append(html.picture(sheet, caption, lines=(caption,)))
    return pictures


def _centre(image: np.ndarray, crop: int) -> np.ndarray:
    if not 0 < crop < len(image):
        return image
    start = (len(image) - crop) // 2
    return image[start : start + crop, start : start + crop]


def _cell(image: np.ndarray) -> Image.Image:
    """One picture of a group; a small one is enlarged without smoothing."""
    small = len(image) <= CELL
    kind = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize((CELL, CELL), kind)
