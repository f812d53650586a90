"""The fourth tab: all runs and jobs, compare two runs, delete one."""

from typing import Any

import gradio as gr

from imagen_booth.errors import InputError
from imagen_booth.rundir.layout import differences
from imagen_booth.web.booth import PRIVATE, Booth, duration, explained, if_changed
from imagen_booth.web.jobs import QUEUED, shown
from imagen_booth.web.runs import Run

COMPARED = 12  # pictures of each run beside the other
LISTED = 30  # jobs, the newest


def build(booth: Booth, run: gr.Dropdown, tabs: gr.Tabs) -> tuple[Any, list[Any]]:
    """Adds the tab's components and events.

    Returns:
        The function that refreshes the tab from (names, seen), and its outputs.
    """
    table = gr.Dataframe(
        headers=["run", "status", "class noun", "cascade", "started (UTC)", "took",
            "pictures"],
        label="Runs: choose one to open it", interactive=False, wrap=True,
        elem_id="runs",
    )  # fmt: skip
    jobs = gr.Dataframe(
        headers=["job", "run", "state", "submitted (UTC)", "command"],
        label="Jobs, newest first; one runs at a time", interactive=False, wrap=True,
        column_widths=["10%", "15%", "10%", "20%", "45%"], elem_id="jobs",
    )  # fmt: skip
    with gr.Row():
        waiting = gr.Dropdown([], label="Waiting jobs", value=None)
        withdraw = gr.Button("Remove from the queue")
    gr.Markdown("## Compare two runs")
    sides = []
    with gr.Row():
        for word in ("left", "right"):
            with gr.Column(min_width=300):
                which = gr.Dropdown([], label=f"Run on the {word}", value=None)
                pictures = gr.Gallery(
                    label=f"Pictures on the {word}", columns=2, interactive=False,
                    height=420, buttons=["fullscreen"], visible=False,
                )  # fmt: skip
                sides.append((which, pictures))
    settings = gr.Dataframe(
        headers=["setting: left -> right"], label="Settings that differ",
        interactive=False, wrap=True, visible=False,
    )  # fmt: skip
    gr.Markdown("## Delete a run")
    with gr.Row():
        doomed = gr.Dropdown([], label="Run to delete", value=None)
        delete = gr.Button("Delete ...", variant="stop")
    with gr.Group(visible=False) as question:
        asked = gr.Textbox(label="Are you sure?", interactive=False)
        with gr.Row():
            sure = gr.Button("Delete permanently", variant="stop")
            leave = gr.Button("Cancel")
    tab = _RunsTab(booth)
    table.select(tab.open, None, [run, tabs], **PRIVATE)
    (left, left_pictures), (right, right_pictures) = sides
    gr.on(
        [left.change, right.change],
        tab.compare,
        [left, right],
        [left_pictures, right_pictures, settings],
        **PRIVATE,
    )
    delete.click(tab.ask, doomed, [question, asked], **PRIVATE)
    sure.click(tab.delete, doomed, [question, doomed], **PRIVATE)
    leave.click(lambda: gr.Group(visible=False), None, question, **PRIVATE)
    withdraw.click(tab.withdraw, waiting, waiting, **PRIVATE)
    return tab.refresh, [table, jobs, waiting, left, right, doomed]


class _RunsTab:
    """The events of the tab."""

    def __init__(self, booth: Booth):
        self.booth = booth

    def refresh(self, names: list[str], seen: dict[str, Any]) -> list[Any]:
        """What changed since the last refresh."""
        rows = [self._row(self.booth.open(name)) for name in names]
        records = self.booth.queue.records()
        jobs = [
            [
                each.kind,
                each.run,
                each.state,
                _minute(each.created),
                shown(each.command),
            ]
            for each in reversed(records[-LISTED:])
        ]
        waiting = [
            (f"{each.kind} {each.run}, {_minute(each.created)}", each.id)
            for each in records
            if each.state == QUEUED
        ]
        return [
            if_changed(seen, "runs 0", rows, rows),
            if_changed(seen, "runs 1", jobs, jobs),
            if_changed(seen, "runs 2", waiting, gr.Dropdown(choices=waiting)),
            *(
                if_changed(seen, f"runs {key}", names, gr.Dropdown(choices=names))
                for key in ("left", "right", "doomed")
            ),
        ]

    def _row(self, run: Run) -> list[Any]:
        seconds = sum((run.manifest.get("timings") or {}).values())
        return [
            run.name,
            run.status,
            run.noun,
            run.cascade,
            _minute(str(run.manifest.get("created", ""))),
            duration(seconds) if seconds else "",
            len(self.booth.runs.pictures(run)),
        ]

    @explained
    def open(self, event: gr.SelectData) -> Any:
        """Opens the run of a row."""
        name = self.booth.open(str(event.row_value[0])).name
        return gr.Dropdown(value=name), gr.Tabs(selected="training")

    @explained
    def compare(self, left: str | None, right: str | None) -> Any:
        """Pictures of two runs beside each other, and how their settings differ."""
        runs = [self.booth.open(name) if name else None for name in (left, right)]
        shots = [
            [
                (str(each.path), each.caption)
                for each in self.booth.runs.pictures(run)[:COMPARED]
            ]
            if run
            else []
            for run in runs
        ]
        rows = []
        if runs[0] and runs[1]:
            found = differences(dict(runs[0].config), dict(runs[1].config))
            rows = [[each] for each in found] or [["none"]]
        galleries = [gr.Gallery(each, visible=bool(each)) for each in shots]
        return *galleries, gr.Dataframe(rows, visible=bool(rows))

    @explained
    def ask(self, name: str | None) -> Any:
        """Asks before a run is deleted."""
        run = self.booth.open(name)
        count = len(self.booth.runs.pictures(run))
        text = (
            f"This deletes {run.name} with {count} pictures, its photos and its "
            "checkpoints, and cannot be undone."
        )
        return gr.Group(visible=True), text

    @explained
    def delete(self, name: str | None) -> Any:
        """Deletes a run."""
        run = self.booth.open(name)
        self.booth.runs.delete(run.name)
        gr.Info(f"{run.name} is deleted.")
        return gr.Group(visible=False), gr.Dropdown(value=None)

    @explained
    def withdraw(self, job: str | None) -> Any:
        """Removes a waiting job from the queue."""
        for record in self.booth.queue.records():
            if record.id == job and record.state == QUEUED:
                self.booth.queue.stop(record)
                return gr.Dropdown(value=None)
        raise InputError(
            "no waiting job is chosen; a running job is stopped in Training"
        )


def _minute(time: str) -> str:
    """``2026-11-28 10:04`` of a time of the manifest, which is UTC."""
    return time[:16].replace("T", " ")
