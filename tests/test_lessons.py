"""Lessons as a learner has them: Run All of every unsolved copy, then the exercises.

The copies run outside the repository, on a machine that has all but this package.

Each lesson runs once. The copy and the solved lesson differ only in the exercises: the
copy has a stub where the lesson has a solution and a cell of wrong answers. So the copy
first runs to its end as a learner has it, and then the solutions, their checks and the
wrong answers run in the same kernel. The first half shows that no later cell depends on
an exercise, because nothing is solved yet. The second half is what a learner does who
comes back to the exercises after Run All. nbval runs the other notebooks.
"""

import ast
import json
import re
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import compare_outputs  # noqa: E402
import notebooks  # noqa: E402

COPIES = sorted((ROOT / "transfer_course" / "lessons").glob("*.ipynb"))
INSTALL = re.compile(r'"transfer_course\[([\w,]+)\] @ git\+[^"]+"')
CHECK = re.compile(r"^check\(", re.MULTILINE)
STRICT = 'import os\n\nos.environ["TRANSFER_COURSE_STRICT"] = "1"'


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """A kernel like Colab's.

    Torch, TensorFlow and Jupyter are there, this package is not. Returns (kernel name,
    its site-packages, a source tree).
    """
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (site / "there_before.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # editable installs in it are not followed
    argv = [
        str(folder / "venv" / "bin" / "python"),
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    spec = folder / "jupyter" / "kernels" / "colab"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "like Colab", "language": "python"})
    )
    source = folder / "source"
    shutil.copytree(
        ROOT / "transfer_course",
        source / "transfer_course",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.delenv("PYTHONPATH", raising=False)
        patch.delenv("TRANSFER_COURSE_STRICT", raising=False)
        patch.delenv("TRANSFER_COURSE_RECORD", raising=False)
        yield "colab", site, source


def said(cell):
    """All text that a cell printed."""
    return "".join(o.get("text", "") for o in cell.outputs)


def lesson_of(path):
    """The solved lesson of a learner's copy."""
    (lesson,) = (ROOT / "nbs").rglob(path.name)
    return nbformat.read(lesson, as_version=4)


def only_in_the_lesson(lesson, copy):
    """The code cells that the copy lacks or has as stubs, and the checks after them."""
    there = {c.id: c.source for c in copy.cells}
    found = []
    for cell in lesson.cells:
        source = notebooks.DIRECTIVE.sub("", cell.source).strip("\n")
        skipped = notebooks.NO_EVAL.search(cell.source)
        if cell.cell_type != "code" or not source or skipped:
            continue
        if there.get(cell.id) != source or CHECK.search(source):
            new = nbformat.v4.new_code_cell(source, metadata={"lesson_cell": cell.id})
            found.append(new)
    return found


def stale(lesson, cells):
    """What these cells printed and the lesson has stored otherwise.

    Cells that differ from the lesson's (stubs, the first cell) and cells that are
    tagged `varies` are left out.
    """
    stored = {c.id: c for c in lesson.cells if c.cell_type == "code"}
    found = []
    for cell in cells:
        old = stored.get(cell.metadata.get("lesson_cell", cell.id))
        if old is None or compare_outputs.varies(old):
            continue
        if cell.source == notebooks.DIRECTIVE.sub("", old.source).strip("\n"):
            lines = compare_outputs.differences(old.outputs, cell.outputs)
            found += [f"cell {old.id}", *lines] if lines else []
    return "\n".join(found)


def verdicts(cell):
    """The lines in which a check says what it found."""
    lines = [x for x in said(cell).splitlines() if re.match(r"[✓…✗] ", x)]
    assert len(lines) == len(CHECK.findall(cell.source)), said(cell)
    return lines


def whole(path, source):
    """The notebook to run; of its cells the copy's, and those of the lesson alone."""
    nb = nbformat.read(path, as_version=4)
    solutions = only_in_the_lesson(lesson_of(path), nb)
    copy = [c for c in nb.cells if c.cell_type == "code"]
    for c in copy:
        c.source = INSTALL.sub(rf'"{source}[\1]" --no-build-isolation', c.source)
    nb.cells = [*copy, nbformat.v4.new_code_cell(STRICT), *solutions]
    return nb, copy, solutions


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32", reason="the venv's paths are a Unix system's"
)
@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_run_all_reaches_the_last_cell_and_each_exercise_can_be_solved_then(
    path, tmp_path, colab, monkeypatch, request
):
    from nbclient import NotebookClient

    kernel, site, source = colab
    nb, copy, solutions = whole(path, source)
    monkeypatch.setenv("TRANSFER_COURSE_RECORD", str(tmp_path / "claims.json"))
    (tmp_path / "here").mkdir()
    where = {"metadata": {"path": tmp_path / "here"}}
    NotebookClient(nb, timeout=300, kernel_name=kernel, resources=where).execute()
    assert nb.cells[-1].execution_count == len(nb.cells), "a cell was not run"
    before = [c for c in copy if CHECK.search(c.source)]
    after = [c for c in solutions if CHECK.search(c.source)]
    assert len(before) == len(after)
    for cell in before:
        assert not any(x.startswith("✓") for x in verdicts(cell)), said(cell)
    for cell in after:
        assert all(x.startswith("✓") for x in verdicts(cell)), said(cell)
    as_expected(tmp_path / "claims.json")
    # `make test-newest` compares nothing: other releases word things differently.
    if not request.config.option.nbval_lax:
        unsolved = [c for c in copy if not CHECK.search(c.source)]
        assert not stale(lesson_of(path), [*unsolved, *solutions])
    new = {p.name.split("-")[0] for p in site.iterdir()}
    assert new - {"there_before.pth", "__pycache__"} == {"transfer_course"}, (
        "the first cell installs the package and replaces nothing"
    )


def as_expected(record):
    """Every claim came out as the lesson says; a learner would only be told."""
    claims = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for name, found in claims.items():
        assert found["outcome"] == found["expected"], (
            f"{name}: expected {found['expected']!r}, found {found['outcome']!r}"
        )


def test_no_lesson_leaves_its_outputs_to_nbval():
    """Lessons run here and not under nbval: nobody would compare a marked output."""
    for path in COPIES:
        for cell in lesson_of(path).cells:
            assert "NBVAL_" not in cell.source, path.name


@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_every_exercise_has_its_cells(path):
    """Each graded name is written by the learner, checked once.

    And has typical wrong answers in the lesson itself.
    """
    solved = "\n".join(c.source for c in lesson_of(path).cells if c.cell_type == "code")
    names = re.findall(r"^@exercise\ndef (\w+)\(", solved, re.MULTILINE)
    copy = "\n".join(
        c.source
        for c in nbformat.read(path, as_version=4).cells
        if c.cell_type == "code"
    )
    assert "SOLUTION" not in copy
    assert not re.search(r"^(mistakes|accepted)\(", copy, re.MULTILINE)
    for name in names:
        assert solved.count(f'check("{name}")') == 1, name
        for tried in ("mistakes", "accepted"):
            assert re.search(rf'^{tried}\(\s*"{name}",\s', solved, re.MULTILINE), (
                f"{path.stem}: {name} has no {tried}"
            )
        assert re.search(
            rf"^(def {name}\(|{name} = |class {name}\b)", copy, re.MULTILINE
        ), f"{name} has no cell for the learner"


def test_nothing_is_installed_where_the_package_is():
    """The first cell of a lesson is for Colab: it installs only if the import fails."""
    for path in COPIES:
        first = next(
            (
                c.source
                for c in nbformat.read(path, as_version=4).cells
                if "%pip" in c.source
            ),
            None,
        )
        assert first and first.startswith(
            "try:\n    import transfer_course\nexcept ImportError:\n    %pip install"
        ), path.name


def parsed(source):
    """A cell's syntax tree, without what only IPython understands."""
    return ast.parse(
        re.sub(r"^( *)(?:%%?|!)\w.*$", r"\1pass", source, flags=re.MULTILINE)
    )


def names_in(tree, context, inside=True):
    """Names that are read (`ast.Load`) or set (`ast.Store`) in a cell.

    Without those set inside its functions and comprehensions if not `inside`.
    """
    own = (
        ast.FunctionDef,
        ast.Lambda,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
        ast.GeneratorExp,
    )
    found, todo = set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and context is ast.Store:
            found.add(node.name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            found.add(node.id)
        if inside or not isinstance(node, own):
            todo += ast.iter_child_nodes(node)
    return found


def changed_later(cells):
    """(exercise, name) for every global that a grader or the learner's cell uses and
    that a later cell sets anew.
    """
    trees = [parsed(source) for source in cells]
    sets = [names_in(t, ast.Store, inside=False) for t in trees]
    found = []
    for i, source in enumerate(cells):
        for name in re.findall(r"^@exercise\ndef (\w+)\(", source, re.MULTILINE):
            uses = set()
            for t in trees[i : i + 2]:
                arguments = {
                    a.arg
                    for n in ast.walk(t)
                    if isinstance(n, ast.FunctionDef | ast.Lambda)
                    for a in n.args.args
                }
                uses |= names_in(t, ast.Load) - names_in(t, ast.Store) - arguments
            known = set().union(*sets[:i])
            found += [
                (name, other)
                for later in sets[i + 2 :]
                for other in uses & known & later - {name}
            ]
    return found


@pytest.mark.parametrize("path", COPIES, ids=lambda p: p.stem)
def test_an_exercise_can_still_be_done_after_run_all(path):
    """A learner who ran everything comes back to an exercise.

    What it uses is still what it was.
    """
    cells = nbformat.read(path, as_version=4).cells
    assert changed_later([c.source for c in cells if c.cell_type == "code"]) == []


def test_a_name_that_a_later_cell_takes_is_found():
    grader = "@exercise\ndef f(answer, hint):\n    'Yes.'\n    hint(answer(1) == x)"
    assert changed_later(["x = 1", grader, "def f(a):\n    return x", "x = 2"]) == [
        ("f", "x")
    ]
    assert (
        changed_later(
            [
                "x = 1",
                grader,
                "def f(a):\n    return x",
                "def g(x):\n    x = 2\n[x for x in range(3)]",
            ]
        )
        == []
    )


def settings(source):
    """The statements of a cell that set LIVE, ROOMY or EPOCHS."""
    known = {"LIVE", "ROOMY", "EPOCHS"}
    if not known & set(re.findall(r"\w+", source)):
        return []
    return [
        ast.unparse(node)
        for node in parsed(source).body
        if isinstance(node, ast.Assign)
        and known & {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}
    ]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("cpu", {"LIVE": 1, "EPOCHS": 2}), ("cuda", {"LIVE": 2, "EPOCHS": 8})],
)
def test_lessons_do_more_where_there_is_a_gpu(kind, wanted):
    """The cell in which a lesson looks at the device, told that there is one.

    11 reruns all its seeds then, 12 trains longer.
    """
    found = {}
    for path in COPIES:
        for cell in nbformat.read(path, as_version=4).cells:
            lines = settings(cell.source) if "torch_device" in cell.source else []
            if lines:
                names = {
                    "torch_device": lambda: type("device", (), {"type": kind}),
                    "SEEDS": (0, 1),
                }
                exec("\n".join(lines), names)
                found[path.stem] = {
                    k: len(names[k]) if k == "LIVE" else names[k]
                    for k in wanted
                    if k in names
                }
    assert found == {
        "11_features": {"LIVE": wanted["LIVE"]},
        "12_finetune_torch": {"LIVE": wanted["LIVE"]},
    }
