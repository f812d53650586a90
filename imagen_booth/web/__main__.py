"""A page in the browser: upload photos, watch training, sample pictures.

    python -m imagen_booth.web
    python -m imagen_booth.web --root=runs --port=7860

It shows the runs below --root, and runs the same commands that you could run yourself,
one at a time; it shows each command. Training continues when the browser or this server
is closed. It needs pip install 'imagen_booth[web]'.

The page can be opened from this machine only. From elsewhere, use a tunnel (ssh -L
7860:127.0.0.1:7860 HOST), or --share or --host with a password.
"""

import os
import pathlib

from absl import flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_ROOT = cli.define_path("root", "runs", "folder of the runs, on a local disk")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
_PORT = flags.DEFINE_integer(
    "port", 7860, "port to listen on", lower_bound=1, upper_bound=65535
)
_SHARE = flags.DEFINE_bool("share", False, "also open a public link of gradio.live")
_PASSWORD = flags.DEFINE_string(
    "password",
    None,
    "password of the page; default is the variable IMAGEN_BOOTH_PASSWORD, which does "
    "not show in the list of processes",
)
_SETTING = flags.DEFINE_multi_string(
    "setting",
    [],
    "setting of every training, config.NAME=VALUE, or of one cascade alone, "
    "CASCADE:config.NAME=VALUE, such as if_m:config.weights.base=DIR",
)
_CLIP = cli.define_path(
    "clip", "", "folder of openai/clip-vit-base-patch32, to suggest class nouns"
)
LOCAL = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    password = _PASSWORD.value or os.environ.get("IMAGEN_BOOTH_PASSWORD", "")
    for flag, is_open in (
        ("--share", _SHARE.value),
        (f"--host={_HOST.value}", _HOST.value not in LOCAL),
    ):
        if is_open and not password:
            raise InputError(
                f"{flag} opens the page to others, who could start jobs here; give "
                "--password or set IMAGEN_BOOTH_PASSWORD"
            )
    if "://" in _ROOT.value:
        raise InputError(
            f"--root={_ROOT.value} is not on a local disk; give a local folder"
        )
    try:
        os.makedirs(_ROOT.value, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--root={_ROOT.value} is no folder and cannot be made: "
            f"{error.strerror}; give another folder"
        ) from error
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            "the page needs gradio; pip install 'imagen_booth[web]'"
        ) from error
    from imagen_booth.web import page
    from imagen_booth.web.booth import Booth

    page.serve(
        Booth(pathlib.Path(_ROOT.value), _settings(_SETTING.value), _CLIP.value),
        host=_HOST.value,
        port=_PORT.value,
        share=_SHARE.value,
        password=password,
        ready=lambda address: print(f"open {address}", flush=True),
    )


def _settings(given: list[str]) -> dict[str, tuple[str, ...]]:
    """The flags ``--config.NAME=VALUE`` by cascade; "" for every cascade."""
    found: dict[str, tuple[str, ...]] = {}
    for each in given:
        head, _, tail = each.partition("config.")
        if not tail or "=" not in tail or (head and not head.endswith(":")):
            raise InputError(
                f"--setting={each} is no setting; write config.NAME=VALUE, or "
                "CASCADE:config.NAME=VALUE"
            )
        cascade = head.removesuffix(":")
        found[cascade] = (*found.get(cascade, ()), f"--config.{tail}")
    return found


if __name__ == "__main__":
    cli.run(main, __doc__)
