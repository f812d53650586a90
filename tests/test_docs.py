"""README and docs: commands parse, recipes run, links lead to something."""

import importlib
import importlib.util
import re
import shlex
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from paths import ROOT

from imagen_booth import cascade, models
from imagen_booth.config.build import to_any_job
from imagen_booth.diffusion import loss

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    + list((ROOT / "docs").rglob("*.md"))
)
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
COMMANDS = sorted(
    {
        line[line.index("python -m imagen_booth.") :]
        for page in PAGES
        for line in page.read_text().splitlines()
        if line.startswith("    ") and "python -m imagen_booth." in line
    }
)


def named_by(page):
    return str(page.relative_to(ROOT))


def module_of(command):
    """The module that ``python -m command`` runs."""
    spec = importlib.util.find_spec(command)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"{command}.__main__" if is_package else command


def test_pages_and_commands_are_found():
    assert len(PAGES) > 15
    assert len(COMMANDS) > 25
    assert len(RECIPES) == 4


# ml_collections loads config files in a way that importlib deprecates.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line, monkeypatch):
    """Every flag and setting of a command exists."""
    _, _, name, *args = shlex.split(line, comments=True)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *args])
    with flagsaver.flagsaver():
        command = importlib.import_module(module_of(name))
        try:
            verb, *words = flags.FLAGS(sys.argv)[1:] or [None]
            verbs = getattr(command, "VERBS", {None: 0})
            assert len(words) <= verbs[verb]
            if name == "imagen_booth.train":
                to_any_job(flags.FLAGS.config)
        finally:
            del sys.modules[module_of(name)]


@pytest.fixture
def scratch_tables(monkeypatch):
    """Entries that a recipe adds to the package's tables go again."""
    for module, name in (
        (loss, "WEIGHTS"),
        (models, "SIZES"),
        (cascade, "CASCADES"),
    ):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


@pytest.mark.usefixtures("scratch_tables")
@pytest.mark.long
@pytest.mark.parametrize("page", RECIPES, ids=named_by)
def test_recipe_runs(page):
    """The code blocks of a recipe run, one after the other."""
    text = page.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S))
    assert blocks
    names = {"__name__": page.stem}
    for block in blocks:
        lines = "\n" * text.count(
            "\n", 0, block.start(1)
        )  # errors name the page's line
        exec(compile(lines + block[1], str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=named_by)
def test_files_exist(page):
    """Paths of the repository in a page, and relative links, lead to files."""
    text = page.read_text()
    paths = re.findall(
        r"\b(?:imagen_booth|tests|configs|launch|docs|benchmarks|third_party)"
        r"/[\w/.]*\w",
        text,
    )
    missing = [path for path in paths if not (ROOT / path).exists()]
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=named_by)
def test_links_lead_to_headings(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        target = (page.parent / link) if link else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
        slugs = {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in headings
        }
        assert anchor in slugs, link


def test_way_of_a_job_has_true_names():
    """Every dotted name in the list of calls is there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"^\d+\. `([\w.]+)`", text, re.M)
    assert len(names) >= 10
    names += re.findall(r"`((?:sampling|reports)\.[\w.]+)`", text)
    for name in names:
        module, _, attribute = name.rpartition(".")
        spec = importlib.util.find_spec(f"imagen_booth.{module}")
        assert spec is not None, name
        assert spec.origin is not None
        with open(spec.origin) as file:
            assert f"\ndef {attribute}(" in file.read(), name


def test_configuration_page_is_new():
    path = ROOT / "docs" / "generate_configuration.py"
    spec = importlib.util.spec_from_file_location("generate_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text() == generator.page(), (
        "docs/configuration.md is stale; run python docs/generate_configuration.py"
    )


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200
