"""The commands of imagen_booth under one name.

    imagen-booth COMMAND [FLAG ...]
    python -m imagen_booth COMMAND [FLAG ...]

Both are the same as python -m imagen_booth.COMMAND. Commands:
"""

import ast
import difflib
import pathlib
import runpy
import sys

USAGE = 2  # exit code of bad usage, as in every command


def commands() -> dict[str, str]:
    """First line of the help by command.

    Commands are the modules with a ``main``, and the packages with one in ``__main__``.
    """
    folder, found = pathlib.Path(__file__).parent, {}
    for path in (*folder.glob("[a-z]*.py"), *folder.glob("*/__main__.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body):
            name = path.stem if path.parent == folder else path.parent.name
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def main() -> None:
    """Runs the command that the first argument names.

    Raises:
        SystemExit: With the exit code of the command; 2 if there is no such command.
    """
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        lines = [f"    {each:12}{text}" for each, text in known.items()]
        print((__doc__ or "").strip(), "", *lines, sep="\n")
        print("\nimagen-booth COMMAND --help explains a command.")
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        print(f"{name!r} is not a command; {hint}", file=sys.stderr)
        sys.exit(USAGE)
    del sys.argv[1]
    runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
