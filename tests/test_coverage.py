"""nbs/ says where each idea, error and question of the source posts is taught.

The tables are coverage.csv, faults.csv and questions.csv, and what they name is there.
"""

import csv
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
IDS = {
    f"{kind}{i:02}"
    for kind, n in {
        "C": 51,
        "M": 25,
        "K": 27,
        "A": 20,
        "P": 25,
        "Q": 16,
        "T": 22,
    }.items()
    for i in range(1, n + 1)
}


def rows(name):
    """A CSV file of nbs/ as dictionaries."""
    with open(ROOT / "nbs" / name, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def lessons():
    """Name of every notebook of the course, and its cells by id."""
    return {
        p.stem: {c["id"]: c.source for c in nbformat.read(p, as_version=4).cells}
        for p in (ROOT / "nbs").rglob("*.ipynb")
    }


def test_every_idea_has_a_place():
    assert len(IDS) == 186
    assert {r["id"] for r in rows("coverage.csv")} == IDS
    assert {r["state"] for r in rows("coverage.csv")} <= {"done", "planned"}


def test_what_is_called_done_is_there():
    cells = lessons()
    for r in rows("coverage.csv") + rows("faults.csv"):
        if r.get("state") == "done" or r.get("how", "planned") != "planned":
            assert r["cell"] in cells.get(r["lesson"], ()), (
                f"{r['id']}: {r['lesson']} has no cell {r['cell']!r}"
            )


def test_what_is_planned_is_on_the_map_and_not_built_yet():
    """A planned lesson that exists has to say which cell it is."""
    cells, readme = lessons(), (ROOT / "README.md").read_text(encoding="utf-8")
    for r in rows("coverage.csv") + rows("faults.csv"):
        if "planned" in (r.get("state"), r.get("how")):
            assert not r["cell"] and r["lesson"] not in cells, r
            assert re.search(rf"\b{r['lesson'][:2]} [a-z]", readme), (
                f"the README does not know lesson {r['lesson']}"
            )


def test_every_question_is_answered():
    found = rows("questions.csv")
    assert {q["id"] for q in found} == {i for i in IDS if i[0] in "QT"}
    assert all(q["question"].strip() and q["answer"].endswith(".") for q in found)


def test_every_error_has_a_place_and_the_grave_ones_an_exercise():
    """There are 110 errors of the posts.

    One that stops a program or teaches something false has an exercise. Only mistakes
    about history are corrected in a table instead.
    """
    found, cells = rows("faults.csv"), lessons()
    assert {r["id"] for r in found} == {f"F{i:02}" for i in range(1, 111)}
    for r in found:
        kind, *names = r["how"].split()
        assert kind in {"exercise", "shown", "table", "planned"} and bool(names) == (
            kind == "exercise"
        ), r
        assert all(f'check("{n}")' in cells[r["lesson"]].values() for n in names), r
    judged = {r["id"] for r in found if r["how"].startswith("exercise")}
    assert {
        r["lesson"] for r in found if r["severity"] == "A" and r["id"] not in judged
    } == {"timeline"}
