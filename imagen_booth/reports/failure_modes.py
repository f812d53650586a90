"""The section of a report that names the paper's three failures."""

from collections.abc import Callable, Mapping
from typing import Any

from imagen_booth.reports import html

# mode: (its name, what it is, what helps)
_MODES = {
    "context": (
        "Place not drawn",
        "A prompt’s place is missing.",
        "Try fewer steps, a higher guidance, or places that the cascade knows.",
    ),
    "entangled": (
        "Subject and place entangled",
        "The subject changes with the place.",
        "Try photos in several places, or more class images.",
    ),
    "overfitted": (
        "Overfitted",
        "Pictures repeat a photo.",
        "Try fewer steps, the prior loss, or photos that differ more.",
    ),
}
_SEEN = "seen"


def section(found: Mapping[str, Any], shown: Callable[[str, str], str]) -> str:
    """The section's HTML.

    Args:
        found: what ``failures.json`` holds.
        shown: (file, caption) -> a figure, or "" where the picture is gone.
    """
    said = (
        f"The paper names three ways in which pictures fail. Looked for in "
        f"{found['pictures']} pictures, held against {found['photos']} photos, by "
        f"{found['by']}."
    )
    parts = [f"<p>{html.text(said)}</p>"]
    for name, mode in found["modes"].items():
        title, about, mend = _MODES[name]
        seen = mode["verdict"] == _SEEN
        parts.append(f"<h3>{html.text(title)}: {html.text(mode['verdict'])}</h3>")
        if seen:
            parts.append(html.note(about, [f"{mode['said']} {mend}"]))
        else:
            parts.append(f"<p>{html.text(mode['said'])}</p>")
        parts.append(f'<p class="facts">{html.text(mode["rule"])}</p>')
        figures = [shown(each["file"], each["said"]) for each in mode["evidence"]]
        figures = [each for each in figures if each]
        if figures:
            parts.append(html.grid(figures, 4, 2, "small"))
    return "".join(parts)
