"""reproduce.html: every study's pictures, scores beside the paper's, and verdicts.

The page is built from ``results.json`` and the pictures it names.
"""

import base64
import io
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
from imagen_booth.sampling.cascade_sampler import grid

NAME = "reproduce.html"
LARGE = 560  # pixels of a picture by itself
SHOWN = 12  # digits of a hash
CELL, ACROSS = 128, 8  # pixels of a picture among others, and how many at most in a row

TITLES = {
    "vanilla": "The prior",
    "fidelity": "Subject and prompt",
    "baselines": "Beside other ways",
    "prior": "Prior preservation",
    "sampler": "How class images are drawn",
    "noun": "The class noun",
    "identifier": "The identifier",
    "photos": "How many photos",
    "sr": "Super-resolution",
}
ABOUT = {
    "vanilla": "What the untuned cascade draws for captions whose noun, colour and "
    "place never came together in its training: the share that the judge finds right.",
    "fidelity": "The subject in each of the paper's applications, beside the photos "
    "among themselves, true renders of the same prompts, and the class as the untuned "
    "model draws it.",
    "baselines": "The same subjects by DreamBooth, by naive tuning without class "
    "images, by Textual Inversion (only what the identifier means is learnt, the "
    "networks stay as they came), and by a description in the prompt with nothing "
    "tuned. The paper’s figures are those on Stable Diffusion.",
    "prior": "Tuned with and without class images. PRES: how much pictures of the "
    "class alone look like the subject. DIV: how much pictures of one prompt differ.",
    "sampler": "The class images of a run by the ancestral sampler as by default, by "
    "the same at ten times the steps, and by a solver at half of them. Where the "
    "intervals overlap, the cheaper way is as good as far as this can tell.",
    "noun": "The noun in the instance prompt and the class prompt: the right one, "
    "none, that of another class, and that of another class with longer fitting. "
    "Without a noun there is no class, and so no prior loss; beside it the right "
    "noun without prior loss.",
    "identifier": "What stands for [V]: a rare word, a colour that is not the "
    "subject's, or random characters.",
    "photos": "Tuned on the first one to five photos; scored against all five. The "
    "paper's figures are those of its dog.",
    "sr": "The upper stages untuned, tuned with low-resolution noise at the level of "
    "their pretraining, and tuned at the low level.",
}
# Of a metric: its name, what the paper measured it by, and its decimals.
METRICS = {
    "right": ("share right", "", 2),
    "subject": ("subject fidelity", "DINO", 3),
    "prompt": ("prompt fidelity", "CLIP-T", 3),
    "true_subject": ("subject fidelity, true renders", "", 3),
    "true_prompt": ("prompt fidelity, true renders", "", 3),
    "pres": ("PRES, lower is better", "PRES", 3),
    "div": ("DIV, higher is better", "DIV", 3),
    "error_256": ("high-frequency error at 256 px", "", 2),
    "amount_256": ("detail at 256 px", "", 2),
    "error_1024": ("high-frequency error at 1024 px", "", 2),
    "amount_1024": ("detail at 1024 px", "", 2),
}
WORDS = {
    claims.SHOWN: "Shown",
    claims.PAIRED: "Shown subject by subject",
    claims.OPEN: "Not shown",
    claims.PAIRED_REVERSED: "Does not reproduce, subject by subject",
    claims.REVERSED: "Does not reproduce",
}


def write(folder: epath.Path, results: Mapping[str, Any]) -> epath.Path:
    """Writes the page and returns its path.

    Args:
        folder: of the studies; files in ``results`` are relative to it.
        results: as ``conduct`` stores them.
    """
    studies = {n: results["studies"][n] for n in STUDIES if n in results["studies"]}
    sections = [("Claims", _summary(studies))]
    sections += [(TITLES[n], _study(folder, n, each)) for n, each in studies.items()]
    document = html.page("The claims, measured", _header(results), sections)
    path = folder / NAME
    storage.write_atomic(path, document.encode())
    return path


def _header(results: Mapping[str, Any]) -> str:
    parts = [
        '<p class="eyebrow">imagen_booth, DreamBooth on the toybox</p>'
        "<h1>The claims, measured</h1>",
        '<p class="lead">A small cascade, a rendered world and a judge stand in for '
        "Imagen, photographs, DINO, CLIP and LPIPS. The paper’s figures are printed "
        "beside ours for the order of arms; the numbers live on different scales.</p>",
    ]
    of = {**results["weights"], "judge": results["judge"]}
    said = ", ".join(
        f"{name} {each['sha256'][:SHOWN]}"
        for name, each in of.items()
        if "sha256" in each  # a judge that no file holds has none
    )
    parts.append(f'<p class="facts">Weights measured, by sha256: {said}.</p>')
    raw = [name for name, each in results["weights"].items() if not each["pretrained"]]
    if raw:
        said = f"{', '.join(raw)}: these weights are random, and scores mean nothing."
        parts.append(html.note("Untrained.", [said]))
    measured = results["judge"].get("held_out", {}).get("words", {})
    if measured:
        said = ", ".join(
            f"{name} {100 * each['right']:.1f} %" for name, each in measured.items()
        )
        parts.append(html.note("The judge, right on renders it never saw:", [said]))
    return "".join(parts)


def _summary(studies: Mapping[str, Any]) -> str:
    rows = [
        [html.text(claim["text"]), f"<b>{WORDS[claim['verdict']]}</b>", _why(claim)]
        for study in studies.values()
        for claim in study["claims"]
    ]
    said = (
        "A claim is shown where the 95 % bootstrap intervals of both arms are apart in "
        "its order, and does not reproduce where they are apart the other way. Where "
        "they overlap, the difference decides, taken subject by subject: by an "
        f"interval on one side of 0, over {claims.ENOUGH} subjects or more. Intervals "
        "are over subjects, and too narrow where these are few."
    )
    return f"<p>{said}</p>" + html.table(["claim", "", "why"], rows)


def _why(claim: Mapping[str, Any]) -> str:
    if "least" in claim:
        return f"{_score(claim['above_score'], 2)}, wanted {claim['least']:.2f}"
    places = METRICS[claim["metric"]][2]
    sides = (
        f"{html.text(claim[side])} {_score(claim[f'{side}_score'], places)}"
        for side in ("above", "below")
    )
    said = " against ".join(sides)
    if claim["verdict"] == claims.OPEN:
        right = claim["above_score"]["mean"] > claim["below_score"]["mean"]
        order = "in the claim’s order" if right else "in the other order"
        said += f": the intervals overlap, the means stand {order}"
    return f"{said}; difference {_score(claim['difference'], places)}"


def _study(folder: epath.Path, name: str, study: Mapping[str, Any]) -> str:
    parts = [f"<p>{html.text(ABOUT[name])}</p>"]
    for number, arms in enumerate(study["tables"]):
        paper = claims.PAPER.get(name, {}) if number == 0 else {}
        parts.append(_table(arms, paper))
    facts = [f"Subjects: {', '.join(study['subjects'])}."] if study["subjects"] else []
    for line in [*facts, *study["notes"]]:
        parts.append(f'<p class="facts">{html.text(line)}</p>')
    single, rows = [], []
    for cell in study["pictures"]:
        kind = single if len(cell["files"]) == 1 else rows
        kind.append(_figure(folder, cell))
    if single:
        columns = min(len(single), 3)
        parts.append(html.grid(single, columns, min(columns, 2)))
    parts += [html.grid([row], 1, 1) for row in rows]
    return "".join(parts)


def _table(arms: Mapping[str, Any], paper: Mapping[str, Mapping[str, float]]) -> str:
    """Arms down, metrics across; the paper's figures after each that it has."""
    metrics = list(dict.fromkeys(m for scores in arms.values() for m in scores))
    told = {m for figures in paper.values() for m in figures}
    head = ["", *(w for m in metrics for w in _headings(m, m in told)), "n"]
    rows = []
    for arm, found in arms.items():
        row = [html.text(arm)]
        for metric in metrics:
            places = METRICS[metric][2]
            row.append(_score(found[metric], places) if metric in found else "")
            if metric in told:
                figure = paper.get(arm, {}).get(metric)
                row.append("" if figure is None else f"{figure:.3f}")
        first = next(iter(found.values()))
        rows.append([*row, f"{first['groups']} / {first['values']}"])
    said = (
        '<p class="facts">Means with 95 % bootstrap intervals; n: groups and '
        "values.</p>"
    )
    return html.table(head, rows) + said


def _headings(metric: str, told: bool) -> list[str]:
    name, by, _ = METRICS[metric]
    return [name, f"paper’s {by}"] if told else [name]


def _score(score: Mapping[str, Any], places: int) -> str:
    mean, low, high = (f"{score[k]:.{places}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _figure(folder: epath.Path, cell: Mapping[str, Any]) -> str:
    """The pictures of a cell side by side, as one."""
    images = [image_files.load_png(folder / file) for file in cell["files"]]
    if len(images) == 1:
        sheet = Image.fromarray(_middle(images[0], cell["crop"]))
        if sheet.width == sheet.height:
            sheet.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    else:
        cells = [np.asarray(_cell(image)) for image in images]
        rows = -(-len(cells) // ACROSS)
        sheet = Image.fromarray(grid(cells, -(-len(cells) // rows)))
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=88)
    uri = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return html.figure(uri, sheet.size, cell["caption"], html.text(cell["caption"]))


def _middle(image: np.ndarray, crop: int) -> np.ndarray:
    if not 0 < crop < len(image):
        return image
    start = (len(image) - crop) // 2
    return image[start : start + crop, start : start + crop]


def _cell(image: np.ndarray) -> Image.Image:
    """One of several pictures; the pixels of a small one stay what they are."""
    small = len(image) <= CELL
    kind = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize((CELL, CELL), kind)
