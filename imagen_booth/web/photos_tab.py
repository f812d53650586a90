"""The first tab: photos, class noun, cascade, start."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from imagen_booth.cascade import CASCADES, notices
from imagen_booth.config import presets
from imagen_booth.errors import InputError
from imagen_booth.text import people
from imagen_booth.web import commands, uploads
from imagen_booth.web.booth import PRIVATE, Booth, command_box, explained
from imagen_booth.web.jobs import shown
from imagen_booth.web.uploads import CropChoice

OWN, EXAMPLE = "My photos", "An example: a rendered toy dog"
TOY = "toybox:dog/11"
PATIENCE = 600  # seconds that the checks of ``doctor`` may take
NEEDS = {
    "toybox": "Knows rendered toys only. Its weights ship with the package; one CPU "
    "is enough.",
    "tiny": "Random weights, for tests: its pictures are noise. One CPU is enough.",
    "if_m": "Photographs, to 256 px. You bring the weights; one v5e chip (15.75 GiB).",
    "if_l": "Photographs, to 256 px. You bring the weights; one v5e chip (15.75 GiB).",
    "if_xl": "Photographs, to 256 px. You bring the weights; one v5e chip with an "
    "adapter, else four v4 chips.",
    "imagen": "The paper's shapes, to 1024 px. You bring the weights; one v4 chip "
    "(30.75 GiB).",
}


class Form(NamedTuple):
    """The inputs of the tab, or their values, in the order of the page."""

    source: Any
    files: Any
    crop: Any
    right: Any
    down: Any
    noun: Any
    consent: Any
    cascade: Any
    variant: Any
    name: Any
    seed: Any
    steps: Any

    @property
    def crop_choice(self) -> CropChoice:
        """How photos become square."""
        return CropChoice(self.crop, float(self.right), float(self.down))


def build(booth: Booth, run: gr.Dropdown, tabs: gr.Tabs) -> None:
    """Adds the tab's components and events."""
    photo_inputs, crops, verdicts = _photo_inputs()
    form = Form(*photo_inputs, *_job_inputs())
    with gr.Row():
        check = gr.Button("Check this job")
        start = gr.Button("Start training", variant="primary")
    estimate = gr.Textbox(label="Estimated time", interactive=False, visible=False)
    findings = gr.Dataframe(
        headers=["topic", "verdict", "what the check found"],
        label="Check of the job",
        interactive=False,
        wrap=True,
        column_widths=["20%", "20%", "60%"],
        visible=False,
        elem_id="findings",
    )
    checked = command_box("The command of this check", "check_command", visible=False)
    command = command_box("The command that Start runs", "start_command")
    tab = _PhotosTab(booth)
    inputs = list(form)
    gr.on(
        [
            form.files.change, form.crop.change, form.right.release,
            form.down.release, form.cascade.change,
        ],
        tab.look, inputs, [crops, verdicts, form.cascade], **PRIVATE,
    )  # fmt: skip
    gr.on(
        [each.change for each in form], tab.preview, inputs, [command, form.consent],
        show_progress="hidden", trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip
    form.source.change(
        lambda source: (
            gr.File(visible=source == OWN),
            "dog" if source == EXAMPLE else gr.skip(),
        ),
        form.source,
        [form.files, form.noun],
        **PRIVATE,
    )
    check.click(tab.check, inputs, [findings, estimate, checked, form.name], **PRIVATE)
    start.click(tab.start, inputs, [run, tabs, form.files, form.name], **PRIVATE)


def _photo_inputs() -> tuple[list[Any], gr.Gallery, gr.Dataframe]:
    """The inputs of the photos, their crops, and the verdicts on them."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            source = gr.Radio([OWN, EXAMPLE], value=OWN, label="Photos of the subject")
            files = gr.File(
                label="Drop 3 to 5 photos here, 20 MB each at most",
                file_count="multiple",
                height=150,
                elem_id="upload",
            )
            # Gradio's own leaves an empty file behind for each path that it hands over.
            files.preprocess = _paths
            crop = gr.Radio(
                [("Cut to a square", "centre"), ("Pad to a square", "pad")],
                value="centre",
                label="How photos become square",
            )
            right = gr.Slider(-1, 1, 0, step=0.05, label="Crop from left to right")
            down = gr.Slider(-1, 1, 0, step=0.05, label="Crop from top to bottom")
        with gr.Column(scale=2, min_width=300):
            crops = gr.Gallery(
                label="What training sees",
                columns=5,
                height="auto",
                interactive=False,
                buttons=[],
                elem_id="crops",
            )
            verdicts = gr.Dataframe(
                headers=["photo", "verdict", "what the check found"],
                label="Check of the photos",
                interactive=False,
                wrap=True,
                column_widths=["25%", "20%", "55%"],
                elem_id="verdicts",
            )
    return [source, files, crop, right, down], crops, verdicts


def _paths(payload: Any) -> list[str]:
    """Where Gradio keeps uploaded files."""
    return [each.path for each in payload or ()]


def _job_inputs() -> list[Any]:
    """The inputs of the job."""
    default, _, variant = presets.DEFAULT.partition(":")
    with gr.Row():
        noun = gr.Textbox(
            label="Class noun",
            placeholder="dog, backpack, teapot ...",
            info="The plain word for what the subject is.",
            max_length=60,
        )
        cascade = gr.Dropdown(
            list(NEEDS), value=default, label="Cascade", info=NEEDS[default]
        )
        name = gr.Textbox(
            label="Name of the run",
            placeholder="made from the class noun",
            info="Letters, digits, - and _.",
            max_length=40,
        )
    consent = gr.Checkbox(
        label="This person agrees to the use of these photos (for a child, a parent)",
        visible=False,
    )
    with gr.Accordion("More settings", open=False), gr.Row():
        trained = gr.Radio(
            [("An adapter (LoRA)", ":lora"), ("All weights", "")],
            value=f":{variant}" if variant else "",
            label="What is trained",
        )
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        steps = gr.Number(
            0,
            label="Steps of the base stage (0: the cascade's own)",
            precision=0,
            minimum=0,
        )
    return [noun, consent, cascade, trained, name, seed, steps]


class _PhotosTab:
    """The events of the tab."""

    def __init__(self, booth: Booth):
        self.booth = booth

    @explained
    def look(self, *values: Any) -> Any:
        """Checks the photos, and shows the crops."""
        form = Form(*values)
        if form.source == EXAMPLE:
            found = uploads.CheckedUpload((), (), ())
        else:
            found = uploads.check(form.files or [], form.cascade, form.crop_choice)
        info = " ".join([NEEDS[form.cascade], *notices(CASCADES[form.cascade])])
        rows = [list(row) for row in found.rows]
        return list(found.crops), rows, gr.Dropdown(info=info)

    @explained
    def preview(self, *values: Any) -> Any:
        """Shows the command, and asks for consent where the subject is a person."""
        form = Form(*values)
        person = gr.Checkbox(visible=people.is_person(form.noun))
        try:
            return shown(self._train(form, self._name(form))), person
        except InputError:
            return "", person  # Start explains what is missing

    @explained
    def check(self, *values: Any) -> Any:
        """Runs ``doctor`` on the job; without a class noun CLIP suggests one."""
        form = Form(*values)
        name = self._prepare(form, needs_noun=not self.booth.clip)
        command = commands.doctor(
            self._config(form, name), self.booth.root / name, self.booth.clip
        )
        # An accelerator belongs to the job that runs on it.
        other = {"JAX_PLATFORMS": "cpu"} if self.booth.queue.is_busy() else {}
        found = _findings(command, other)
        rows = [[each["topic"], each["level"], each["text"]] for each in found]
        rows.sort(key=lambda row: ("problem", "warning", "ok").index(row[1]))
        times = [each["text"] for each in found if each["topic"] == "time"]
        return (
            gr.Dataframe(rows, visible=True),
            gr.Textbox("; ".join(times) or "unknown", visible=True),
            gr.Code(shown(command), visible=True),
            name,
        )

    @explained
    def start(self, *values: Any) -> Any:
        """Puts the training into the queue."""
        form = Form(*values)
        name = self._prepare(form)
        self.booth.queue.submit(self._train(form, name), name)
        choices = self.booth.runs.names() or [name]
        gr.Info(f"{name} is in the queue.")
        return (
            gr.Dropdown(choices=choices, value=name),
            gr.Tabs(selected="training"),
            None,
            "",
        )

    def _prepare(self, form: Form, needs_noun: bool = True) -> str:
        """Checks the form and stores the photos; returns the name of the run."""
        if needs_noun and not (form.noun or "").strip():
            raise InputError("the class noun is empty; write what the subject is: dog")
        if people.is_person(form.noun) and not form.consent:
            raise InputError(
                f"{form.noun!r} is a person: photos of a person need that person's "
                "consent, and photos of a child a parent's; tick the box if you have it"
            )
        name = self._name(form)
        if form.source == OWN:
            files: Sequence[str] = form.files or []
            usable = uploads.check(files, form.cascade, form.crop_choice).usable
            if not usable:
                raise InputError(
                    "there is no photo that can be used; upload 3 to 5 sharp JPEG or "
                    "PNG photos of the subject"
                )
            uploads.store(usable, self.booth.root / name / "source")
        return name

    def _name(self, form: Form) -> str:
        given = (form.name or "").strip()
        if given:
            name = commands.run_name(given)
        else:
            words = re.sub(r"[^a-z0-9]+", "_", (form.noun or "").lower()).strip("_")
            name, number = words[:30] or "run", 2
            while (self.booth.root / name).exists():
                name, number = f"{words[:30] or 'run'}_{number}", number + 1
            name = commands.run_name(name)
        started = (self.booth.root / name / "manifest.json").exists()
        if started or self.booth.queue.latest(name):
            raise InputError(
                f"there is a run {name!r} already; give another name, or resume it in "
                "the tab Training"
            )
        return name

    def _config(self, form: Form, name: str) -> tuple[str, ...]:
        if form.cascade not in CASCADES:
            raise InputError(f"cascade {form.cascade!r} is not known; choose another")
        photos = self.booth.root / name / "source"
        settings = {
            "subject.photos": TOY if form.source == EXAMPLE else str(photos),
            "subject.class_noun": " ".join((form.noun or "").split()),
            "subject.crop": form.crop,
            "subject.shift": (float(form.right), float(form.down)),
            "subject.consent": bool(form.consent) and people.is_person(form.noun),
            "seed": int(form.seed or 0),
        }
        if form.steps:
            settings["base.steps"] = int(form.steps)
        return commands.subject_config(
            form.cascade + form.variant, settings, self.booth.extra(form.cascade)
        )

    def _train(self, form: Form, name: str) -> tuple[str, ...]:
        return commands.train(self._config(form, name), self.booth.root / name)


def _findings(command: Sequence[str], environ: dict[str, str]) -> list[dict[str, Any]]:
    """What ``doctor --json`` prints.

    Raises:
        InputError: It could not check the job.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=os.environ | environ,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"the check took more than {PATIENCE} s; run it on the command line: "
            f"{shown(command)}"
        ) from error
    try:
        return json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["the check ended early"]
        raise InputError(lines[-1]) from None
