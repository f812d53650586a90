"""The third tab: sample prompts, look at pictures, download, export."""

import pathlib
from typing import Any

import gradio as gr

from imagen_booth.errors import InputError
from imagen_booth.text.prompt_suites import SUITES
from imagen_booth.web import commands
from imagen_booth.web.booth import (
    PRIVATE,
    Booth,
    command_box,
    explained,
    if_changed,
)
from imagen_booth.web.jobs import FAILED, QUEUED, RUNNING, JobRecord, shown
from imagen_booth.web.runs import Picture, Run, metadata

SHOWN = 60  # pictures on the page
FAMILIES = (
    "recontextualisation", "art", "expression", "view", "accessories", "properties",
)  # fmt: skip
SIZES = [("largest", 0), ("64 px, quick", 64), ("256 px", 256)]
EMPTY = "No pictures yet. They appear here when training is done."


def build(booth: Booth, run: gr.Dropdown) -> tuple[Any, list[Any], list[Any]]:
    """Adds the tab's components and events.

    Returns:
        The function that refreshes the tab from (run, only favourites, seen), its
        further inputs and its outputs.
    """
    inputs, reads, sample = _prompt_inputs()
    command = command_box("The command that Sample runs", "sample_command")
    status = gr.Textbox(EMPTY, label="Pictures", interactive=False, elem_id="pictures")
    only = gr.Checkbox(label="Favourites only")
    gallery = gr.Gallery(
        label="Pictures of this run", columns=4, height="auto", interactive=False,
        fit_columns=False, buttons=["fullscreen"], elem_id="gallery",
    )  # fmt: skip
    chosen = gr.State("")
    with gr.Row():
        picture = gr.Textbox(
            label="Chosen picture", interactive=False, scale=2,
            placeholder="Choose a picture above.",
        )  # fmt: skip
        favourite = gr.Button("Favourite", interactive=False, min_width=140)
        one = gr.DownloadButton("Download it", interactive=False, min_width=140)
    details = gr.JSON(label="Its metadata", visible=False)
    with gr.Row():
        pack = gr.Button("Make a zip of all pictures shown", min_width=200)
        archive = gr.DownloadButton("Download the zip", visible=False, min_width=200)
        report = gr.Button("Open the report", interactive=False, min_width=200)
    tab = _GalleryTab(booth)
    _build_export(tab, run)
    asked = [run, *inputs]
    gr.on(
        [each.change for each in asked], tab.preview, asked, [reads, command],
        show_progress="hidden", trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip
    sample.click(tab.sample, asked, status, **PRIVATE)
    gallery.select(
        tab.choose, [run, only], [chosen, picture, favourite, one, details], **PRIVATE
    )
    favourite.click(tab.favour, [run, chosen], favourite, **PRIVATE)
    pack.click(tab.pack, [run, only], archive, **PRIVATE)
    return tab.refresh, [only], [status, gallery, report]


def _prompt_inputs() -> tuple[list[Any], gr.Textbox, gr.Button]:
    """The inputs of sampling, the prompts as the cascade reads them, and the button."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompts = gr.Textbox(
                "a [V] [N] in the snow",
                label="Prompts, one per line",
                info="[V] stands for your subject, [N] for its class noun.",
                lines=3,
                max_length=20_000,
            )
            reads = gr.Textbox(
                label="As the cascade reads them", lines=2, interactive=False
            )
        with gr.Column(scale=1, min_width=300):
            with gr.Row():
                seeds = gr.Number(
                    1, label="Pictures per prompt", precision=0, minimum=1,
                    maximum=commands.MAX_SEEDS,
                )  # fmt: skip
                first = gr.Number(0, label="First seed", precision=0, minimum=0)
            with gr.Row():
                guidance = gr.Number(
                    0, label="Guidance (0: that of the run)", minimum=0
                )
                size = gr.Dropdown(SIZES, value=0, label="Size")
            sample = gr.Button("Sample", variant="primary")
    with gr.Accordion("The paper's applications: one click adds a prompt", open=False):
        for family in FAMILIES:
            clicked = gr.Dataset(
                label=family,
                components=[gr.Textbox(visible=False)],
                samples=[[prompt] for _, prompt in SUITES[family]],
                type="values",
            )
            clicked.click(_append, [prompts, clicked], prompts, **PRIVATE)
    return [prompts, seeds, first, guidance, size], reads, sample


def _build_export(tab: "_GalleryTab", run: gr.Dropdown) -> None:
    """Adds the export of the weights."""
    with gr.Row():
        kind = gr.Radio(
            list(commands.LAYOUTS), value=commands.FULL, label="Export the weights"
        )
        export = gr.Button("Export", min_width=140)
        exported = gr.Textbox(label="Exported to", interactive=False, scale=2)
    command = command_box("The command that Export runs", "export_command")
    export.click(tab.export, [run, kind], exported, **PRIVATE)
    gr.on(
        [run.change, kind.change], tab.preview_export, [run, kind], command,
        show_progress="hidden", trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip


def _append(prompts: str, clicked: list[str]) -> str:
    lines = [line for line in prompts.splitlines() if line.strip()]
    return "\n".join(dict.fromkeys([*lines, clicked[0]]))


class _GalleryTab:
    """The events of the tab."""

    def __init__(self, booth: Booth):
        self.booth = booth

    def refresh(self, name: str | None, only: bool, seen: dict[str, Any]) -> list[Any]:
        """What changed since the last refresh."""
        if not name:
            off = gr.Button(interactive=False)
            return [
                if_changed(seen, f"gallery {number}", None, value)
                for number, value in enumerate((EMPTY, [], off))
            ]
        run = self.booth.open(name)
        pictures = self._pictures(run, only)
        shots = [(str(each.path), each.caption) for each in pictures[:SHOWN]]
        status = self._status(run, pictures, only)
        page = run.path / "report.html"
        link = f"gradio_api/file={page.resolve()}" if page.exists() else None
        button = gr.Button(
            link=link, link_target="_blank", interactive=link is not None
        )
        return [
            if_changed(seen, "gallery 0", (name, status), status),
            if_changed(seen, "gallery 1", (name, shots), shots),
            if_changed(seen, "gallery 2", link, button),
        ]

    def _pictures(self, run: Run, only: bool) -> list[Picture]:
        return self.booth.runs.pictures(run, favourites=only)

    def _status(self, run: Run, pictures: list[Picture], only: bool) -> str:
        count = len(pictures)
        text = f"{count} picture{'s' * (count != 1)}" if count else EMPTY
        if only and not count:
            text = "No favourites yet. Choose a picture and press Favourite."
        if count > SHOWN:
            text += f", of which the newest {SHOWN} are shown"
        job = self.booth.queue.latest(run.name)
        if job is not None and job.kind != "train":
            text += self._sentence(job)
        return text

    def _sentence(self, job: JobRecord) -> str:
        if job.state == QUEUED:
            return f"; a {job.kind} job waits for the jobs before it"
        if job.state == RUNNING:
            lines = self.booth.queue.log(job)
            return f"; {job.kind}: {lines[-1] if lines else 'starting'}"
        if job.state == FAILED:
            lines = self.booth.queue.log(job)
            return f"; the {job.kind} job failed: {lines[-1] if lines else ''}"
        return ""

    @explained
    def preview(self, name: str | None, prompts: str, *settings: Any) -> Any:
        """Shows the prompts as the cascade reads them, and the command."""
        if not name:
            return "", ""
        run = self.booth.open(name)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        reads = "\n".join(run.filled(line) for line in lines)
        try:
            return reads, shown(self._command(run, prompts, *settings))
        except InputError:
            return reads, ""  # Sample explains what is wrong

    @explained
    def sample(self, name: str | None, prompts: str, *settings: Any) -> str:
        """Puts a sampling job into the queue."""
        run = self.booth.open(name)
        self.booth.queue.submit(self._command(run, prompts, *settings), run.name)
        return "The pictures are in the queue."

    def _command(
        self,
        run: Run,
        prompts: str,
        seeds: int | None,
        first: int | None,
        guidance: float | None,
        size: int,
    ) -> tuple[str, ...]:
        return commands.sample(
            self.booth.root / run.name,
            prompts.splitlines(),
            seeds=int(seeds or 1),
            first_seed=int(first or 0),
            guidance=guidance or None,
            resolution=int(size),
        )

    @explained
    def choose(self, name: str | None, only: bool, event: gr.SelectData) -> Any:
        """Shows a picture's metadata, and its buttons."""
        run = self.booth.open(name)
        listed = {
            picture.path.resolve(): picture
            for picture in self._pictures(run, only)[:SHOWN]
        }
        picture = listed.get(pathlib.Path(str(event.value["image"]["path"])).resolve())
        if picture is None:
            raise InputError("this picture is gone; reload the page")
        relative = str(picture.path.relative_to(run.path))
        return (
            relative,
            picture.caption,
            gr.Button(
                _star(relative in self.booth.runs.favourites(run)), interactive=True
            ),
            gr.DownloadButton(value=str(picture.path), interactive=True),
            gr.JSON(metadata(picture.path), visible=True),
        )

    @explained
    def favour(self, name: str | None, chosen: str) -> Any:
        """Makes the chosen picture a favourite, or an ordinary one again."""
        run = self.booth.open(name)
        paths = {
            str(each.path.relative_to(run.path)): each.path
            for each in self._pictures(run, only=False)
        }
        if chosen not in paths:
            raise InputError("no picture is chosen; choose one above")
        return gr.Button(
            _star(self.booth.runs.toggle_favourite(run, paths[chosen])),
        )

    @explained
    def pack(self, name: str | None, only: bool) -> Any:
        """Makes a zip file of the pictures."""
        run = self.booth.open(name)
        target = self.booth.runs.archive(run, self._pictures(run, only))
        return gr.DownloadButton(value=str(target), visible=True)

    @explained
    def preview_export(self, name: str | None, kind: str) -> str:
        """Shows the command of an export."""
        try:
            return shown(self._export(self.booth.open(name), kind))
        except InputError:
            return ""  # Export explains what is wrong

    @explained
    def export(self, name: str | None, kind: str) -> str:
        """Puts an export of the weights into the queue."""
        run = self.booth.open(name)
        self.booth.queue.submit(self._export(run, kind), run.name)
        return str(commands.export_folder(self.booth.root / run.name, kind))

    def _export(self, run: Run, kind: str) -> tuple[str, ...]:
        return commands.export(self.booth.root / run.name, kind, run.config)


def _star(is_favourite: bool) -> str:
    return "Remove from favourites" if is_favourite else "Favourite"
