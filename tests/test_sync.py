"""The library, the unsolved copies and the README are what the notebooks say."""

import configparser
import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import transfer_course

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import notebooks  # noqa: E402

BY_HAND = {"__init__.py", "cli.py"}


def test_library_is_a_fresh_export(tmp_path):
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "nbs",
        tmp_path / "nbs",
        ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
    )
    (tmp_path / "transfer_course").mkdir()
    shutil.copy(ROOT / "transfer_course" / "__init__.py", tmp_path / "transfer_course")
    notebooks.export_library(tmp_path)
    ours = {p.relative_to(ROOT) for p in (ROOT / "transfer_course").rglob("*.py")}
    fresh = {
        p.relative_to(tmp_path) for p in (tmp_path / "transfer_course").rglob("*.py")
    }
    hand = {Path("transfer_course") / n for n in BY_HAND}
    assert ours - hand == fresh - hand, (
        "a module without a notebook, or a notebook that was not exported"
    )
    differ = [
        str(p)
        for p in sorted(fresh - hand)
        if not filecmp.cmp(ROOT / p, tmp_path / p, shallow=False)
    ]
    assert not differ, f"edited by hand or not exported: {differ}; run `make export`"


def test_unsolved_copies_are_fresh(tmp_path):
    made = notebooks.write_lessons(tmp_path)
    folder = ROOT / "transfer_course" / "lessons"
    assert {p.name for p in made} == {p.name for p in folder.glob("*.ipynb")}
    assert [
        p.name for p in made if p.read_bytes() != (folder / p.name).read_bytes()
    ] == []


def code_of(*sources):
    """What a learner gets of these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].outputs = [nbformat.v4.new_output("stream", text="42")]
    nb = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    return notebooks.unsolved(nb, "x.ipynb").cells


def test_unsolved_copies_hide_solutions_and_outputs():
    (out,) = code_of(
        "#| export\n"
        "def f(x):\n"
        "    # BEGIN SOLUTION\n"
        "    return 42\n"
        "    # END SOLUTION\n"
    )
    assert out.source == "def f(x):\n    ..." and not out.outputs
    (out,) = code_of('my_choice = "b"  # SOLUTION, for a reason\nother = 1')
    assert out.source == "my_choice = ...\nother = 1"


def test_a_repair_exercise_shows_the_broken_lines():
    source = (
        "def f(x):\n"
        "    # BEGIN SOLUTION\n"
        "    return x\n"
        "    # END SOLUTION\n"
        "    # BROKEN y = x\n"
        "    # BROKEN return y + 1\n"
    )
    (out,) = code_of(source)
    assert out.source == "def f(x):\n    y = x\n    return y + 1"


def test_graders_are_folded_and_wrong_answers_left_out():
    grader, after = code_of(
        "@exercise\ndef f(answer, hint):\n    'Yes.'",
        "#| hide\nmistakes('f', {})",
        "print(1)",
    )
    assert grader.metadata.jupyter.source_hidden and after.source == "print(1)"


def test_a_lesson_does_not_greet_a_learner_with_imports():
    """The cells that set a lesson up are tagged, and folded in the learner's copy."""
    for path in filter(notebooks.is_lesson, notebooks.notebooks()):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        setup = {c["id"] for c in cells if "setup" in c["metadata"].get("tags", [])}
        copy = ROOT / "transfer_course" / "lessons" / path.name
        first = []  # code before the second text, which begins the lesson
        for c in json.loads(copy.read_text(encoding="utf-8"))["cells"]:
            if c["cell_type"] == "markdown" and first:
                break
            if c["cell_type"] == "code":
                first.append(c)
        assert {c["id"] for c in first} <= setup, path.stem
        assert all(c["metadata"]["jupyter"]["source_hidden"] for c in first), path.stem


def test_learners_copies_open_in_colab():
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A lesson")],
        metadata={"kernelspec": {"name": "python3", "display_name": "x"}},
    )
    (first,) = notebooks.unsolved(nb, "07_data.ipynb").cells
    assert first.source.endswith("/blob/main/transfer_course/lessons/07_data.ipynb)")


def test_readme_is_the_index():
    text, pictures = notebooks.readme()
    assert text == (ROOT / "README.md").read_text(encoding="utf-8"), "run `make export`"
    for name, data in pictures.items():
        assert (ROOT / "nbs" / "images" / name).read_bytes() == data


def test_versions_agree():
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    assert transfer_course.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", notebooks.notebooks(), ids=lambda p: p.stem)
def test_notebooks_are_stored_with_outputs_and_clean(path):
    nb = nbformat.read(path, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    # A page about the course may hold nothing but text.
    assert not code or any(c.outputs for c in code), "run tools/notebooks.py on it"
    assert all(c.execution_count is None for c in code) and "widgets" not in nb.metadata
    errors = [o for c in code for o in c.outputs if o.output_type == "error"]
    assert not errors
    assert path.stat().st_size < 1_500_000


def test_no_path_of_a_machine_and_no_host_of_a_registry_is_stored():
    tracked = (
        subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
        ).stdout.split()
        or []
    )
    for name in tracked:
        path = ROOT / name
        if (
            path.suffix
            in {
                ".ipynb",
                ".py",
                ".md",
                ".json",
                ".ini",
                ".toml",
                ".txt",
                ".yml",
                ".cff",
            }
            and path.exists()
            and name != "tests/test_sync.py"
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            for bad in ("/work/main", "/root/", "/tmp/tmp"):
                assert bad not in text, f"{name} holds {bad}"
