"""HTML pages from the templates in `templates/`.

A page is one file: its style sheet and its pictures are inside it, and it loads
nothing. The templates escape every value, so Python passes plain text.
"""

import base64
import dataclasses
import io

import jinja2
from PIL import Image

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("imagen_booth.reports"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.do"],
)


def part_label(part: str) -> str:
    """The name, for readers, of a part of a run's time in its manifest."""
    names = {"learning words": "Textual Inversion", "the rest": "other"}
    return names.get(part, part.replace("tuning ", "fine-tuning "))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture on a page, with its caption.

    Attributes:
        uri: Data URI that holds the encoded picture.
        width, height: Size in pixels. The browser reserves the room before it decodes.
        alt: Alternative text.
        title: First line of the caption, in bold; may be empty.
        lines: Further lines of the caption.
        link: Address that the picture links to; empty for none.
    """

    uri: str
    width: int
    height: int
    alt: str
    title: str = ""
    lines: tuple[str, ...] = ()
    link: str = ""

    @property
    def is_small(self) -> bool:
        """Whether to enlarge it pixel by pixel: smoothing would only blur it."""
        return max(self.width, self.height) <= 160


def render(template: str, **values: object) -> str:
    """Fills a template; a value that the template needs and lacks is an error."""
    return _ENVIRONMENT.get_template(template).render(values)


def picture(
    image: Image.Image,
    alt: str,
    title: str = "",
    lines: tuple[str, ...] = (),
    *,
    side: int = 0,
    link: str = "",
    quality: int | None = None,
) -> Picture:
    """Encodes a picture for a page, as WebP.

    Args:
        image: The picture; it is not changed.
        alt, title, lines, link: As in `Picture`.
        side: Greatest width and height in pixels; 0 leaves the size as it is.
        quality: WebP quality from 0 to 100. The default depends on the size, because
            compression harms small pictures most: below 20,000 pixels it is lossless.
    """
    if side and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    area = image.width * image.height
    data = io.BytesIO()
    image.save(
        data,
        "WEBP",
        lossless=quality is None and area <= 20_000,
        quality=quality or (80 if area > 100_000 else 92),
    )
    uri = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return Picture(uri, image.width, image.height, alt, title, lines, link)
