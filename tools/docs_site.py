"""The documentation site; nothing is executed.

README, lessons with their stored outputs, the library's reference, claims and glossary.

python tools/docs_site.py [FOLDER]    FOLDER/html is the site (out/docs without one)
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from docs_reference import write_reference
from notebooks import DIRECTIVE, GRADER, ROOT, bin_dir, is_lesson, notebooks, settings

MARKS = re.compile(
    r"^[ \t]*# (?:(?:BEGIN|END) SOLUTION.*|BROKEN .*)\n?|[ \t]*# SOLUTION[^\n]*$",
    re.MULTILINE,
)


def coverage() -> list[dict]:
    """Where each idea of the source posts is taught: id, lesson, cell, state."""
    with open(ROOT / "nbs" / "coverage.csv", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def site_notebook(nb, named=frozenset()) -> nbformat.NotebookNode:
    """A notebook as the site shows it.

    Directives and hidden cells are gone; solutions and graders are folded; the `named`
    cells can be linked to.
    """
    kept = []
    for c in nb.cells:
        if (
            re.search(r"^#\|\s*hide\s*$", c.source, re.MULTILINE)
            or not DIRECTIVE.sub("", c.source).strip()
        ):
            continue
        tags = set(c.metadata.get("tags", []))
        if re.search(r"^#\|\s*echo:\s*false", c.source, re.MULTILINE):
            tags.add("remove-input")
        if c.cell_type == "code":
            solved, grader = MARKS.search(c.source), GRADER.search(c.source)
            if solved or grader:
                tags.add("hide-input")
                c.metadata["mystnb"] = {
                    "code_prompt_show": "Show a solution"
                    if solved
                    else "Show what is checked"
                }
            elif "setup" in tags:
                tags.add("hide-input")
                c.metadata["mystnb"] = {"code_prompt_show": "Show the set-up"}
            c.source = MARKS.sub("", c.source)
        c.source = DIRECTIVE.sub("", c.source).strip("\n")
        if tags:
            c.metadata["tags"] = sorted(tags)
        if c["id"] in named:
            kept.append(nbformat.v4.new_markdown_cell(f"(cell-{c['id']})="))
        kept.append(c)
    nb.cells = kept
    return nb


def alt_texts(nb) -> dict[str, str]:
    """The words of a notebook's images by the sha256 of the PNG.

    myst-nb names the files by that sum.
    """
    out = {}
    for c in nb.cells:
        for o in c.get("outputs", []):
            if "image/png" in o.get("data", {}):
                name = hashlib.sha256(
                    base64.b64decode(o["data"]["image/png"])
                ).hexdigest()
                out[name] = o.metadata.get("image/png", {}).get("alt", "")
    return out


def _cell(value) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, r)) + " |" for r in lines)


def claims_page(path: Path) -> str:
    """What the lessons claim, as it came out: from the records that `claim` writes."""
    rows = []
    for name, r in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
        interval = f"{r['low']:+.3f} to {r['high']:+.3f}"
        rows.append(
            [
                name,
                r["about"],
                f"above {r['at_least']:g}",
                f"{r['mean']:+.3f}",
                interval,
                r["expected"],
                f"**{r['outcome']}**",
            ]
        )
    text = (
        "# Claims\n"
        "\n"
        "Each lesson states what it expects to see as a difference, and measures that "
        "difference over seeds and identities with a 99 % interval. A claim *holds* if "
        "the whole interval is above the claimed value, and it *fails* if the whole "
        "interval is below. Otherwise it is *unclear*: our data cannot tell.\n"
        "\n"
    )
    return (
        text
        + table(
            [
                "claim",
                "what is measured",
                "claimed",
                "difference",
                "interval",
                "expected",
                "outcome",
            ],
            rows,
        )
        + "\n"
    )


def glossary_page(path: Path) -> str:
    """The glossary as a table."""
    with open(path, encoding="utf-8", newline="") as f:
        rows = [[f"**{r['term']}**", r["zh"], r["meaning"]] for r in csv.DictReader(f)]
    return "# Glossary\n\n" + table(["term", "中文", "meaning"], rows) + "\n"


def questions_page(path: Path, taught: list[dict]) -> str:
    """The posts' questions, each with a short answer.

    Beside it stands the cell that measures it, or the lesson that will.
    """
    rows = []
    with open(path, encoding="utf-8", newline="") as f:
        for q in csv.DictReader(f):
            there = [r for r in taught if r["id"] == q["id"]]
            links = [
                f"[{r['lesson'].replace('_', ' ')}](#cell-{r['cell']})"
                if r["cell"]
                else f"{r['lesson'].replace('_', ' ')} (to come)"
                for r in there
            ]
            rows.append([q["question"], q["answer"], ", ".join(links)])
    text = (
        "# Questions\n"
        "\n"
        "These are the questions that five popular posts on transfer learning ask, and "
        "the developments they hope for. Each short answer links to the cell that "
        "measures it, or names the lesson that will.\n"
        "\n"
    )
    return text + table(["question", "short answer", "where"], rows) + "\n"


def absolute_links(text: str, url: str, source: Path) -> str:
    """Links to files that are not pages of the site lead to the repository."""

    def mend(found):
        target = found[2]
        there = (source / target.partition("#")[0]).exists()
        return (
            found[0]
            if there or re.match(r"[a-z]+:|#", target)
            else f"{found[1]}({url}/blob/main/{target})"
        )

    return re.sub(r"(\])\(([^)\s]+)\)", mend, text)


def title(nb) -> str:
    """A notebook's first heading."""
    return next(
        line[2:].strip()
        for c in nb.cells
        if c.cell_type == "markdown"
        for line in c.source.splitlines()
        if line.startswith("# ")
    )


def toctree(caption: str, entries: list[str]) -> str:
    """A part of the menu."""
    listed = "\n".join(entries)
    return (
        f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"
        if entries
        else ""
    )


def write_source(source: Path) -> None:
    """The folder that Sphinx reads."""
    cfg, alts, taught = settings(), {}, coverage()
    pages = {"lesson": [], "about": [], "made": []}
    for path in sorted(
        notebooks(), key=lambda p: p.name if is_lesson(p) else p.as_posix()
    ):
        if path.name == "index.ipynb":
            continue
        nb = nbformat.read(path, as_version=4)
        alts |= alt_texts(nb)
        to = source / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(
            site_notebook(nb, {r["cell"] for r in taught if r["lesson"] == path.stem}),
            to,
        )
        page = path.relative_to(ROOT).with_suffix("").as_posix()
        if is_lesson(path):
            pages["lesson"].append(f"{path.name[:2]} {title(nb)} <{page}>")
        else:
            pages["about" if path.parent.name == "about" else "made"].append(page)
    shutil.copytree(ROOT / "nbs" / "images", source / "nbs" / "images")
    shutil.copytree(ROOT / "tools" / "docs_static", source / "_static")
    shutil.copy(ROOT / "tools" / "docs_conf.py", source / "conf.py")
    about = {
        "name": cfg["lib_name"],
        "author": cfg["author"],
        "version": cfg["version"],
        "alt": alts,
    }
    (source / "about.json").write_text(json.dumps(about), encoding="utf-8")
    write_reference(ROOT, source / "reference")
    more, assets = [], ROOT / "transfer_course" / "assets"
    for name, file, page in (
        ("claims", "records/claims.json", claims_page),
        ("glossary", "glossary.csv", glossary_page),
    ):
        if (assets / file).is_file():
            (source / f"{name}.md").write_text(page(assets / file), encoding="utf-8")
            more.append(name)
    (source / "questions.md").write_text(
        questions_page(ROOT / "nbs" / "questions.csv", taught), encoding="utf-8"
    )
    text = absolute_links(
        (ROOT / "README.md").read_text(encoding="utf-8"), cfg["git_url"], source
    )
    text += toctree("Lessons", pages["lesson"]) + toctree("About", pages["about"])
    text += toctree("Library", ["reference/index"])
    text += toctree("Results and words", [*more, "questions"])
    text += toctree("How the library is made", pages["made"])
    (source / "index.md").write_text(text, encoding="utf-8")


def docs(out: Path = ROOT / "out" / "docs") -> Path:
    """Build the site; a warning of Sphinx is an error.

    Returns the folder with index.html.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "src").mkdir(parents=True)
    write_source(out / "src")
    build(out)
    return out / "html"


def build(out: Path) -> None:
    """Run Sphinx from OUT/src to OUT/html."""
    command = [
        bin_dir() / "sphinx-build",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        out / "doctrees",
        out / "src",
        out / "html",
    ]
    subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    print(f"open {docs(*(Path(a).resolve() for a in sys.argv[1:2])) / 'index.html'}")
