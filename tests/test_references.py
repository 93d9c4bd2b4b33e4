"""nbs/references.csv is a list whose entries can be opened.

The page drawn from it holds all of them.
"""

import csv
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"
COLUMNS = ["year", "authors", "title", "venue", "id", "what", "timeline"]
DOI = re.compile(r"doi:10\.\d{4,9}/[^\s\"<>,]+")
ARXIV = re.compile(r"arXiv:(\d{2})(0[1-9]|1[0-2])\.(\d{4,5})")
INITIALS = r"(?:[A-ZŁ]\.(?:-[A-Z]\.)?(?: |$))"
AUTHOR = re.compile(rf"{INITIALS}+(?:(?:van|der|de|den) )*[A-ZŁ][\w'-]+(?:-[A-Z]\w+)?")

with open(NBS / "references.csv", encoding="utf-8", newline="") as f:
    READER = csv.DictReader(f)
    ROWS = list(READER)

each = pytest.mark.parametrize(
    "row", ROWS, ids=[f"{r['year']}-{r['id']}" for r in ROWS]
)


def problems(row):
    """What is wrong with a row, in words; nothing if it is well formed."""
    found = [
        f"{k} is empty or has stray spaces"
        for k in COLUMNS
        if k != "timeline" and (not row[k] or row[k] != " ".join(row[k].split()))
    ]
    if not re.fullmatch(r"(19|20)\d\d", row["year"]):
        found.append("the year is no year")
    arxiv = ARXIV.fullmatch(row["id"])
    if arxiv:
        # In print within a year of the preprint, never before it; five digits since
        # 2015.
        if not 0 <= int(row["year"]) - 2000 - int(arxiv[1]) <= 1:
            found.append("the arXiv number is of another year")
        if len(arxiv[3]) != (5 if int(arxiv[1]) >= 15 else 4):
            found.append("the arXiv number has a digit too many or too few")
    elif not DOI.fullmatch(row["id"]) or row["id"][-1] in ".,;)":
        found.append("neither a DOI nor an arXiv number")
    for year in re.findall(r"\b(?:19|20)\d\d\b(?!-|\))", row["venue"].split(" (")[0]):
        if year != row["year"] and not re.search(rf"-{year}", row["venue"]):
            found.append(f"the venue is of {year}")
    names = re.sub(r" \(editors\)$", "", row["authors"])
    names = re.sub(r" and [1-9]\d* others$", "", names).split(", ")
    found += [
        f"{n!r} is not initials and a surname" for n in names if not AUTHOR.fullmatch(n)
    ]
    if len(set(names)) != len(names):
        found.append("an author twice")
    if not re.fullmatch(r"[A-Z].{20,160}\.", row["what"]) or ". " in row["what"]:
        found.append("what it did is not one plain sentence")
    if row["timeline"] and not re.fullmatch(r"(19|20)\d\d \S.{0,40}", row["timeline"]):
        found.append("a station is a year and a few words")
    elif row["timeline"] and row["timeline"][:4] > row["year"]:
        found.append("the station is later than the work")
    return found


def test_the_columns_and_the_size_are_as_agreed():
    assert READER.fieldnames == COLUMNS
    assert 30 <= len(ROWS) <= 120


@each
def test_an_entry_is_well_formed(row):
    assert not problems(row)


GOOD = {
    "year": "2014",
    "authors": "J. Yosinski, J.-Y. Zhu, L. van der Maaten",
    "title": "T",
    "venue": "NIPS 27, 3320-3328",
    "id": "arXiv:1411.1792",
    "what": "Did this and that with a network.",
    "timeline": "2014 a station",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "1411.1792"},
        {"id": "arXiv:1413.1792"},
        {"id": "arXiv:1411.01792"},
        {"id": "arXiv:1511.01792"},
        {"id": "arXiv:1211.1792"},
        {"id": "doi:https://doi.org/10.1038/323533a0"},
        {"id": "doi:10.1038/323533a0."},
        {"year": "214"},
        {"venue": "CVPR 2016"},
        {"venue": " NIPS 27"},
        {"title": ""},
        {"authors": "J. Yosinski, et al."},
        {"authors": "J. Yosinski, J."},
        {"authors": "Yosinski"},
        {"authors": "J. Yosinski, J. Yosinski"},
        {"authors": "J. Yosinski and others"},
        {"what": "Did this"},
        {"what": "It did this and that. And it did more."},
        {"timeline": "a station"},
        {"timeline": "2015 a station"},
    ],
    ids=str,
)
def test_a_spoilt_entry_is_noticed(wrong):
    assert not problems(GOOD)
    assert problems(GOOD | wrong)


def test_the_list_is_sorted_by_year_and_nothing_is_there_twice():
    years = [int(r["year"]) for r in ROWS]
    assert years == sorted(years)
    for key in ("id", "title"):
        assert [
            k for k, n in Counter(r[key].casefold() for r in ROWS).items() if n > 1
        ] == []


def test_the_stations_of_the_history_are_there():
    told = {r["timeline"][:4] for r in ROWS}
    assert {
        "1951",
        "1976",
        "1986",
        "1997",
        "1998",
        "2006",
        "2009",
        "2010",
        "2012",
        "2014",
        "2016",
    } <= told


def test_the_page_shows_every_entry_with_its_link():
    cells = nbformat.read(NBS / "6_practice" / "timeline.ipynb", as_version=4).cells
    tables = [
        o.data["text/html"]
        for c in cells
        for o in c.get("outputs", [])
        if "text/html" in o.get("data", {})
    ]
    line, whole = tables
    for r in ROWS:
        kind, name = r["id"].split(":", 1)
        place = "https://doi.org/" if kind == "doi" else "https://arxiv.org/abs/"
        href = f'href="{place}{name}"'
        assert href in whole and f">{r['id']}<" in whole, (
            f"run the notebook: {r['id']} is missing"
        )
        assert (href in line) == bool(r["timeline"])
    assert whole.count("<tr>") == len(ROWS) + 1
