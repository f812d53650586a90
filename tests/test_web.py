"""The page in a real browser; the tests marked web train and take minutes.

python -m pytest -m web tests/test_web.py
"""

import functools
import io
import json
import os
import pathlib
import shlex
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import jax
import numpy as np
import pytest
from etils import epath
from paths import ROOT
from PIL import Image
from train_jobs import QUICK, free_port
from web_pages import chromium, end_jobs, photo_files, served, until

from imagen_booth.rundir import checkpoints
from imagen_booth.web.jobs import DONE, QUEUED, RUNNING, STOPPED, Queue

pytest.importorskip("gradio", reason="needs imagen_booth[web]")

PATIENCE = 300  # seconds for an answer of the page, on a machine with other work


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_files(tmp_path_factory.mktemp("uploads") / "photos")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("booth") / "runs"
    yield folder
    end_jobs(folder)


@pytest.fixture(scope="module")
def address(root):
    """A page without a device: those belong to the jobs, so the page takes none."""
    with served(root, environ={"JAX_PLATFORMS": "none"}) as opened:
        yield opened


@pytest.fixture
def tab(browser):
    """Opens tabs of the browser."""
    opened = []

    def open_page(address, **settings):
        page = browser.new_page(
            **{"viewport": {"width": 1280, "height": 900}} | settings
        )
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.get_by_role("tab", name="Photos").wait_for()
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()


@pytest.fixture
def page(tab, address):
    return tab(address)


def upload(page, photos, noun, cascade="tiny", name=""):
    open_tab(page, "Photos")
    page.locator("#upload input[type=file]").set_input_files(photos)
    page.get_by_placeholder("dog, backpack").fill(noun)
    page.get_by_label("Cascade").click()
    page.get_by_role("option", name=cascade, exact=True).click()
    page.get_by_label("Name of the run").fill(name)
    page.locator("#crops img").first.wait_for()


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def value(page, place):
    return page.locator(f"{place} textarea, {place} input").first.input_value()


def get(url):
    """Status and body of a request."""
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_photos_are_checked_and_nothing_leaves_the_machine(page, photos, root):
    hosts = set()
    page.on("request", lambda request: hosts.add(urllib.parse.urlsplit(request.url)))
    page.reload()
    upload(page, photos, "man")
    table = page.locator("#verdicts")
    until(lambda: "EXIF orientation 6 applied" in table.inner_text(), PATIENCE)
    assert (
        "cannot be decoded: truncated, damaged, or not an image" in table.inner_text()
    )
    assert page.locator("#crops img").count() == 5
    page.get_by_label("This person agrees").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("tick the box if you have it").wait_for()
    command = page.locator("#start_command .cm-content").inner_text()
    assert "--config.subject.class_noun=man" in command
    assert {each.hostname for each in hosts if each.scheme.startswith("http")} == {
        "127.0.0.1"
    }
    assert not (root / "man").exists()


def test_files_outside_the_root_are_not_served(address, root):
    secret = root.parent / "secret.txt"
    secret.write_text("secret")
    (root / "dog").mkdir(exist_ok=True)
    picture = root / "dog" / "metrics.jsonl"
    picture.write_text("{}")
    route = f"{address}/gradio_api/file="
    assert get(f"{route}{picture}")[0] == 200
    for path in (
        str(secret),
        f"{root}/../secret.txt",
        f"{root}/dog/../../secret.txt",
        urllib.parse.quote(f"{root}/../secret.txt", safe=""),
        urllib.parse.quote(urllib.parse.quote(f"{root}/../secret.txt", safe="")),
        "/etc/passwd",
        "../../../../etc/passwd",
        f"{root}/.booth/lock",
        f"{root}/dog/../.booth/lock",
    ):
        status, body = get(f"{route}{path}")
        assert status in (403, 404), path
        assert body != b"secret"
        assert b"root:" not in body
    picture.unlink()
    (root / "dog").rmdir()


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "runs"
    yield folder
    end_jobs(folder)


@pytest.fixture(scope="module")
def whole_address(whole_root):
    with served(whole_root) as opened:
        yield opened


@pytest.mark.web
def test_from_photos_to_the_end_of_training(tab, photos, whole_root, whole_address):
    """Upload and train; previews as they come; the job outlives the browser's tab."""
    page, root = tab(whole_address), whole_root
    upload(page, photos, "dog", name="rex")
    page.get_by_role("button", name="Start training").click()
    progress = page.locator("#progress")
    until(lambda: "rex" in progress.inner_text(), PATIENCE)
    until(lambda: page.locator("#previews img").count() == 1)
    page.close()  # the job goes on
    queue = Queue(root)
    assert queue.is_busy()
    until(lambda: queue.records()[-1].state == DONE)


@pytest.mark.web
def test_sampling_with_the_finished_run(tab, whole_root, whole_address):
    page = tab(whole_address)
    until(lambda: value(page, "#now") == "Nothing is running.", PATIENCE)
    open_tab(page, "Training")
    until(lambda: "done" in page.locator("#progress").inner_text(), PATIENCE)
    until(lambda: page.locator("#ends img").count() == 6, PATIENCE)
    open_tab(page, "Gallery")
    until(lambda: page.locator("#gallery img").count() == 2, PATIENCE)
    page.get_by_label("Prompts, one per line").fill("a [V] dog asleep\na red [V] [N]")
    page.get_by_role("button", name="Sample", exact=True).click()
    until(lambda: page.locator("#gallery img").count() == 4)
    with page.expect_download() as download:
        page.locator("#gallery button img").first.click()
        page.get_by_role("button", name="Download it").click()
    assert download.value.path().read_bytes()[:4] == b"\x89PNG"
    assert "--prompt=a red [V] [N]" in Queue(whole_root).records()[-1].command


# The base stage alone is trained, with few previews, which is quicker.
BASE_ALONE = (
    "--setting=config.sr256.steps=0",
    "--setting=config.sr1024.steps=0",
    "--setting=config.base.preview_every=200",
    "--setting=config.base.save_every=100",
)
STEPS = 400  # enough for a click on a slow machine to stop a run before its end


@pytest.fixture(scope="module")
def base_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base_alone") / "runs"
    yield folder
    end_jobs(folder)


@pytest.fixture(scope="module")
def base_address(base_root):
    with served(base_root, *BASE_ALONE) as opened:
        yield opened


@pytest.fixture
def new_page(tab, base_address):
    """Opens tabs on the page whose runs train the base stage alone."""
    return functools.partial(tab, base_address)


def describe(page, photos, noun, name):
    """Fills the form of a run."""
    upload(page, photos, noun, name=name)
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Steps of the base stage").fill(str(STEPS))
    command = page.locator("#start_command .cm-content")
    until(lambda: f"--config.base.steps={STEPS}" in command.inner_text(), PATIENCE)


def start(page):
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("tab", name="Training", selected=True).wait_for()


def choose(page, label, option):
    box = page.get_by_label(label, exact=True)
    box.click()
    # The list of a choice before stays on the page for a moment.
    own = page.locator(f"#{box.get_attribute('aria-controls')}")
    own.get_by_role("option", name=option, exact=True).click()


def choose_run(page, name):
    """Chooses a run, once the page that was opened has chosen the latest one."""
    until(lambda: page.get_by_label("Run", exact=True).input_value(), PATIENCE)
    choose(page, "Run", name)


def rows_of(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.web
def test_stop_and_resume_in_two_tabs(new_page, photos, base_root):
    """Two tabs see the same run; a second job waits for the first."""
    first, second = new_page(), new_page()
    queue = Queue(base_root)

    def states():
        return [each.state for each in queue.records()]

    describe(first, photos, "dog", "rex")
    describe(second, photos, "cat", "tom")
    start(first)
    start(second)
    until(lambda: states() == [RUNNING, QUEUED])
    open_tab(second, "Runs")
    until(lambda: "waiting" in second.locator("#jobs").inner_text(), PATIENCE)
    second.reload()
    until(lambda: "Waiting: train tom" in value(second, "#now"), PATIENCE)
    open_tab(second, "Training")
    until(lambda: "rex: running" in second.locator("#progress").inner_text(), PATIENCE)
    until(lambda: rows_of(base_root / "rex") > 2)
    second.get_by_role("button", name="Stop and save").click()
    until(lambda: states() == [STOPPED, RUNNING])
    assert queue.records()[0].code == 75
    assert 2 < rows_of(base_root / "rex") < STEPS
    until(lambda: "stopped" in first.locator("#progress").inner_text(), PATIENCE)
    first.get_by_role("button", name="Resume").click()
    until(lambda: len(states()) == 3, PATIENCE)
    until(lambda: states() == [STOPPED, DONE, DONE])
    assert rows_of(base_root / "rex") == STEPS
    begun, _, resumed = queue.records()
    assert begun.command == resumed.command


@pytest.mark.web
def test_the_shown_command_gives_the_same_run_bit_for_bit(new_page, base_root):
    """The run of the command line also appears on the page."""
    page = new_page()
    open_tab(page, "Training")
    choose_run(page, "rex")
    shown = page.locator("#run_command .cm-content")
    until(lambda: f"{base_root / 'rex'}" in shown.inner_text(), PATIENCE)
    command = shlex.split(shown.inner_text())
    assert command[-1] == f"--workdir={base_root / 'rex'}"
    command[0], command[-1] = sys.executable, f"--workdir={base_root / 'by_hand'}"
    environ = os.environ | QUICK | {"JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True)
    trees = [
        checkpoints.read_params(epath.Path(base_root / name / "base"))[0]
        for name in ("rex", "by_hand")
    ]
    equal = jax.tree.map(np.array_equal, *trees)
    assert jax.tree.leaves(equal)
    assert all(jax.tree.leaves(equal))
    open_tab(page, "Runs")
    # Gradio measures columns with a hidden copy of a row.
    row = page.locator("#runs").get_by_text("by_hand").filter(visible=True)
    row.first.click()
    page.get_by_role("tab", name="Training", selected=True).wait_for()
    until(lambda: "by_hand: done" in page.locator("#progress").inner_text(), PATIENCE)


@pytest.mark.web
def test_gallery_compare_and_delete(new_page, base_root):
    page = new_page()
    choose_run(page, "rex")
    open_tab(page, "Gallery")
    page.locator("#gallery img").first.wait_for()
    page.get_by_role("button", name="The paper's applications").click()
    page.get_by_text("a sad [V] [N]").click()
    prompts = page.get_by_label("Prompts, one per line")
    until(lambda: "a sad [V] [N]" in prompts.input_value(), PATIENCE)
    page.locator("#gallery button img").first.click()
    page.get_by_text('"identifier"').wait_for()
    page.get_by_role("button", name="Favourite", exact=True).click()
    page.get_by_role("button", name="Remove from favourites").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download it").click()
    with Image.open(io.BytesIO(download.value.path().read_bytes())) as image:
        assert image.info["prompt"]
        assert image.info["run"] == "rex"
    page.get_by_role("button", name="Make a zip").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the zip").click()
    assert download.value.path().read_bytes()[:2] == b"PK"
    with page.expect_popup() as report:
        page.get_by_role("link", name="Open the report").click()
    report.value.get_by_role("heading").first.wait_for()
    page.get_by_role("button", name="Export", exact=True).click()
    queue = Queue(base_root)
    until(lambda: queue.latest("rex", "convert"), PATIENCE)
    until(lambda: queue.records()[-1].state == DONE)
    assert queue.records()[-1].kind == "convert"
    assert list((base_root / "rex" / "export" / "full").iterdir())
    open_tab(page, "Runs")
    choose(page, "Run on the left", "rex")
    choose(page, "Run on the right", "tom")
    page.get_by_text("subject.class_noun: dog -> cat").wait_for()
    choose(page, "Run to delete", "tom")
    page.get_by_role("button", name="Delete ...").click()
    page.get_by_role("button", name="Cancel").click()
    assert (base_root / "tom").exists()
    page.get_by_role("button", name="Delete ...").click()
    page.get_by_role("button", name="Delete permanently").click()
    until(lambda: not (base_root / "tom").exists(), PATIENCE)
    until(lambda: "tom" not in page.locator("#runs").inner_text(), PATIENCE)


NAMELESS = """() => [...document.querySelectorAll('input, textarea, select, button')]
    .filter(each => each.offsetParent !== null)
    .filter(each => !(each.labels?.length || each.ariaLabel || each.title
        || each.innerText?.trim() || each.getAttribute('aria-labelledby')))
    .map(each => each.outerHTML.slice(0, 200))"""


@pytest.mark.web
def test_labels_keyboard_phone_and_dark(new_page, photos):
    page = new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.locator("#upload input[type=file]").set_input_files(photos)
    page.locator("#crops img").first.wait_for()
    for name in ("Photos", "Training", "Gallery", "Runs"):
        open_tab(page, name)
        page.wait_for_timeout(1000)
        assert page.evaluate(NAMELESS) == [], name
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, name
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(each) for each in colour[4:-1].split(",")[:3]) < 60, colour
    open_tab(page, "Photos")
    page.get_by_placeholder("dog, backpack").focus()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText.trim()"))
    assert {"Check this job", "Start training"} <= reached


@pytest.mark.web
def test_markup_in_names_and_prompts_is_text(new_page, photos, tmp_path, base_root):
    markup = "<img src=x onerror=window.broken=1>"
    file = tmp_path / f"{markup}.jpg"
    file.write_bytes(pathlib.Path(photos[0]).read_bytes())
    page = new_page()
    upload(page, [str(file)], markup, name=markup)
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("cannot be used; give 1 to 40 letters").wait_for()
    open_tab(page, "Gallery")
    choose_run(page, "rex")
    page.get_by_label("Prompts, one per line").fill(markup)
    reads = page.get_by_label("As the cascade reads them")
    until(lambda: markup in reads.input_value(), PATIENCE)
    assert page.evaluate("window.broken") is None


def call(address, function, data):
    """What a page answers to an event that no button sends."""
    session = "someone"
    body = {"fn_index": function, "data": data, "session_hash": session}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).read()
    stream = f"{address}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream) as answers:
        for line in answers:
            answer = (
                json.loads(line.removeprefix(b"data: ") or "{}") if line.strip() else {}
            )
            if answer.get("msg") == "process_completed":
                return answer
    raise AssertionError("no answer")


def test_events_take_no_paths(address, root, tmp_path):
    """Neither as an uploaded file nor as the name of a run."""
    config = json.loads(get(f"{address}/config")[1])
    labels = {each["id"]: each["props"].get("label") for each in config["components"]}
    functions = {
        tuple(labels[each] for each in function["inputs"]): function["id"]
        for function in config["dependencies"]
    }
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    asked = next(each for each in functions if "Class noun" in each)
    for path in (str(secret), "/etc/passwd", "../../../etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        values = [
            "My photos",
            [file],
            "centre",
            0,
            0,
            "dog",
            False,
            "tiny",
            "",
            "",
            0,
            0,
        ]
        answer = call(address, functions[asked], values)
        assert not answer["success"], path
    for name in ("../secret", str(tmp_path), ".booth"):
        answer = call(address, functions[("Run to delete",)], [name])
        assert not answer["success"], name
    assert secret.exists()


HUNDRED = """
import runpy
from imagen_booth.web import page
page.EXPIRY = (5, 30)
runpy.run_module("imagen_booth.web", run_name="__main__", alter_sys=True)
"""


@pytest.mark.web
def test_a_hundred_uploads_and_reloads_leave_nothing(browser, tmp_path, photos):
    def files():
        return [each for each in (tmp_path / "temporary").rglob("*") if each.is_file()]

    def resident(process):
        status = pathlib.Path(f"/proc/{process}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024  # MiB

    environ = {"GRADIO_TEMP_DIR": str(tmp_path / "temporary"), "TMPDIR": str(tmp_path)}
    with served(tmp_path / "runs", code=HUNDRED, environ=environ) as address:
        (server,) = [
            int(each.name)
            for each in pathlib.Path("/proc").glob("[0-9]*")
            if str(tmp_path / "runs").encode() in _command_line(each)
        ]
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        sizes = []
        for number in range(100):
            page.goto(address)
            page.locator("#upload input[type=file]").set_input_files(photos)
            page.locator("#crops img").first.wait_for()
            if number in (9, 99):
                sizes.append(resident(server))
        page.close()
        until(lambda: not files(), 120)
        assert sizes[1] < sizes[0] + 100, sizes
        assert not list((tmp_path / "runs").glob("*/source"))


def _command_line(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


FIRST_PAGE = """
import pathlib, sys, time, urllib.request, os
from imagen_booth.web import page
from imagen_booth.web.booth import Booth

begun = time.process_time()  # other work on the machine does not count

def ready(address):
    urllib.request.urlopen(address).read()
    print(time.process_time() - begun, flush=True)
    os._exit(0)

booth = Booth(pathlib.Path(sys.argv[1]), {})
page.serve(booth, host="127.0.0.1", port=int(sys.argv[2]), share=False, password="",
           ready=ready)
"""


@pytest.mark.web
def test_first_page_comes_in_five_seconds_after_imports(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FIRST_PAGE, str(tmp_path), str(free_port())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 5


def web(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "imagen_booth.web", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--share"], "--share opens the page to others"),
        (["--host=0.0.0.0"], "--host=0.0.0.0 opens the page to others"),
        (["--root=gs://bucket/runs"], "give a local folder"),
        (["--root=pyproject.toml"], "--root=pyproject.toml is no folder"),
        (["--setting=base.steps=3"], "write config.NAME=VALUE"),
    ],
)
def test_what_is_not_safe_is_refused(flags, message):
    done = web(*flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_password_is_asked_for(tmp_path):
    with served(tmp_path / "runs", "--password=open sesame") as address:
        assert get(f"{address}/config")[0] == 401
        form = urllib.parse.urlencode({"username": "me", "password": "wrong"})
        request = urllib.request.Request(f"{address}/login", form.encode())
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)
        form = urllib.parse.urlencode({"username": "me", "password": "open sesame"})
        request = urllib.request.Request(f"{address}/login", form.encode())
        assert urllib.request.urlopen(request).status == 200
