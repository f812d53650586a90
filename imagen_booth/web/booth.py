"""What all tabs of the page share: the root with its runs and jobs, and errors."""

import dataclasses
import functools
import html
import pathlib
from collections.abc import Callable
from typing import Any

import gradio as gr

from imagen_booth.errors import BoothError, InputError
from imagen_booth.web.jobs import Queue
from imagen_booth.web.runs import Run, Runs

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
# Of events that a timer repeats.
QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}


@dataclasses.dataclass(frozen=True)
class Booth:
    """The root folder of a page, and the server's own settings.

    Attributes:
        root: Folder of the runs.
        settings: ``--config`` flags added to every training, by cascade; "" for all.
        clip: Folder of CLIP's weights, to suggest class nouns; "" for none.
    """

    root: pathlib.Path
    settings: dict[str, tuple[str, ...]]
    clip: str = ""

    @functools.cached_property
    def queue(self) -> Queue:
        """The jobs of the root."""
        return Queue(self.root)

    @functools.cached_property
    def runs(self) -> Runs:
        """The runs of the root."""
        return Runs(self.root, self.queue)

    def open(self, name: str | None) -> Run:
        """A run by name.

        Raises:
            InputError: None is chosen, or there is none of this name.
        """
        if not name:
            raise InputError("no run is chosen; start one from photos first")
        return self.runs.open(name)

    def extra(self, cascade: str) -> tuple[str, ...]:
        """The server's flags for a training on a cascade."""
        return self.settings.get("", ()) + self.settings.get(cascade, ())


def explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """An event handler whose errors appear on the page, in one sentence."""

    @functools.wraps(function)
    def handler(*args: Any) -> Any:
        try:
            return function(*args)
        except (BoothError, OSError) as error:
            text = html.escape(str(error)).replace("\n", "<br>")
            raise gr.Error(text, duration=20, print_exception=False) from error

    return handler


def command_box(label: str, elem_id: str, visible: bool = True) -> gr.Code:
    """A command to copy."""
    return gr.Code(
        label=label, elem_id=elem_id, visible=visible, language="shell", lines=1,
        wrap_lines=True, interactive=False, show_line_numbers=False,
    )  # fmt: skip


def if_changed(seen: dict[str, Any], key: str, token: Any, value: Any) -> Any:
    """An update of a component if its token changed; ``seen`` remembers the tokens.

    The page polls, and a component that is sent again loses its scroll position.
    """
    if seen.get(key) == token:
        return gr.skip()
    seen[key] = token
    return value


def duration(seconds: float) -> str:
    """``3 min`` or ``40 s``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
