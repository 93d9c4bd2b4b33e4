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
    if ".ipynb_checkpoints" not in path.parts
)
LESSONS = [path for path in BOOKS if re.match(r"\d\d[a-z]?_", path.name)]
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
def test_a_cell_of_a_notebook_fits_the_eye(path):
    """At most 20 lines of code, unless it is one statement: a function, a class.

    Folded cells of a lesson, which import or test its graders, may be longer.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    if path in LESSONS:
        code = [c for c in code if "setup" not in c["metadata"].get("tags", ())]
        code = [c for c in code if not c["source"] or "#| hide" not in c["source"][0]]
    sources = ["".join(c["source"]) for c in code]
    assert [code_lines(s)[0] for s in sources if too_long(s)] == []


def words(markdown: str) -> int:
    """Words of prose: no headings, tables, formulas, code or lists of papers."""
    text = re.sub(r"```.*?```", " ", markdown, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", " ", text, flags=re.S)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r" \1 ", text, flags=re.S)
    other = r"\s*(#|\||- [A-Z][a-z]+ et al|- .*arXiv)"
    lines = [x for x in text.splitlines() if not re.match(other, x)]
    return len(" ".join(lines).split())


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_is_short_enough_to_finish(path):
    """At most 45 code cells and 900 to 1,600 words of prose."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert sum(c["cell_type"] == "code" for c in cells) <= 45
    prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    assert 900 <= sum(map(words, prose)) <= 1600


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
