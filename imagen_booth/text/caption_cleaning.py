"""Caption cleaning as applied to the training captions of the models."""

import html
import html.parser
import re
import unicodedata
import urllib.parse
from collections.abc import Callable

try:
    import ftfy  # pyright: ignore[reportMissingImports] optional
except ImportError:
    ftfy = None

from imagen_booth.errors import InputError


def simple_clean(text: str) -> str:
    """Lower-cases and strips, as IF does without its caption cleaner."""
    return text.lower().strip()


class _TextOnly(html.parser.HTMLParser):
    """Collects the text between tags, without scripts, style sheets and templates."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag, attrs):
        self._silent += tag in ("script", "style", "template")

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style", "template") and self._silent > 0

    def handle_data(self, data):
        if not self._silent:
            self.parts.append(data)

    def handle_entityref(self, name):
        character = html.unescape(f"&{name};")
        self.handle_data(f"&{name}" if character == f"&{name};" else character)

    def handle_charref(self, name):
        self.handle_data(html.unescape(f"&#{name};"))

    def unknown_decl(self, data):
        self.handle_data(data.partition("[")[2])


def _strip_tags(text: str) -> str:
    parser = _TextOnly()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


def _repair(text: str) -> str:
    """Repairs broken encodings and resolves doubled HTML escapes.

    Without ftfy installed, it normalises the text to Unicode's composed form and leaves
    broken encodings as they are.
    """
    text = ftfy.fix_text(text) if ftfy else unicodedata.normalize("NFC", text)
    return html.unescape(html.unescape(text))


def _replace(pattern: str, by: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: compiled.sub(by, text)


def _space_out(text: str) -> str:
    """Replaces dashes and underscores by spaces if there are more than three."""
    joined = re.findall(r"[-_]", text)
    return re.sub(r"[-_]", " ", text) if len(joined) > 3 else text


_DOMAIN = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c"
    "\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

# In the order in which they are applied.
_STEPS: tuple[Callable[[str], str], ...] = (
    urllib.parse.unquote_plus,
    simple_clean,
    _replace("<person>", "person"),
    # Web addresses; an address in another domain loses only its scheme.
    _replace(rf"\b(?:(?:https?|www):(?:/{{1,3}}|[a-z0-9%])|{_DOMAIN})", ""),
    _strip_tags,
    _replace(r"@\w+\b", ""),
    # Ideographs, strokes, phonetic extensions, enclosed and compatibility forms.
    _replace("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u33ff\u3400-\u4dff\u4e00-\u9fff]", ""),
    _replace(f"[{_DASHES}]+", "-"),
    _replace("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    _replace("[\u2018\u2019]", "'"),
    _replace("&quot;?|&amp", ""),
    _replace(r"\d{1,3}(?:\.\d{1,3}){3}", " "),
    _replace(r"\d:\d\d\s+$", ""),
    _replace(r"\\n", " "),
    _replace(r"#\d{1,3}\b|#\d{5,}\b|\b\d{6,}\b", ""),
    _replace(rf"\S+\.(?:{_FILES})", ""),
    _replace("[\"']{2,}", '"'),
    _replace(r"\.{2,}", " "),
    _replace(
        "[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~"
        r")(\]\[}{|\\/*]+",
        " ",
    ),
    _replace(r"\s+\.\s+", " "),
    _space_out,
    _repair,
    # Codes of letters and digits, such as article numbers.
    _replace(r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    _replace(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    _replace(r"\b\d+[a-zA-Z]+\d+\b", ""),
    # Phrases of shops and download pages.
    _replace(r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    _replace(r"(?:free\s)?download(?:\sfree)?", ""),
    _replace(r"\bclick\b\s(?:for|on)\s\w+", ""),
    _replace(rf"\b(?:{_FILES})(?:\simages?)?", ""),
    _replace(r"\bpage\s+\d+\b", ""),
    _replace(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    # Sizes such as 30x40, with the Latin or Cyrillic letter or the sign.
    _replace("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),
    _replace(r"\b\s+:\s+", ": "),
    _replace(r"(\D[,./])\b", r"\1 "),
    _replace(r"\s+", " "),
    # Before stripping, so that quotes behind a space at an end stay.
    _replace("^[\"']([\\w\\W]+)[\"']$", r"\1"),
    _replace("^['_,:;-]", ""),
    _replace("['_,:+-]$", ""),
    _replace(r"^\.\S+$", ""),
    str.strip,
)


def clean_once(text: str) -> str:
    """One pass of the caption cleaner of DeepFloyd IF.

    Lower-cases, and removes from captions scraped from the web what is not words:
    addresses, HTML, names of users and files, codes, sizes, phrases of shops, stray
    punctuation. It also removes identifiers that mix letters and digits.
    """
    for step in _STEPS:
        text = step(text)
    return text


def clean_caption(text: str) -> str:
    """A prompt as IF cleans it: two passes of ``clean_once``."""
    return clean_once(clean_once(text))


# Cleanings of prompts before tokenisation. IF uses the last one if the packages that
# its authors' cleaner needs are installed, else the second.
CLEANERS: dict[str, Callable[[str], str] | None] = {
    "none": None,
    "simple": simple_clean,
    "caption": clean_caption,
}


def cleaner(name: str) -> Callable[[str], str] | None:
    """The cleaning called ``name``; None for "none".

    Raises:
        InputError: No such cleaning.
    """
    if name not in CLEANERS:
        raise InputError(
            f"config.cleaning={name!r} is not known; use {', '.join(CLEANERS)}, or ''"
        )
    return CLEANERS[name]
