"""How the code reads: short cells, short functions, modules of one job."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted(
    path
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if not re.match(r"\d\d[a-z]?_", path.name)
    and ".ipynb_checkpoints" not in path.parts
)
TRAINER = sorted((ROOT / "transfer_course" / "trainer").glob("*.py"))


def code_lines(source: str) -> list[str]:
    """Lines that count: neither blank nor directives of nbdev."""
    lines = source.splitlines()
    return [x for x in lines if x.strip() and not x.startswith("#|")]


def too_long(source: str) -> bool:
    """Over 20 lines, and more than one definition, table or loop."""
    if len(code_lines(source)) <= 20:
        return False
    body = ast.parse(re.sub(r"^( *)[%!].*$", r"\1pass", source, flags=re.M)).body
    return len(body) > 1


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_cell_of_a_reference_notebook_fits_the_eye(path):
    """At most 20 lines of code, unless it is one statement: a function, a class."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    long = [code_lines(s)[0] for s in sources if too_long(s)]
    assert long == []


def test_a_long_cell_is_found():
    function = "def f():\n" + "    x = 1\n" * 25
    assert not too_long(function) and too_long(function + "f()\n")
    assert too_long("x = 1\n" * 21) and not too_long("x = 1\n" * 20)


@pytest.mark.parametrize("path", TRAINER, ids=lambda p: p.stem)
def test_the_trainer_has_short_functions_and_modules(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
