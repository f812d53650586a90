"""Which part of the package may import which; read from its sources, nothing is run."""

import ast
import graphlib
import pathlib
import sys
from collections.abc import Iterator

import pytest

import imagen_booth

PACKAGE = "imagen_booth"
ROOT = pathlib.Path(imagen_booth.__path__[0])

ENTRIES = 32  # in the package folder, at most
FLOORS = 10  # of imports between them, at most
# These folders import nothing of the package but what is named first, and of other
# libraries only what is named second.
GROUND = {
    "diffusion": ({"errors"}, {"annotated_types", "jax", "jaxtyping", "numpy"}),
    "models": (set(), {"flax", "jax", "jaxtyping", "numpy"}),
    "data": (
        {"errors", "storage"},
        {"PIL", "etils", "grain", "numpy", "pillow_heif", "tensorflow_datasets"},
    ),
    "text": ({"errors"}, {"etils", "ftfy", "numpy", "sentencepiece"}),
    "toybox": (
        {"data", "errors", "storage"},
        {"etils", "numpy"},
    ),
}
# The toybox renderer alone draws with jax, outside the data workers.
RENDERER = {f"toybox.{name}" for name in ("renderer", "fields", "surfaces")}
# Who may import a library, by module or package.
KEEPERS = {
    "flax": {"models"},
    "gradio": {"web"},
    "grain": {"data"},
    "ml_collections": {"config", "doctor", "pretrain", "sample", "train"},
    "pandas": {"web"},
    "orbax": {"rundir.checkpoints"},
    "sentencepiece": {"text"},
    "tensorboardX": {"rundir.metrics"},
    "tensorflow_datasets": {"data"},
}
COMMANDS = {
    "convert",
    "doctor",
    "evaluate",
    "pretrain",
    "reproduce",
    "sample",
    "train",
    "web",
}


def read_modules() -> dict[str, ast.Module]:
    """Dotted names inside the package, "" the package itself, and their syntax."""
    trees = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text())
    return trees


MODULES = read_modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """Full dotted names that a module imports anywhere, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(tree: ast.AST) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for name in imported(tree):
        first, *rest = name.split(".")
        if first != PACKAGE:
            continue
        # The last part may be a name in a module and not a module.
        whole = ".".join(rest)
        found.add(whole if whole in MODULES else ".".join(rest[:-1]))
    assert found <= MODULES.keys(), found - MODULES.keys()
    return found


def outer(tree: ast.AST) -> set[str]:
    """Dotted names from outside the package."""
    return {name for name in imported(tree) if name.split(".")[0] != PACKAGE}


def room(module: str) -> str:
    return module.partition(".")[0]


def arrows() -> dict[str, dict[str, list[str]]]:
    """Which entry of the package imports which, and by which modules."""
    found: dict[str, dict[str, list[str]]] = {room(module): {} for module in MODULES}
    del found[""]
    for module, tree in MODULES.items():
        for other in inner(tree) - {""}:
            if module and room(other) != room(module):
                imports = found[room(module)].setdefault(room(other), [])
                imports.append(f"{module} imports {other}")
    return found


def test_the_sources_are_read():
    assert {"denoiser", "models.unet", "toybox.renderer"} <= MODULES.keys()
    assert inner(MODULES["training.train_step"]) >= {"train_state", "diffusion.loss"}
    assert "orbax.checkpoint.v1" in outer(MODULES["rundir.checkpoints"])
    assert "importlib.metadata" in outer(MODULES["rundir.layout"])


def test_few_entries():
    names = sorted(path.name for path in ROOT.iterdir() if path.name[0] not in "_.")
    print(len(names), "entries:", *names)
    assert len(names) <= ENTRIES


def test_imports_go_down():
    """No circle between entries; the error names the imports that close it."""
    found = arrows()
    try:
        order = list(graphlib.TopologicalSorter(found).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1]  # each is imported by the next
        offending = [
            found[importer].get(imported)
            for imported, importer in zip(circle, circle[1:], strict=False)
        ]
        pytest.fail(f"{circle} import each other: {offending}")
    floors: dict[str, int] = {}
    for name in order:
        floors[name] = 1 + max((floors[other] for other in found[name]), default=0)
    highest = max(floors.values())
    lines = [
        f"floor {floor:2}: " + " ".join(sorted(n for n in floors if floors[n] == floor))
        for floor in range(highest, 0, -1)
    ]
    print(*lines, sep="\n")
    top = next(name for name in floors if floors[name] == highest)
    assert highest <= FLOORS, f"{top} is on floor {highest}, above {found[top]}"
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    drawn = [line.strip() for line in page.splitlines() if "    floor " in line]
    assert drawn == lines, "docs/architecture.md shows other floors"


def test_no_circles_between_modules():
    graph = {module: inner(tree) for module, tree in MODULES.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", GROUND)
def test_ground_rooms_stand_alone(name):
    strangers = {
        f"{module} imports {other}"
        for module, tree in MODULES.items()
        if room(module) == name
        for other in inner(tree)
        if room(other) not in GROUND[name][0] | {name}
    }
    assert not strangers


@pytest.mark.parametrize("name", GROUND)
def test_ground_rooms_know_few_libraries(name):
    for module, tree in MODULES.items():
        if room(module) != name:
            continue
        allowed = GROUND[name][1] | ({"jax"} if module in RENDERER else set())
        used = {outside.split(".")[0] for outside in outer(tree)}
        assert used - allowed <= sys.stdlib_module_names, module


def test_jax_in_the_toybox_is_behind_the_renderer():
    """What draws with jax is reached through renderer.py alone."""
    behind = RENDERER - {"toybox.renderer"}
    for module, tree in MODULES.items():
        if module not in RENDERER:
            assert not inner(tree) & behind, module


@pytest.mark.parametrize("library", KEEPERS)
def test_libraries_have_keepers(library):
    users = {
        module
        for module, tree in MODULES.items()
        for name in outer(tree)
        if name.split(".")[0] == library and name != "flax.traverse_util"
    }
    assert users, "a keeper of nothing; the rule can go"
    strangers = {
        module for module in users if not {module, room(module)} & KEEPERS[library]
    }
    assert not strangers


def test_tfds_is_imported_only_when_it_is_asked_for():
    """It is slow to import, and TensorFlow is never needed."""
    for module, tree in MODULES.items():
        assert "tensorflow" not in {name.split(".")[0] for name in outer(tree)}, module
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {name.split(".")[0] for node in top for name in imported(node)}
        assert "tensorflow_datasets" not in names, module


def test_only_storage_writes_files():
    """An object store has no append and no rename: writing has one place."""
    # A download is resumed on the local disk; the vocabulary is a file of the source.
    exempt = {"storage", "weights.fetch", "text.vocabulary"}
    writing = {"write_text", "write_bytes", "rename", "touch"}
    for module, tree in MODULES.items():
        if module in exempt:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
            opened = name == "open" and any(
                isinstance(mode, str) and set(mode) & set("wax+") and len(mode) <= 3
                for mode in modes
            )
            assert name not in writing, f"{module} line {node.lineno}"
            assert not opened, f"{module} line {node.lineno}"


def test_only_one_module_asks_which_process_this_is():
    asking = {"process_index", "process_count", "process_indices"}
    for module, tree in MODULES.items():
        words = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute | ast.Name)
        }
        words |= {name.split(".")[-1] for name in outer(tree)}
        assert bool(words & asking) == (module == "distributed.processes"), module


@pytest.mark.parametrize("name", sorted(COMMANDS & MODULES.keys()))
def test_commands_answer_before_they_import(name):
    """At the top of a command stand only flags, so that --help is quick."""
    top = ast.Module(
        [
            node
            for node in MODULES[name].body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ],
        [],
    )
    assert inner(top) <= {"cli", "errors"}
    used = {outside.split(".")[0] for outside in outer(top)}
    assert used - {"absl", "ml_collections"} <= sys.stdlib_module_names


def test_configs_see_only_the_defaults():
    folder = ROOT.parent / "configs"
    files = sorted(folder.glob("*.py"))
    assert files
    for path in files:
        tree = ast.parse(path.read_text())
        assert inner(tree) == {"config.presets"}, path
        assert {name.split(".")[0] for name in outer(tree)} <= {"ml_collections"}, path
