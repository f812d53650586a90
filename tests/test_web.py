"""The page in a real browser; the tests marked web train and take minutes.

python -m pytest -m web tests/test_web.py
"""

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from web_pages import chromium, end_jobs, photo_files, served, until

from imagen_booth.webapp.jobs import DONE, Queue

pytest.importorskip("gradio", reason="needs imagen_booth[web]")


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
    with served(root) as opened:
        yield opened


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(60_000)
    opened.goto(address)
    opened.get_by_role("tab", name="Photos").wait_for()
    yield opened
    opened.close()


def upload(page, photos, noun, cascade="tiny", name=""):
    page.locator("#upload input[type=file]").set_input_files(photos)
    page.get_by_label("Class noun").fill(noun)
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
    until(lambda: "EXIF orientation 6 applied" in table.inner_text(), 60)
    assert (
        "cannot be decoded: truncated, damaged, or not an image" in table.inner_text()
    )
    assert page.locator("#crops img").count() == 5
    page.get_by_label("This person agrees").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("tick the box if you have it").wait_for()
    command = page.locator(".cm-content").first.inner_text()
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


@pytest.mark.web
def test_from_photos_to_sampled_pictures(page, photos, root):
    """Upload, train to the end, previews as they come, gallery, two prompts."""
    upload(page, photos, "dog", name="rex")
    page.get_by_role("button", name="Start training").click()
    progress = page.locator("#progress")
    until(lambda: "rex" in progress.inner_text(), 60)
    until(lambda: page.locator("#previews img").count() == 1)
    page.close()  # the job goes on
    queue = Queue(root)
    assert queue.is_busy()
    until(lambda: queue.records()[-1].state == DONE)


@pytest.mark.web
def test_sampling_with_the_finished_run(page, root):
    until(lambda: value(page, "#now") == "Nothing is running.", 60)
    open_tab(page, "Training")
    until(lambda: "done" in page.locator("#progress").inner_text(), 60)
    until(lambda: page.locator("#ends img").count() == 6, 60)
    open_tab(page, "Gallery")
    until(lambda: page.locator("#gallery img").count() == 2, 60)
    page.get_by_label("Prompts, one per line").fill("a [V] dog asleep\na red [V] [N]")
    page.get_by_role("button", name="Sample", exact=True).click()
    until(lambda: page.locator("#gallery img").count() == 4)
    with page.expect_download() as download:
        page.locator("#gallery button img").first.click()
        page.get_by_role("button", name="Download it").click()
    assert download.value.path().read_bytes()[:4] == b"\x89PNG"
    listed = json.dumps([each.command for each in Queue(root).records()])
    assert "--prompt=a red [V] [N]" in listed
