"""The order of the house.

A room imports from itself and the rooms above it, theory needs NumPy only, and no
modules import each other in a circle.
"""

import ast
import graphlib
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
    "trainer",
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
# And the standard library.
NEEDS = {
    "classroom": {"numpy", "matplotlib", "ipywidgets", "IPython"},
    "theory": {"numpy"},
}
MODULES = sorted(p for room in ROOMS for p in (LIBRARY / room).glob("*.py"))


def imports(source, package):
    """Dotted names that a module of `package` imports anywhere in it.

    `from a import b` gives `a.b`, and so does `from . import b` within the package a.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, two dots are the package around it.
            parts = package.split(".")
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            module = ".".join([*above, node.module] if node.module else above)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported(source, room):
    """(outside packages, rooms of this package) that a module of `room` imports."""
    outside, rooms = set(), set()
    for name in imports(source, f"transfer_course.{room}"):
        first, *rest = name.split(".")
        if first != "transfer_course":
            outside.add(first)
        elif rest:
            rooms.add(rest[0])
    return outside, rooms


def import_graph(folder, package=""):
    """Each module below `folder` with the modules beside it that it imports.

    Imports inside functions count. `package` is the name of the folder as a package;
    without one, its modules import each other by their bare names.
    """
    paths = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(part for part in (package, *parts) if part)
        paths[name.removesuffix(".__init__")] = path
    graph = {}
    for name, path in paths.items():
        home = name if path.stem == "__init__" else name.rpartition(".")[0]
        found = set()
        for target in imports(path.read_text(encoding="utf-8"), home):
            # The last part of the name may be a function of the module before it.
            known = [n for n in (target, target.rpartition(".")[0]) if n in paths]
            found.update(known[:1])
        graph[name] = found
    return graph


def circle(graph):
    """One circle of imports, as the list of its modules; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_imports_are_found():
    source = (
        "import numpy as np\n"
        "from ..vision import data\n"
        "from .losses import mse\n"
        "def f():\n"
        "    from transfer_course.engine.errors import BadValue\n"
        "    import torch.nn\n"
    )
    assert imported(source, "theory") == (
        {"numpy", "torch"},
        {"vision", "theory", "engine"},
    )


@pytest.mark.parametrize(
    "line",
    [
        "import house.room.late",
        "from house.room import late",
        "from house.room.late import f",
        "from . import late",
        "from .late import f",
        "from ..room.late import f",
    ],
)
def test_a_circle_is_found_inside_functions_too(tmp_path, line):
    room = tmp_path / "room"
    room.mkdir()
    (tmp_path / "__init__.py").write_text("")
    (room / "__init__.py").write_text("")
    (room / "early.py").write_text("import os\nfrom house import room\n")
    (room / "late.py").write_text("def f():\n    from .early import g\n")
    assert circle(import_graph(tmp_path, "house")) == []
    (room / "early.py").write_text(f"def g():\n    {line}\n")
    found = circle(import_graph(tmp_path, "house"))
    assert set(found) == {"house.room.early", "house.room.late"}


def test_the_library_has_no_circle_of_imports():
    graph = import_graph(LIBRARY, "transfer_course")
    assert "transfer_course.engine.frameworks" in graph["transfer_course"]
    found = circle(graph)
    assert not found, " imports ".join(reversed(found))


def test_the_tools_have_no_circle_of_imports():
    graph = import_graph(LIBRARY.parent / "tools")
    assert "notebooks" in graph["docs_site"]
    found = circle(graph)
    assert not found, " imports ".join(reversed(found))


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
    code = (
        "import importlib, json, sys\n"
        f"for m in {modules!r}: importlib.import_module(m)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "tensorflow", "keras", "matplotlib", "scipy", "sklearn"}
    assert len(modules) == 7
    assert not heavy & set(json.loads(done.stdout))
