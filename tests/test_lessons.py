"""Lessons as a learner has them: Run All of every unsolved copy reaches the last cell, and every exercise says that it is not solved yet."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIES = sorted((ROOT / "transfer_course" / "lessons").glob("*.ipynb"))
CHECK = re.compile(r"^check\(", re.MULTILINE)


def said(cell):
    """All text that a cell printed."""
    return "".join(o.get("text", "") for o in cell.outputs)


@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_run_all_reaches_the_last_cell_and_nothing_is_solved(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.delenv("TRANSFER_COURSE_STRICT", raising=False)
    monkeypatch.delenv("TRANSFER_COURSE_RECORD", raising=False)
    copy = shutil.copy(path, tmp_path)
    nb = nbformat.read(copy, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert code[-1].execution_count == len(code), "a cell was not run"
    for cell in code:
        if CHECK.search(cell.source):
            lines = [x for x in said(cell).splitlines() if re.match(r"[✓…✗] ", x)]
            assert len(lines) == len(CHECK.findall(cell.source)) and not any(x.startswith("✓") for x in lines), said(cell)


@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_every_exercise_has_its_cells(path):
    """Each graded name is written by the learner, checked once, and has typical wrong answers in the lesson itself."""
    (lesson,) = (ROOT / "nbs").rglob(path.name)
    solved = "\n".join(c.source for c in nbformat.read(lesson, as_version=4).cells if c.cell_type == "code")
    names = re.findall(r"^@exercise\ndef (\w+)\(", solved, re.MULTILINE)
    copy = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    assert "SOLUTION" not in copy and "mistakes(" not in copy.replace("exercise, mistakes", "")
    for name in names:
        assert solved.count(f'check("{name}")') == 1 and re.search(rf'^mistakes\("{name}", ', solved, re.MULTILINE), name
        assert re.search(rf"^(def {name}\(|{name} = |class {name}\b)", copy, re.MULTILINE), f"{name} has no cell for the learner"


def test_nothing_is_installed_where_the_package_is():
    """The first cell of a lesson is for Colab: it installs only if the import fails."""
    for path in COPIES:
        first = next((c.source for c in nbformat.read(path, as_version=4).cells if "%pip" in c.source), None)
        assert first is None or first.startswith("try: import transfer_course\nexcept ImportError:"), path.name
