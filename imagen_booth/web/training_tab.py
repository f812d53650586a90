"""The second tab: progress of a run, previews, stop and resume."""

import dataclasses
from typing import Any

import gradio as gr
import pandas as pd

from imagen_booth.errors import InputError
from imagen_booth.reports import html
from imagen_booth.rundir.metrics import read_rows
from imagen_booth.web import commands
from imagen_booth.web.booth import (
    PRIVATE,
    Booth,
    command_box,
    duration,
    explained,
    if_changed,
)
from imagen_booth.web.jobs import FAILED, RUNNING, STOPPED, shown
from imagen_booth.web.runs import Run

EMPTY = "<p>No run yet. Upload photos in the first tab and press Start training.</p>"
LOG_LINES = 12


def build(booth: Booth, run: gr.Dropdown) -> tuple[Any, list[Any]]:
    """Adds the tab's components and events.

    Returns:
        The function that refreshes the tab from (run, seen), and its outputs.
    """
    progress = gr.HTML(EMPTY, elem_id="progress")
    with gr.Row():
        stop = gr.Button("Stop and save", variant="stop", interactive=False)
        resume = gr.Button("Resume", variant="primary", interactive=False)
    ends = gr.Gallery(
        label="Before and after", columns=2, height="auto", interactive=False,
        object_fit="contain", fit_columns=False,
        buttons=["fullscreen"], elem_id="ends",
        visible=False,
    )  # fmt: skip
    previews = gr.Gallery(
        label="All previews", columns=5, height="auto", interactive=False,
        object_fit="contain", fit_columns=False,
        buttons=["fullscreen"], elem_id="previews",
        visible=False,
    )  # fmt: skip
    plot = gr.LinePlot(
        _losses(None),
        x="step", y="loss", color="of", title="Loss of subject and class",
        color_title="", show_label=False, height=320, visible=False,
    )  # fmt: skip
    command = command_box("The command of this run", "run_command")
    with gr.Accordion("What the command printed", open=False):
        printed = gr.Textbox(
            label="Last lines", lines=LOG_LINES, interactive=False, autoscroll=True
        )
    tab = _TrainingTab(booth)
    stop.click(tab.stop, run, stop, **PRIVATE)
    resume.click(tab.resume, run, resume, **PRIVATE)
    outputs = [progress, stop, resume, ends, previews, plot, command, printed]
    return tab.refresh, outputs


class _TrainingTab:
    """The events of the tab."""

    def __init__(self, booth: Booth):
        self.booth = booth

    def refresh(self, name: str | None, seen: dict[str, Any]) -> list[Any]:
        """What changed since the last refresh."""
        run = self.booth.open(name) if name else None
        found = self._nothing() if run is None else self._state(run)
        return [
            if_changed(seen, f"training {number}", (name, token), value)
            for number, (token, value) in enumerate(found)
        ]

    def _nothing(self) -> list[tuple[Any, Any]]:
        off = gr.Button(interactive=False)
        hidden = [gr.Gallery(visible=False)] * 2 + [gr.LinePlot(visible=False)]
        values = [EMPTY, off, off, *hidden, "", ""]
        return [(number, value) for number, value in enumerate(values)]

    def _state(self, run: Run) -> list[tuple[Any, Any]]:
        """The token and the value of each output for a run."""
        queue, name = self.booth.queue, run.name
        job = queue.latest(name, "train")
        stoppable = job is not None and job.is_open and not queue.is_stopping(job)
        resumable = run.status in (STOPPED, FAILED) and bool(self._arguments(run))
        previews = self.booth.runs.previews(run)
        shots = [
            (str(each.path), each.caption)
            for pictures in previews.values()
            for each in pictures
        ]
        ends = [
            (str(pictures[index].path), f"{stage} {word}")
            for stage, pictures in previews.items()
            if len(pictures) > 1
            for word, index in (("before", 0), ("after", -1))
        ]
        losses, command = _losses(run), self._command(run)
        page = self._page(run)
        printed = "\n".join(queue.log(job)[-LOG_LINES:]) if job else ""
        return [
            (page, page),
            (stoppable, gr.Button(interactive=stoppable)),
            (resumable, gr.Button(interactive=resumable)),
            (ends, gr.Gallery(ends, visible=bool(ends))),
            (shots, gr.Gallery(shots, visible=bool(shots))),
            (len(losses), gr.LinePlot(losses, visible=bool(len(losses)))),
            (command, command),
            (printed, printed),
        ]

    def _page(self, run: Run) -> str:
        runs = run.status == RUNNING
        stages = [
            dataclasses.asdict(each)
            | {"left": duration(each.seconds_left or 0) if runs else ""}
            for each in self.booth.runs.stages(run)
        ]
        return html.render(
            "progress.html.j2",
            name=run.name,
            status=run.status,
            sentence=run.sentence,
            stages=stages,
        )

    @explained
    def stop(self, name: str | None) -> Any:
        """Requests that the run saves its state and ends."""
        run = self.booth.open(name)
        job = self.booth.queue.latest(run.name, "train")
        if job is None or not job.is_open:
            raise InputError(f"{run.name} was not started here; stop it where it runs")
        self.booth.queue.stop(job)
        gr.Info(f"{run.name} saves its state and stops.")
        return gr.Button(interactive=False)

    @explained
    def resume(self, name: str | None) -> Any:
        """Puts the same command into the queue again."""
        run = self.booth.open(name)
        if run.status not in (STOPPED, FAILED):
            raise InputError(f"{run.name} is {run.status}; there is nothing to resume")
        self.booth.queue.submit(self._arguments(run), run.name)
        return gr.Button(interactive=False)

    def _arguments(self, run: Run) -> tuple[str, ...]:
        job = self.booth.queue.latest(run.name, "train")
        if job is not None:
            return job.command
        if not run.config:
            return ()
        return commands.resume(run.config, self.booth.root / run.name)

    def _command(self, run: Run) -> str:
        arguments = self._arguments(run)
        return shown(arguments) if arguments else ""


def _losses(run: Run | None) -> pd.DataFrame:
    """Loss of the subject and of its class by step, of every stage."""
    if run is None:
        return pd.DataFrame({"step": [], "loss": [], "of": []})
    rows = [
        (row["step"], row[f"train/loss_{kind}"], f"{stage}, {kind}")
        for stage, found in read_rows(run.path).items()
        for row in found
        for kind in ("subject", "class")
        if row.get(f"train/loss_{kind}") is not None
        and (kind == "subject" or run.config.get(stage, {}).get("class_rows"))
    ]
    return pd.DataFrame(rows, columns=pd.Index(["step", "loss", "of"]))
