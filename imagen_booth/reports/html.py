"""How the report looks: one HTML page without scripts, fonts or requests.

Every function here turns plain values into a piece of HTML and escapes all text; what
the page says is decided in `report`.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
"""

_STYLE = """
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #21201d; --soft: #6f6c64;
  --line: #e6e2d8; --accent: #a8481f; --note: #f6eee2;
  --subject: #c2571f; --class: #2f6f9f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161618; --card: #1e1e21; --ink: #eae8e3; --soft: #9f9b93;
    --line: #303034; --accent: #e79a6c; --note: #2a241d;
    --subject: #ee9460; --class: #74b2de;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: break-word;
}
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 72px; }
h1, h2, h3 {
  font-family: "Iowan Old Style", Charter, "Palatino Linotype", Palatino, Georgia,
    serif;
  font-weight: 600; line-height: 1.15; text-wrap: balance;
}
h1 { font-size: clamp(2.4rem, 6vw, 4rem); margin: 6px 0 18px; letter-spacing: -.015em; }
h2 { font-size: 1.75rem; margin: 0 0 6px; letter-spacing: -.01em; }
h3 { font-size: 1.15rem; margin: 36px 0 12px; }
p { margin: 0 0 14px; max-width: 66ch; }
.eyebrow, .facts { color: var(--soft); font-size: .88rem; }
.eyebrow { letter-spacing: .02em; margin: 0; }
.lead { font-size: 1.2rem; line-height: 1.55; }
nav { margin: 26px 0 0; padding: 12px 0; border-block: 1px solid var(--line); }
nav a { margin-right: 22px; display: inline-block; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: 4px; }
a:hover { color: var(--accent); text-decoration-color: currentColor; }
section { padding: 56px 0 0; }
section > p { color: var(--soft); }
.note {
  background: var(--note); border-left: 3px solid var(--accent);
  padding: 14px 20px; margin: 20px 0 0; border-radius: 0 8px 8px 0;
  max-width: 48rem; font-size: .95rem;
}
.note p { max-width: none; margin: 0; }
.note ul { margin: 4px 0 0; }
.note ul { padding-left: 20px; }
.note li + li { margin-top: 4px; }
.grid {
  display: grid; gap: 22px; margin-top: 20px;
  grid-template-columns: repeat(var(--columns), minmax(0, 1fr));
}
figure { margin: 0; min-width: 0; }
figure img {
  display: block; width: 100%; height: auto; border-radius: 8px;
  background: var(--line);
}
img.pixels { image-rendering: pixelated; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .86rem; line-height: 1.45;
  padding-top: 8px; }
figcaption b { color: var(--ink); font-weight: 600; }
.small { gap: 12px; }
.small figcaption { font-size: .76rem; padding-top: 5px; }
.strip { gap: 10px; margin-top: 14px; }
.strip figcaption { text-align: center; }
.strip img { border-radius: 5px; }
.pairs { display: flex; gap: 44px; margin: 16px 0 4px; flex-wrap: wrap; }
.pairs div { font-size: .86rem; color: var(--soft); }
.pairs strong {
  display: block; font: 600 2rem/1.1 "Iowan Old Style", Charter, Georgia, serif;
  color: var(--ink); font-variant-numeric: tabular-nums;
}
.curve > svg { display: block; width: 100%; height: auto; }
.curve text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.curve .axis { stroke: var(--line); stroke-width: 1; }
.curve path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
.curve .raw { stroke-width: 1; opacity: .3; }
.curve .mean { stroke-width: 2.2; }
.subject { --series: var(--subject); }
.class { --series: var(--class); }
.loss { --series: var(--accent); }
.raw, .mean { stroke: var(--series); }
.key::before {
  content: ""; display: inline-block; width: 18px; height: 3px; border-radius: 2px;
  background: var(--series); vertical-align: middle; margin-right: 7px;
}
.key { margin-right: 20px; white-space: nowrap; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content;
  gap: 8px 16px; align-items: center; margin-top: 18px; }
.bars i { display: block; height: 14px; min-width: 2px; border-radius: 3px;
  background: var(--accent); opacity: .8; }
.bars span { font-size: .92rem; font-variant-numeric: tabular-nums; }
.bars span:nth-child(3n) { text-align: right; color: var(--soft); }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: 12px 0; font-weight: 600; }
summary:hover { color: var(--accent); }
.scroll { overflow-x: auto; padding-bottom: 14px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { text-align: left; vertical-align: top; padding: 6px 24px 6px 0;
  border-top: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); border-top: 0; }
td { font-variant-numeric: tabular-nums; min-width: 6ch; }
td code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
footer { color: var(--soft); font-size: .86rem; padding-block: 64px 56px; }
@media (max-width: 720px) {
  main, header, footer { padding-inline: 18px; }
  header { padding-top: 40px; }
  section { padding-top: 44px; }
  .grid { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)); gap: 16px; }
  .small, .strip { gap: 8px; }
}
@media print { details { display: none; } section { break-inside: avoid; } }
"""


def text(value: object) -> str:
    """Any value as escaped text."""
    return html.escape(str(value), quote=True)


def page(title: str, header: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document; sections are (heading, HTML), empty ones are left out."""
    sections = [(heading, body) for heading, body in sections if body]
    links = "".join(
        f'<a href="#{_anchor(heading)}">{text(heading)}</a>' for heading, _ in sections
    )
    bodies = "".join(
        f'<section id="{_anchor(heading)}"><h2>{text(heading)}</h2>{body}</section>\n'
        for heading, body in sections
    )
    return (
        f"{_HEAD}<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
        f"<header>{header}{f'<nav>{links}</nav>' if links else ''}</header>\n"
        f"<main>{bodies}</main>\n"
        "<footer>Written by imagen_booth from the run’s own files. This page is one "
        "file and loads nothing from elsewhere.</footer></body></html>\n"
    )


def _anchor(heading: str) -> str:
    return text(heading.lower().replace(" ", "-"))


def note(title: str, lines: Sequence[str]) -> str:
    """A marked box: one sentence, or a title with a list."""
    if not lines:
        return ""
    if len(lines) == 1:
        return f'<div class="note"><p><b>{text(title)}</b> {text(lines[0])}</p></div>'
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<div class="note"><p><b>{text(title)}</b></p><ul>{items}</ul></div>'


def figure(uri: str, size: tuple[int, int], alt: str, caption: str) -> str:
    """A picture with its caption.

    Args:
        uri: data URI.
        size: (width, height) in pixels, so that the page does not jump while it loads.
        alt: plain text.
        caption: HTML, already escaped; may be empty.
    """
    # Few pixels are shown as they are; the browser would smooth them into a blur.
    pixels = ' class="pixels"' if max(size) <= 160 else ""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure><img{pixels} src="{uri}" width="{size[0]}" height="{size[1]}" '
        f'alt="{text(alt)}">{below}</figure>'
    )


def picture(image: Image.Image, alt: str, caption: str) -> str:
    """A figure that carries its picture along; otherwise as `figure`."""
    data = io.BytesIO()
    # Compression smears pictures of few pixels, which will be enlarged, the most.
    area = image.width * image.height
    quality = 80 if area > 100_000 else 92
    image.save(data, "WEBP", quality=quality, lossless=area <= 20_000)
    uri = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return figure(uri, image.size, alt, caption)


def grid(figures: Sequence[str], columns: int, narrow: int, kind: str = "") -> str:
    """Figures in rows of `columns`, or of `narrow` on a telephone."""
    style = f"--columns:{columns};--narrow:{narrow}"
    return f'<div class="grid {kind}" style="{style}">{"".join(figures)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, headed where `head` has words; cells are HTML, already escaped."""
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    top = f"<tr>{top}</tr>" if top else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table>{top}{body}</table></div>'


def details(summary: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def pairs(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers side by side; (number, what it is)."""
    cells = "".join(
        f"<div><strong>{text(number)}</strong>{text(label)}</div>"
        for number, label in values
    )
    return f'<div class="pairs">{cells}</div>'


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars; (label, length, the length in words)."""
    longest = max((length for _, length, _ in rows), default=0) or 1
    cells = "".join(
        f"<span>{text(label)}</span>"
        f'<i style="width:{100 * length / longest:.1f}%"></i><span>{text(words)}</span>'
        for label, length, words in rows
    )
    return f'<div class="bars">{cells}</div>'


def keys(names: Sequence[str]) -> str:
    """The legend of the curves."""
    return "".join(f'<span class="key {text(n)}">{text(n)}</span>' for n in names)


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 400, 220, 44, 26


def curve(series: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> str:
    """Inline SVG of losses over steps: each value faint, their running mean strong.

    Args:
        series: (steps, values) by name; finite, in order of steps, at least one point.
        label: says in words what is drawn.
    """
    shown = {name: _thin(*points) for name, points in series.items()}
    last = max(float(x[-1]) for x, _ in series.values()) or 1.0
    # One wild step would press all others to the floor: it may leave through the top.
    highest = 1.1 * max(float(np.quantile(y, 0.98)) for _, y in shown.values())
    ticks = _ticks(highest if highest > 0 else 1.0)
    top = ticks[-1]

    def line(x, y, kind: str) -> str:
        across = _LEFT + x / last * (_WIDTH - _LEFT)
        down = 6 + (1 - y / top) * (_HEIGHT - _BOTTOM - 6)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
        return f'<path class="{kind}" d="M{points}"/>'

    parts = []
    for tick in ticks:
        y = 6 + (1 - tick / top) * (_HEIGHT - _BOTTOM - 6)
        parts.append(
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    floor = _HEIGHT - _BOTTOM + 20
    parts.append(
        f'<text x="{_LEFT}" y="{floor}">0</text>'
        f'<text x="{_WIDTH}" y="{floor}" text-anchor="end">{last:g} steps</text>'
    )
    # A nested <svg> clips what lies above the highest tick.
    parts.append(f'<svg width="{_WIDTH}" height="{_HEIGHT}">')
    for name, (x, y) in shown.items():
        parts.append(f'<g class="{text(name)}">{line(x, y, "raw")}')
        parts.append(line(x, _running_mean(y), "mean") + "</g>")
    parts.append("</svg>")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _thin(x: np.ndarray, y: np.ndarray, most: int = 300):
    """At most `most` points, each the mean of its neighbours."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    count = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / count, np.add.reduceat(y, edges) / count


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Mean over a tenth of the points around each, over fewer at the ends."""
    reach = len(y) // 20
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    first = np.maximum(index - reach, 0)
    end = np.minimum(index + reach + 1, len(y))
    return (total[end] - total[first]) / (end - first)


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to just above `highest`, three to six of them."""
    scale = 10.0 ** math.floor(math.log10(highest))
    step = next(s for s in (0.2, 0.5, 1, 2) if highest / (s * scale) <= 5) * scale
    return [i * step for i in range(math.ceil(highest / step) + 1)]
