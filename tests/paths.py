"""Folders that tests read."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"
