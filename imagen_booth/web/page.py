"""The page: its tabs, its refreshes, and the server that shows it."""

import pathlib
import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio import themes

from imagen_booth.errors import InputError
from imagen_booth.web import gallery_tab, photos_tab, runs_tab, training_tab
from imagen_booth.web.booth import QUIET, Booth
from imagen_booth.web.jobs import FOLDER, RUNNING
from imagen_booth.web.uploads import MAX_FILE

TITLE = "imagen_booth"
REFRESH = 2.0  # seconds
# Seconds between two deletions of old temporary files, and the age of those deleted.
EXPIRY = (600, 6 * 3600)
IDLE = "Nothing is running."
CSS = (pathlib.Path(__file__).parent / "page.css").read_text()


def build(booth: Booth) -> gr.Blocks:
    """The page of a root folder."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=EXPIRY, fill_width=True
    ) as page:
        gr.Markdown(
            f"# {TITLE}\n\nA few photos of one subject, pictures of it anywhere."
        )
        with gr.Row(equal_height=True):
            run = gr.Dropdown(
                [], value=None, label="Run", info="Training and Gallery show this run."
            )
            status = gr.Textbox(IDLE, label="Now", interactive=False, elem_id="now")
        seen = gr.State({})
        with gr.Tabs() as tabs:
            with gr.Tab("Photos", id="photos"):
                photos_tab.build(booth, run, tabs)
            with gr.Tab("Training", id="training"):
                training, training_outputs = training_tab.build(booth, run)
            with gr.Tab("Gallery", id="gallery"):
                gallery, gallery_inputs, gallery_outputs = gallery_tab.build(booth, run)
            with gr.Tab("Runs", id="runs"):
                runs, runs_outputs = runs_tab.build(booth, run, tabs)

        def refresh(name: str | None, only: bool, seen: dict[str, Any]) -> list[Any]:
            try:
                return changed(name, only, seen)
            except (InputError, FileNotFoundError):  # a run was just deleted
                return [gr.skip()] * len(outputs)

        def changed(name: str | None, only: bool, seen: dict[str, Any]) -> list[Any]:
            names = booth.runs.names()
            known = name if name in names else None
            return [
                _choices(names, known, name, seen),
                _now(booth),
                seen,
                *training(known, seen),
                *gallery(known, only, seen),
                *runs(names, seen),
            ]

        outputs = [
            run, status, seen, *training_outputs, *gallery_outputs, *runs_outputs,
        ]  # fmt: skip
        inputs = [run, *gallery_inputs, seen]
        gr.on(
            [gr.Timer(REFRESH).tick, run.change, gallery_inputs[0].change],
            refresh, inputs, outputs, **QUIET,
        )  # fmt: skip
        page.load(lambda chosen: _first(booth, chosen), run, run, **QUIET)
    return page


def _first(booth: Booth, chosen: str | None) -> Any:
    """The run that a new visitor sees: the one that runs, or else the newest.

    A run that was chosen before the page had loaded stays.
    """
    names = booth.runs.names()
    running = [each.run for each in booth.queue.records() if each.state == RUNNING]
    shown = [name for name in (chosen, *running) if name in names] + names
    return gr.Dropdown(choices=names, value=shown[0] if shown else None)


def _choices(
    names: list[str], known: str | None, name: str | None, seen: dict[str, Any]
) -> Any:
    token = (tuple(names), known)
    if seen.get("names") == token and known == name:
        return gr.skip()
    seen["names"] = token
    return gr.Dropdown(choices=names, value=known or (names[0] if names else None))


def _now(booth: Booth) -> str:
    opened = [each for each in booth.queue.records() if each.is_open]
    running = [f"{each.kind} {each.run}" for each in opened if each.state == RUNNING]
    waiting = [f"{each.kind} {each.run}" for each in opened if each.state != RUNNING]
    text = f"Running: {', '.join(running)}." if running else IDLE
    return f"{text} Waiting: {', '.join(waiting)}." if waiting else text


def serve(
    booth: Booth,
    *,
    host: str,
    port: int,
    share: bool,
    password: str,
    ready: Callable[[str], None],
) -> None:
    """Shows the page until the process is interrupted.

    Args:
        host, port: Address; port 0 for any free one.
        share: Whether to open a public link of gradio.live too.
        password: What visitors have to give; "" for none.
        ready: Is called with the address when the page can be opened.

    Raises:
        InputError: The address or the port cannot be used.
    """
    booth.queue.start_worker()  # what waited when an earlier server ended
    root = booth.root.resolve()
    gr.set_static_paths([root])
    font = ["system-ui", "sans-serif"]
    page = build(booth)
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port or None,
            share=share,
            auth=_auth(password) if password else None,
            auth_message="Any user name, and the password of the command line.",
            blocked_paths=[str(root / FOLDER)],
            max_file_size=MAX_FILE,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=themes.Default(font=font, font_mono=["monospace"]),
            css=CSS,
        )
    except OSError as error:
        raise InputError(
            f"the page cannot listen on --host={host} --port={port}; another program "
            "may use the port: give another --port, or an address of this machine"
        ) from error
    ready(public or local)
    page.block_thread()


def _auth(password: str) -> Callable[[str, str], bool]:
    def check(_: str, given: str) -> bool:
        return secrets.compare_digest(given.encode(), password.encode())

    return check
