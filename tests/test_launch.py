"""Launch files: their exact calls, their reaction to failures, their form.

A recorder replaces gcloud, kubectl and git: it writes down each call and answers as a
test sets, so nothing leaves this machine and nothing costs money.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
from paths import ROOT
from train_jobs import QUICK, make_photos

TPU_VM = ROOT / "launch" / "tpu_vm.sh"
GKE = ROOT / "launch" / "gke" / "job.sh"
JOBSET = ROOT / "launch" / "gke" / "jobset.yaml"
SAMPLE_JOB = ROOT / "launch" / "sample_job.yaml"
NOTEBOOK = ROOT / "launch" / "colab.ipynb"

# Each rule is a file: a part of the call, then one answer a line, "CODE OUTPUT". The
# last answer is repeated.
RECORDER = """#!/usr/bin/env bash
printf '%q ' "${0##*/}" "$@" >> "$RECORD/calls"
printf '\\n' >> "$RECORD/calls"
[[ "$*" != *--filename=-* ]] || cat > "$RECORD/sent"
for rule in "$RECORD"/rule*; do
  { read -r part; read -r code output; } < "$rule" || continue
  [[ "${0##*/} $*" == *"$part"* ]] || continue
  (($(wc -l < "$rule") < 3)) || sed -i 2d "$rule"
  [[ -z $output ]] || printf '%s\\n' "$output"
  exit "$code"
done
"""
WHERE = ["--project=lab", "--zone=here"]
TPU = ["gcloud", "compute", "tpus"]
VARIABLES = {
    "PROJECT": "lab",
    "ZONE": "here",
    "NAME": "dog",
    "ACCELERATOR": "v4-8",
    "VERSION": "tpu-ubuntu2204-base",
    "KIND": "spot",
    "WORKDIR": "gs://bucket/dog",
    "TO": "results",
    "PAUSE": "0",
}
TRAIN = ["train", "--config=configs/dog.py:if_m"]
CODE = "--command=cat imagen_booth/job.code"
STATE = "tpu-vm describe"

CREATE_SPOT = [
    *(*TPU, "tpu-vm", "create", "dog", "--accelerator-type=v4-8"),
    *("--version=tpu-ubuntu2204-base", "--spot", *WHERE),
]
DELETE = [*TPU, "tpu-vm", "delete", "dog", "--quiet", *WHERE]
READ_CODE = [*TPU, "tpu-vm", "ssh", "dog", "--worker=0", CODE, *WHERE]
FETCH = [
    *("gcloud", "storage", "rsync", "--recursive"),
    *("--exclude=^(base|sr256|sr1024)/", "gs://bucket/dog", "results"),
]
SHORT = {  # a name for each call
    "diff": "git",
    "archive": "pack",
    "tpu-vm create": "create",
    "queued-resources create": "create",
    "queued-resources describe": "look at queue",
    "tpu-vm scp": "copy",
    "uv venv": "install",
    "setsid": "start",
    "tail --lines": "follow",
    "cat imagen_booth/job.code": "code",
    "tpu-vm describe": "look",
    "storage rsync": "fetch",
    "tpu-vm delete": "delete",
    "queued-resources delete": "delete",
}
SETUP = ["git", "pack", "copy", "install"]


class Sandbox:
    """A folder in which launch scripts call recorders in place of their tools."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        tools = folder / "tools"
        tools.mkdir()
        for name in ("gcloud", "kubectl", "git"):
            (tools / name).write_text(RECORDER)
            (tools / name).chmod(0o755)
        self.environ = {"PATH": f"{tools}:{os.defpath}", "RECORD": str(folder)}
        self.rules = 0

    def answer(self, part: str, *answers: str) -> None:
        """Answers calls that contain ``part`` in turn, each with "CODE OUTPUT"."""
        self.rules += 1
        rule = self.folder / f"rule{self.rules}"
        rule.write_text("\n".join([part, *answers]) + "\n")

    def run(self, script, *arguments, **variables) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(script), *map(str, arguments)],
            cwd=self.folder,
            env=self.environ | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [shlex.split(line) for line in lines]

    @property
    def steps(self) -> list[str]:
        """The calls, one word each."""
        return [
            next(word for part, word in SHORT.items() if part in " ".join(call))
            for call in self.calls
        ]


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    return Sandbox(tmp_path)


def test_a_spot_run_from_nothing_to_nothing(sandbox):
    sandbox.answer(CODE, "0 0")
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES)
    assert answer.returncode == 0, answer.stderr
    calls = sandbox.calls
    assert sandbox.steps == [
        *("create", *SETUP, "start", "follow", "code", "fetch", "delete")
    ]
    assert calls[0] == CREATE_SPOT
    assert calls[2][:5] == ["git", "-C", str(ROOT), "archive", "--format=tar.gz"]
    archive = calls[2][5].removeprefix("--output=")
    assert calls[3] == [
        *(*TPU, "tpu-vm", "scp", archive, "dog:imagen_booth.tar.gz"),
        *("--worker=all", *WHERE),
    ]
    assert calls[4][:7] == [*TPU, "tpu-vm", "ssh", "dog", "--worker=all"]
    assert "tar -xzf imagen_booth.tar.gz -C imagen_booth" in calls[4][7]
    assert calls[4][7].endswith("--editable '.[tpu,gcs]'")
    assert calls[5][:7] == [*TPU, "tpu-vm", "ssh", "dog", "--worker=all"]
    assert calls[6][:7] == [*TPU, "tpu-vm", "ssh", "dog", "--worker=0"]
    assert calls[7] == READ_CODE
    assert calls[8] == FETCH
    assert calls[9] == DELETE
    assert not pathlib.Path(archive).parent.exists()


@pytest.mark.parametrize(
    ("kind", "spot"), [("queued", []), ("queued-spot", ["--spot"])]
)
def test_a_queued_machine_is_waited_for(sandbox, kind, spot):
    sandbox.answer("describe", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE")
    answer = sandbox.run(TPU_VM, "create", **VARIABLES | {"KIND": kind})
    assert answer.returncode == 0, answer.stderr
    look = [
        *(*TPU, "queued-resources", "describe", "dog"),
        *("--format=value(state.state)", *WHERE),
    ]
    assert sandbox.calls == [
        [
            *(*TPU, "queued-resources", "create", "dog", "--node-id=dog"),
            *("--accelerator-type=v4-8", "--runtime-version=tpu-ubuntu2204-base"),
            *(*spot, *WHERE),
        ],
        *[look] * 3,
    ]


def test_a_queue_that_fails_is_cleaned_up(sandbox):
    sandbox.answer("describe", "0 FAILED")
    answer = sandbox.run(
        TPU_VM, "up-run-down", *TRAIN, **VARIABLES | {"KIND": "queued"}
    )
    assert answer.returncode == 2
    assert "the queued request dog is FAILED" in answer.stderr
    assert sandbox.calls[-1] == [
        *(*TPU, "queued-resources", "delete", "dog", "--force", "--quiet", *WHERE)
    ]


def test_on_demand_has_no_spot(sandbox):
    sandbox.run(TPU_VM, "create", **VARIABLES | {"KIND": "on-demand"})
    assert sandbox.calls == [[each for each in CREATE_SPOT if each != "--spot"]]


@pytest.mark.parametrize(
    "part", ["tpu-vm create", "tpu-vm scp", "uv venv", "setsid nohup"]
)
def test_whatever_fails_the_machine_is_deleted(sandbox, part):
    sandbox.answer(part, "1")
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES)
    assert answer.returncode == 1
    assert part in " ".join(sandbox.calls[-2])
    assert sandbox.calls[-1] == DELETE


def test_a_machine_that_cannot_be_deleted_is_named(sandbox):
    sandbox.answer("tpu-vm scp", "1")
    sandbox.answer("tpu-vm delete", "1")
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES)
    assert answer.returncode == 1
    assert "dog could not be deleted and may cost money" in answer.stderr


def test_a_job_that_fails_is_not_tried_again(sandbox):
    sandbox.answer(CODE, "0 4")
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES)
    assert answer.returncode == 4
    assert sandbox.steps.count("start") == 1
    assert sandbox.calls[-2:] == [FETCH, DELETE]


def test_a_job_that_saved_and_stopped_is_started_again(sandbox):
    sandbox.answer(CODE, "0 75", "0 75", "0 0")
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES)
    assert answer.returncode == 0, answer.stderr
    again = ["start", "follow", "code"]
    assert sandbox.steps == ["create", *SETUP, *again * 3, "fetch", "delete"]


@pytest.mark.parametrize("state", ["0 PREEMPTED", "1"])
def test_a_preempted_machine_is_made_anew(sandbox, state):
    """A machine preempted while it ran is listed as such, or not at all."""
    sandbox.answer(CODE, "1", "0 0")
    sandbox.answer("tail --lines", "255", "0")
    sandbox.answer(STATE, state)
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES)
    assert answer.returncode == 0, answer.stderr
    once = ["create", *SETUP, "start", "follow", "code"]
    assert sandbox.steps == [*once, "look", "delete", *once, "fetch", "delete"]


def test_a_lost_connection_is_taken_up_again(sandbox):
    sandbox.answer(CODE, "255", "0 0")
    sandbox.answer("tail --lines", "255", "0")
    sandbox.answer(STATE, "0 READY")
    answer = sandbox.run(TPU_VM, "logs", **VARIABLES)
    assert answer.returncode == 0
    assert sandbox.steps == ["follow", "code", "look", "follow", "code"]


def test_restarts_have_an_end(sandbox):
    sandbox.answer(CODE, "1")
    sandbox.answer(STATE, "0 PREEMPTED")
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **VARIABLES | {"RESTARTS": "2"})
    assert answer.returncode == 75
    assert sandbox.steps.count("create") == 3
    assert sandbox.steps.count("delete") == 3


@pytest.mark.parametrize("name", [name for name in VARIABLES if name != "PAUSE"])
def test_a_missing_variable_is_named_before_anything_starts(sandbox, name):
    variables = {key: value for key, value in VARIABLES.items() if key != name}
    answer = sandbox.run(TPU_VM, "up-run-down", *TRAIN, **variables)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"{name} is not set")
    assert not sandbox.calls


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (TRAIN, {"KIND": "cheap"}, "KIND=cheap is not known; use on-demand, spot"),
        (TRAIN, {"WORKDIR": "runs/dog"}, "WORKDIR=runs/dog should be a folder like gs"),
        (TRAIN, {"RESTARTS": "many"}, "RESTARTS=many should be a whole number"),
        (TRAIN, {"PAUSE": "1s"}, "PAUSE=1s should be a whole number"),
        (["trian"], {}, "run 'trian' is not known; use train, sample or pretrain"),
        ([], {}, "run '' is not known"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(
    sandbox, arguments, variables, message
):
    answer = sandbox.run(TPU_VM, "up-run-down", *arguments, **VARIABLES | variables)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert not sandbox.calls


@pytest.mark.parametrize("script", [TPU_VM, GKE])
def test_help_and_a_wrong_verb(sandbox, script):
    assert "Variables" in sandbox.run(script, "--help").stdout
    answer = sandbox.run(script, "upp")
    assert answer.returncode == 2
    assert "'upp' is not known; use" in answer.stderr


# Replaces python on a worker.
WAITING = """#!/bin/sh
until [ -f go ]; do sleep 0.1; done
printf '%s\\n' "$@"
exit 75
"""


def on_a_worker(folder: pathlib.Path, command: str) -> subprocess.CompletedProcess:
    """Runs the command that a worker would get, with ``folder`` as its home."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_what_a_worker_is_sent_works_there(sandbox, tmp_path):
    """The job runs detached, takes unusual arguments, and writes its exit code."""
    prompt = 'a [V] dog\'s "hat" & $HOME'
    sandbox.run(TPU_VM, "run", "sample", f"--prompt={prompt}", **VARIABLES)
    [start] = [call[7].removeprefix("--command=") for call in sandbox.calls]

    home = tmp_path / "home"
    python = home / "imagen_booth" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(WAITING)
    python.chmod(0o755)
    assert on_a_worker(home, start).returncode == 0
    assert on_a_worker(home, "cat imagen_booth/job.code").returncode != 0
    (home / "imagen_booth" / "go").touch()

    sandbox.answer(CODE, "0 75")
    assert sandbox.run(TPU_VM, "logs", **VARIABLES).returncode == 75
    follow, code = (call[7].removeprefix("--command=") for call in sandbox.calls[1:])
    assert on_a_worker(home, follow).stdout.splitlines() == [
        *("-m", "imagen_booth.sample"),
        *(f"--prompt={prompt}", "--run=gs://bucket/dog"),
    ]
    assert on_a_worker(home, code).stdout == "75\n"


FILLED = {
    "NAME": "dog",
    "IMAGE": "registry/booth:1",
    "SERVICE_ACCOUNT": "booth",
    "ACCELERATOR": "tpu-v4-podslice",
    "TOPOLOGY": "2x2x4",
    "HOSTS": "4",
    "CHIPS": "4",
    "CONFIG": "configs/dog.py:if_m",
    "WORKDIR": "gs://bucket/dog&co",
    "PROMPTS": "gs://bucket/prompts.txt",
    "SEEDS": "4",
    "PAUSE": "0",
}
LOOK = [
    *("kubectl", "get", "jobset/dog"),
    '--output=jsonpath={.status.conditions[?(@.status=="True")].type}',
]
APPLY = ["kubectl", "apply", "--filename=-"]
LAST_WORDS = ["kubectl", "logs", "--selector=booth=dog", "--prefix", "--tail=20"]
REMOVE = ["kubectl", "delete", "jobset/dog", "--ignore-not-found"]


def filled(sandbox: Sandbox, manifest: pathlib.Path) -> dict:
    """A manifest, filled in."""
    yaml = pytest.importorskip("yaml")
    answer = sandbox.run(GKE, "show", manifest, **FILLED)
    assert answer.returncode == 0, answer.stderr
    return yaml.safe_load(answer.stdout)


def test_a_job_on_gke_is_sent_and_waited_for(sandbox):
    sandbox.answer("get jobset", "0", "1", "0 Suspended", "0 Completed")
    answer = sandbox.run(GKE, "run", JOBSET, **FILLED)
    assert answer.returncode == 0, answer.stderr
    assert sandbox.calls == [APPLY, *[LOOK] * 4]
    sent = (sandbox.folder / "sent").read_text()
    assert sent == sandbox.run(GKE, "show", JOBSET, **FILLED).stdout
    assert "--workdir=gs://bucket/dog&co" in sent


@pytest.mark.parametrize(
    ("part", "answers", "code"),
    [("apply", ["1"], 1), ("get jobset", ["0 Failed"], 1), ("get jobset", ["1"], 2)],
)
def test_a_job_on_gke_that_fails_is_deleted(sandbox, part, answers, code):
    sandbox.answer(part, *answers)
    answer = sandbox.run(GKE, "run", JOBSET, **FILLED)
    assert answer.returncode == code
    assert sandbox.calls[-2:] == [LAST_WORDS, REMOVE]


@pytest.mark.parametrize("name", ["NAME", "IMAGE", "TOPOLOGY", "HOSTS"])
def test_a_missing_value_of_a_manifest_is_named(sandbox, name):
    variables = {key: value for key, value in FILLED.items() if key != name}
    answer = sandbox.run(GKE, "run", JOBSET, **variables)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"{name} is not set")
    assert not sandbox.calls


def check_pods(job: dict) -> None:
    """Rules of Kubernetes for a job's pods that the schema does not contain."""
    spec = job["template"]["spec"]
    # A policy on exit codes requires this restart policy.
    assert spec["restartPolicy"] == "Never"
    [container] = spec["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]  # chips are never overbooked
    assert isinstance(limits["google.com/tpu"], int)
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert rule["onExitCodes"]["operator"] == "In"
    failing = job["podFailurePolicy"]["rules"][0]
    # Saved and stopped, storage, a killed process: these may restart.
    assert failing["action"] == "FailJob"
    assert set(failing["onExitCodes"]["values"]).isdisjoint({0, 1, 5, 75, 137, 143})


def test_the_sampling_job_is_a_kubernetes_job(sandbox):
    job = filled(sandbox, SAMPLE_JOB)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    check_pods(job["spec"])
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        *("imagen_booth.sample", "--run=gs://bucket/dog&co"),
        *("--prompts=gs://bucket/prompts.txt", "--seeds=4"),
    ]
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(job, kubernetes.latest_version(), strict=True)


def test_the_job_set_holds_a_kubernetes_job(sandbox):
    """Kubernetes' own schemas lack job sets, but have the job inside them."""
    jobset = filled(sandbox, JOBSET)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == "dog"
    spec = jobset["spec"]
    assert spec.keys() == {
        "ttlSecondsAfterFinished",
        "failurePolicy",
        "replicatedJobs",
    }
    [rule] = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    [replicated] = spec["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    job = replicated["template"]["spec"]
    check_pods(job)
    assert job["completionMode"] == "Indexed"
    # 2x2x4 chips with four on a host, and one pod for each host.
    assert job["parallelism"] == job["completions"] == 4
    assert job["backoffLimit"] == 0  # the job set restarts all together
    [container] = job["template"]["spec"]["containers"]
    assert container["args"] == [
        *("imagen_booth.train", "--config=configs/dog.py:if_m"),
        "--workdir=gs://bucket/dog&co",
    ]
    kubernetes = pytest.importorskip("kubernetes_validate")
    alone = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": jobset["metadata"],
        **replicated["template"],
    }
    kubernetes.validate(alone, kubernetes.latest_version(), strict=True)


def test_manifests_use_flags_that_exist():
    for manifest, command in ((JOBSET, "train"), (SAMPLE_JOB, "sample")):
        source = (ROOT / "imagen_booth" / f"{command}.py").read_text()
        for flag in re.findall(r"- --(\w+)=", manifest.read_text()):
            assert f'"{flag}"' in source


def test_the_image_has_what_it_copies():
    text = (ROOT / "launch" / "gke" / "Dockerfile").read_text()
    steps = [line.split() for line in text.splitlines() if line.startswith("COPY")]
    for _, *sources, _ in steps:
        for source in sources:
            assert (ROOT / source).exists(), source
    # In exec form, signals reach python, which saves and stops.
    assert 'ENTRYPOINT ["python", "-m"]' in text


@pytest.mark.parametrize("name", ["pretrain_toybox.sh", "pretrain_photo.sh"])
def test_a_pretraining_script_explains_itself(name):
    done = subprocess.run(
        [ROOT / "launch" / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"launch/{name}" in done.stdout
    assert "PYTHON  " in done.stdout


def test_shellcheck_finds_nothing():
    # Without activation it is beside the interpreter of the environment.
    here = pathlib.Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{here}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the [test] extra")
    scripts = sorted((ROOT / "launch").rglob("*.sh"))
    assert {TPU_VM, GKE} <= set(scripts)
    subprocess.run([shellcheck, *scripts], check=True)


def test_the_notebook_is_whole_and_clean():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        compile(cell.source, cell.id, "exec")
        assert not cell.outputs
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in cells) == 1
    assert "check_device(sys.executable)" in cells[0].source  # before all else


def cell_with(part: str) -> str:
    """Source of the only code cell of the notebook that contains ``part``."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    [found] = [source for source in sources if part in source]
    return found


def test_the_notebook_stops_where_another_device_answers(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cell = cell_with("EXPECTED =")
    for wanted in ("tpu", "gpu"):
        monkeypatch.setenv("EXPECTED_DEVICE", wanted)
        with pytest.raises(
            RuntimeError,
            match=f"a {wanted.upper()} is expected and a CPU answers.*Change runtime",
        ):
            exec(cell, {})
        assert "found: CPU" in capsys.readouterr().out
    monkeypatch.setenv("EXPECTED_DEVICE", "cpu")
    exec(cell, {})


@pytest.mark.parametrize(
    ("device", "extras"),
    [("cpu", "[gcs,hub]"), ("tpu", "[tpu,gcs,hub]"), ("gpu", "[cuda,gcs,hub]")],
)
def test_the_notebook_installs_beside_the_runtime(
    device, extras, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: calls.append(list(command))
    )
    names = {
        **{"os": os, "pathlib": pathlib, "subprocess": subprocess, "sys": sys},
        **{"SOURCE": "", "DRIVE": False, "ENVIRONMENT": str(tmp_path / "own")},
        **{"DEVICE": device, "check_device": calls.append},
    }
    exec(cell_with('"pip"'), names)
    made, filled, checked = calls
    python = str(tmp_path / "own" / "bin" / "python")
    assert made[:3] == [sys.executable, "-m", "venv"]
    assert made[-1] == str(tmp_path / "own")
    # The runtime's pip, but another environment.
    assert filled[:4] == [sys.executable, "-m", "pip", f"--python={python}"]
    assert filled[-1] == f"--editable=.{extras}"
    assert checked == python


def test_uploads_of_two_subjects_never_mix(tmp_path, monkeypatch):
    uploads = iter([{"dog.jpg": b"d"}, {"cat.jpg": b"c"}, {"dog.jpg": b"d"}, {}])
    files = types.ModuleType("google.colab.files")
    files.upload = lambda: next(uploads)  # pyright: ignore[reportAttributeAccessIssue]
    colab = types.ModuleType("google.colab")
    colab.files = files  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.files", files)
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(3):
        names = {"PHOTOS": "upload", "pathlib": pathlib}
        exec(cell_with("files.upload"), names)
        found.append(pathlib.Path(str(names["PHOTOS"])))
    dog, cat, again = found
    assert [path.name for path in dog.iterdir()] == ["dog.jpg"]
    assert [path.name for path in cat.iterdir()] == ["cat.jpg"]
    assert again == dog  # the same run goes on
    with pytest.raises(RuntimeError, match="nothing was uploaded"):
        exec(cell_with("files.upload"), {"PHOTOS": "upload", "pathlib": pathlib})


@pytest.mark.long
def test_the_notebook_runs(tmp_path, monkeypatch):
    """As a user runs it, with photos in a folder and the smallest cascade."""
    for name, value in (QUICK | {"EXPECTED_DEVICE": "cpu"}).items():
        monkeypatch.setenv(name, value)
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    changed = f"""CASCADE = "tiny"
PHOTOS = {str(make_photos(tmp_path / "photos", 0))!r}
WORKDIR = {str(tmp_path / "run")!r}
ENVIRONMENT = {sys.prefix!r}
MORE = ["--config.sr256.steps=0", "--config.sr1024.steps=0"]"""
    first = next(
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(changed))
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "display_data"
    ]
    assert "srcdoc=" in shown[0]["text/html"]
    assert "image/png" in shown[1]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == (
        "done"
    )
