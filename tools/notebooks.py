"""What is done to notebooks outside JupyterLab.

python tools/notebooks.py run [NOTEBOOK…]    execute, store outputs, clean; all of nbs/
                                             without arguments
python tools/notebooks.py export             library, unsolved copies and README.md
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NO_EVAL = re.compile(r"^#\|\s*eval\s*:?\s*false\s*$", re.MULTILINE)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
SOLUTION = re.compile(
    r"^([ \t]*)# BEGIN SOLUTION.*?# END SOLUTION[^\n]*$", re.MULTILINE | re.DOTALL
)
BRACKETS = r"[\[({]\n(?:[ \t].*\n)*[\])}]"
SOLVED_VALUE = re.compile(
    rf"^([ \t]*\w[\w, ]*=) (?:.*|{BRACKETS}) *# SOLUTION.*$", re.MULTILINE
)
BROKEN = re.compile(r"^([ \t]*)# BROKEN ?", re.MULTILINE)
MISTAKES = re.compile(r"^(mistakes|accepted)\(", re.MULTILINE)
GRADER = re.compile(r"^@exercise\b", re.MULTILINE)


def notebooks(folder: Path = ROOT / "nbs") -> list[Path]:
    """All notebooks of the course, in reading order."""
    return sorted(
        p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )


def is_lesson(path: Path) -> bool:
    """Lessons have a number; reference notebooks don't."""
    return re.match(r"\d\d[a-z]?_", path.name) is not None


def bin_dir() -> Path:
    """Where this interpreter's commands stand."""
    return Path(sys.executable).parent


def run(paths: list[Path]) -> None:
    """Execute each notebook in its own folder and store its outputs.

    Stops at the first error.
    """
    from nbclient import NotebookClient

    # Learners' runs record nothing; ours keep what each claim found, and exercises have
    # to be solved.
    os.environ.setdefault(
        "TRANSFER_COURSE_RECORD",
        str(ROOT / "transfer_course" / "assets" / "records" / "claims.json"),
    )
    os.environ["TRANSFER_COURSE_STRICT"] = "1"
    # PyTorch warns where there is no GPU, with a path of the machine.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:CUDA initialization")
    for path in paths:
        start = time.perf_counter()
        nb = nbformat.read(path, as_version=4)
        kept = {
            c["id"]: c.source
            for c in nb.cells
            if c.cell_type == "code" and NO_EVAL.search(c.source)
        }
        for c in nb.cells:
            if c["id"] in kept:
                c.source = "pass"
        NotebookClient(
            nb,
            timeout=600,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": path.parent}},
        ).execute()
        for c in nb.cells:
            if c["id"] in kept:
                c.source, c.outputs = kept[c["id"]], []
            # A widget that no kernel stands behind is an empty box.
            for o in c.get("outputs", []):
                o.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        nb.metadata.pop("widgets", None)
        nbformat.write(nb, path)
        subprocess.run(
            [bin_dir() / "nbdev-clean", "--fname", path], check=True, cwd=ROOT
        )
        print(
            f"{path.relative_to(ROOT)}  {time.perf_counter() - start:.0f} s", flush=True
        )


def export_library(root: Path = ROOT) -> None:
    """Write the library from the notebooks, formatted."""
    # IN_TEST=1 makes nbdev-export do nothing.
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run([bin_dir() / "nbdev-export"], check=True, cwd=root, env=env)
    # ruff leaves the modules out when it looks at the project, so each is named.
    modules = sorted((root / "transfer_course").glob("*/*.py"))
    command = [bin_dir() / "ruff", "format", "--quiet", *modules]
    subprocess.run(command, check=True, cwd=root)


def stub(source: str) -> str:
    """A code cell without its solution.

    In its place stand `...`, or the broken lines that are to be mended.
    """
    if BROKEN.search(source):
        return BROKEN.sub(
            r"\1", re.sub(SOLUTION.pattern + r"\n?", "", source, flags=SOLUTION.flags)
        )
    return SOLVED_VALUE.sub(r"\1 ...", SOLUTION.sub(r"\1...", source))


def settings() -> dict:
    """What settings.ini says of the project."""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def colab_link(name: str) -> str:
    """A link that opens the learner's copy in Colab.

    A badge would be an image from another host in every lesson.
    """
    repository = settings()["git_url"].rstrip("/").removeprefix("https://github.com/")
    return (
        "[Open in Colab](https://colab.research.google.com/github/"
        f"{repository}/blob/main/transfer_course/lessons/{name})"
    )


def unsolved(nb, name: str) -> nbformat.NotebookNode:
    """A lesson as a learner gets it.

    No solutions, no outputs, no nbdev directives; set-up cells and graders are folded
    away.
    """
    cells = []
    for c in nb.cells:
        source = DIRECTIVE.sub("", c.source).strip("\n")
        if not source.strip() or (c.cell_type == "code" and MISTAKES.search(source)):
            continue
        if c.cell_type == "markdown":
            if source.startswith("# "):
                source += "\n\n" + colab_link(name)
            new = nbformat.v4.new_markdown_cell(source)
        else:
            new = nbformat.v4.new_code_cell(stub(source))
            if GRADER.search(source) or "setup" in c.metadata.get("tags", []):
                new.metadata["jupyter"] = {"source_hidden": True}
        new["id"] = c["id"]
        cells.append(new)
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": dict(nb.metadata.kernelspec)}
    )


def write_lessons(to: Path = ROOT / "transfer_course" / "lessons") -> list[Path]:
    """The unsolved copies; a copy whose lesson is gone is removed."""
    to.mkdir(parents=True, exist_ok=True)
    made = []
    for path in filter(is_lesson, notebooks()):
        nb = unsolved(nbformat.read(path, as_version=4), path.name)
        (to / path.name).write_text(
            json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n",
            encoding="utf-8",
        )
        made.append(to / path.name)
    for stale in set(to.glob("*.ipynb")) - set(made):
        stale.unlink()
    return made


def readme() -> tuple[str, dict[str, bytes]]:
    """README.md from the stored cells of nbs/index.ipynb, and its pictures."""
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if "#| hide" not in c.source]
    pictures = {}
    for c in nb.cells:
        silent = "#| echo: false" in c.source
        c.source = DIRECTIVE.sub("", c.source).strip("\n")
        for o in c.get("outputs", []):
            if "image/png" in o.get("data", {}):
                name = f"readme_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(o["data"]["image/png"])
                alt = o.get("metadata", {}).get("image/png", {}).get("alt", "")
                o["data"] = {"text/markdown": f"![{alt}](nbs/images/{name})"}
        if silent:
            c.metadata["tags"] = ["no-source"]
    exporter = MarkdownExporter()
    exporter.register_preprocessor(
        TagRemovePreprocessor(remove_input_tags={"no-source"}, enabled=True),
        enabled=True,
    )
    text, _ = exporter.from_notebook_node(nb)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", pictures


def write_readme() -> None:
    """README.md and nbs/images/ from the index."""
    text, pictures = readme()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    folder = ROOT / "nbs" / "images"
    folder.mkdir(exist_ok=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)


def main() -> None:
    """Dispatch on the first argument."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "export"])
    parser.add_argument("paths", nargs="*", type=Path)
    args = parser.parse_args()
    if args.what == "run":
        run([p.resolve() for p in args.paths] or notebooks())
    else:
        export_library()
        write_lessons()
        write_readme()


if __name__ == "__main__":
    main()
