"""The order of the house: a room imports from itself and the rooms above it, and theory needs NumPy only."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "transfer_course"
ROOMS = (
    "classroom",
    "theory",
    "engine",
    "vision",
    "insight",
    "adapt",
    "beyond",
    "practice",
)
MAY = {room: set(ROOMS[: i + 1]) for i, room in enumerate(ROOMS)} | {
    "classroom": {"classroom"},
    "theory": {"theory"},
    "engine": {"engine"},
}
NEEDS = {
    "classroom": {"numpy", "matplotlib", "ipywidgets", "IPython"},
    "theory": {"numpy"},
}  # and the standard library
MODULES = sorted(p for room in ROOMS for p in (LIBRARY / room).glob("*.py"))


def imported(source, room):
    """(packages from outside, rooms of this package) that a module of `room` imports, anywhere in it."""
    outside, rooms = set(), set()
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            above = {0: "", 1: f"transfer_course.{room}.", 2: "transfer_course."}[
                node.level
            ]
            names = (
                [above + (node.module or "")]
                if node.module or not above
                else [above + a.name for a in node.names]
            )
        for name in names:
            parts = name.split(".")
            if parts[0] != "transfer_course":
                outside.add(parts[0])
            elif len(parts) > 1:
                rooms.add(parts[1])
    return outside, rooms


def test_imports_are_found():
    source = "import numpy as np\nfrom ..vision import data\nfrom .losses import mse\ndef f():\n    from transfer_course.engine.errors import BadValue\n    import torch.nn\n"
    assert imported(source, "theory") == (
        {"numpy", "torch"},
        {"vision", "theory", "engine"},
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_a_room_imports_only_from_the_rooms_above(path):
    room = path.parent.name
    outside, rooms = imported(path.read_text(encoding="utf-8"), room)
    assert rooms <= MAY[room], f"{room} may not import {rooms - MAY[room]}"
    assert outside - set(sys.stdlib_module_names) <= NEEDS.get(room, outside)


def test_theory_loads_neither_framework_nor_pictures():
    modules = [
        f"transfer_course.theory.{p.stem}"
        for p in (LIBRARY / "theory").glob("*.py")
        if p.stem != "__init__"
    ]
    code = f"import importlib, json, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert len(modules) == 6 and not {
        "torch",
        "tensorflow",
        "keras",
        "matplotlib",
        "scipy",
        "sklearn",
    } & set(json.loads(done.stdout))
