"""Which part of the house may import which; read from the sources, nothing is run."""

import ast
import graphlib
import pathlib
import sys
from collections.abc import Iterator

import pytest

import imagen_booth

PACKAGE = "imagen_booth"
ROOT = pathlib.Path(imagen_booth.__path__[0])

# Imports go down, or stay on a floor without going round in a circle.
FLOORS = {
    "commands": "cli config convert doctor evaluate pretrain reproduce sample train "
    "watch",
    "work": "aot appraisal appraisal_page batch batch_log batch_page batch_plan booth "
    "checkup consult failures_page forecast forecast_text gallery generate invert "
    "judging keep loop mending noun_check prepare pretraining previews prior report "
    "report_page studies tune",
    "parts": "budget cascade checkpoint embed evaluation hosts job metrics optim "
    "options placement profiling quantities settings sharding stage state steps "
    "topology weights work workdir",
    "ground": "data diffusion models text",
    "below": "cpu errors",
}
# The rooms on the ground floor know nothing of each other, and of the outside world
# only this.
GROUND = {
    "diffusion": {"jax", "jaxtyping", "numpy"},
    "models": {"flax", "jax", "jaxtyping", "numpy"},
    "data": {
        "PIL",
        "etils",
        "grain",
        "numpy",
        "pillow_heif",
        "tensorflow_datasets",
    },
    "text": {"ftfy", "numpy", "sentencepiece"},
}
# The toybox renderer alone draws with jax, outside the data workers.
RENDERER = {f"data.toybox.{name}" for name in ("render", "fields", "surfaces")}
# Who may import a library, by module or package.
KEEPERS = {
    "flax": {"models"},
    "grain": {"data"},
    "ml_collections": {"config", "doctor", "pretrain", "sample", "train"},
    "orbax": {"checkpoint"},
    "sentencepiece": {"text"},
    "tensorboardX": {"metrics"},
    "tensorflow_datasets": {"data"},
}
COMMANDS = set(FLOORS["commands"].split()) - {"cli", "config", "watch"}


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


def test_the_sources_are_read():
    assert {"steps", "models.unet", "data.toybox.render"} <= MODULES.keys()
    assert inner(MODULES["steps"]) >= {"state", "models.hint", "diffusion.loss"}
    assert "orbax.checkpoint.v1" in outer(MODULES["checkpoint"])
    assert "importlib.metadata" in outer(MODULES["booth"])


def test_every_module_lives_on_one_floor():
    placed = [name for names in FLOORS.values() for name in names.split()]
    assert len(placed) == len(set(placed))
    assert {room(module) for module in MODULES} - {""} <= set(placed)


def test_imports_go_down():
    depth = {
        name: number
        for number, names in enumerate(FLOORS.values())
        for name in names.split()
    }
    upward = [
        f"{module} imports {other}"
        for module, tree in MODULES.items()
        for other in inner(tree)
        if depth[room(module)] > depth[room(other)]
    ]
    assert not upward


def test_no_circles():
    graph = {module: inner(tree) for module, tree in MODULES.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", GROUND)
def test_ground_rooms_stand_alone(name):
    strangers = {
        f"{module} imports {other}"
        for module, tree in MODULES.items()
        if room(module) == name
        for other in inner(tree)
        if room(other) not in (name, "errors")
    }
    assert not strangers


@pytest.mark.parametrize("name", GROUND)
def test_ground_rooms_know_few_libraries(name):
    for module, tree in MODULES.items():
        if room(module) != name:
            continue
        allowed = GROUND[name] | ({"jax"} if module in RENDERER else set())
        used = {outside.split(".")[0] for outside in outer(tree)}
        assert used - allowed <= sys.stdlib_module_names, module


def test_jax_in_data_is_behind_the_renderer():
    """What draws with jax is reached through render.py and nothing else of data/."""
    behind = RENDERER - {"data.toybox.render"}
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
    assert {room(module) for module in users} <= KEEPERS[library]


def test_tfds_is_imported_only_when_it_is_asked_for():
    """It is slow to import, and TensorFlow is never needed."""
    builder = "data.toybox.tfds_builder"
    for module, tree in MODULES.items():
        assert "tensorflow" not in {name.split(".")[0] for name in outer(tree)}, module
        assert builder not in inner(tree), module
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {name.split(".")[0] for node in top for name in imported(node)}
        assert ("tensorflow_datasets" in names) == (module == builder), module


def test_only_hosts_asks_which_process_this_is():
    asking = {"process_index", "process_count", "process_indices"}
    for module, tree in MODULES.items():
        words = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute | ast.Name)
        }
        words |= {name.split(".")[-1] for name in outer(tree)}
        assert bool(words & asking) == (module == "hosts"), module


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
    assert inner(top) <= {"cli", "cpu", "errors"}
    used = {outside.split(".")[0] for outside in outer(top)}
    assert used - {"absl", "ml_collections"} <= sys.stdlib_module_names


def test_configs_see_only_the_defaults():
    folder = ROOT.parent / "configs"
    files = sorted(folder.glob("*.py"))
    assert files
    for path in files:
        tree = ast.parse(path.read_text())
        assert inner(tree) == {"config"}, path
        assert {name.split(".")[0] for name in outer(tree)} <= {"ml_collections"}, path
