"""What people meet, in a real browser.

The site read from one machine only, and a lesson in JupyterLab: run, move, fail, pass.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import browser as chrome
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import docs_site  # noqa: E402
import notebooks  # noqa: E402

SAYS = r"right: |not quite: |not yet: "
LESSONS = ["00_start", "11_features", "12_finetune_torch"]
BUNDLED = ROOT / "transfer_course" / "lessons"
SOLVED = {p.stem: p for p in notebooks.notebooks()}
MATH = "\n\n## A formula\n\nInline $x^2$ and\n\n$$\\frac{1}{N}\\sum_i \\ell_i$$\n"


@pytest.fixture(scope="module")
def window():
    """Chromium; its tests are skipped where there is none."""
    if chrome.missing():
        pytest.skip(chrome.missing())
    with chrome.browser() as b:
        yield b


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    docs_site.write_source(out / "src")
    page = out / "src" / "index.md"
    page.write_text(page.read_text(encoding="utf-8") + MATH, encoding="utf-8")
    docs_site.build(out)
    with chrome.serve(out / "html") as address:
        yield address, out / "html"


def test_pages_open_and_ask_nobody_else(site, window):
    address, _ = site
    with chrome.watching(window) as watched:
        page = watched.page
        for name, holds in {
            "index.html": "Your own images",
            "nbs/2_vision/11_features.html": "linear_probe",
            "reference/index.html": "Every public name",
            "reference/transfer_course.trainer.recipe.html": "peak learning rate",
        }.items():
            assert page.goto(f"{address}/{name}").status == 200
            assert holds in page.inner_text("article"), name
        page.goto(f"{address}/reference/index.html")
        page.locator("article").get_by_role(
            "link", name="fine_tune", exact=True
        ).click()
        page.locator("dt[id='transfer_course.trainer.run.fine_tune']").wait_for()
        watched.clean()


def test_search_finds_fine_tuning(site, window):
    address, _ = site
    with chrome.watching(window) as watched:
        watched.page.goto(f"{address}/index.html")
        field = watched.page.locator(".sidebar-search").first
        field.fill("fine-tuning")
        field.press("Enter")
        links = "#search-results li a[href*='12_finetune_torch']"
        watched.page.locator(links).first.wait_for(timeout=30_000)
        watched.clean()


def test_formulas_are_drawn(site, window):
    address, _ = site
    with chrome.watching(window) as watched:
        watched.page.goto(f"{address}/index.html")
        watched.page.locator("mjx-container svg").nth(1).wait_for(
            state="attached", timeout=30_000
        )
        assert watched.page.locator("mjx-container svg").count() == 2
        assert watched.page.locator("mjx-container [data-mml-node=merror]").count() == 0
        watched.clean()


def test_every_picture_has_words_and_every_link_inside_leads_somewhere(site):
    _, html = site
    pictures, asked = 0, set()
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<img\b[^>]*>", text):
            words = re.search(r'\balt="([^"]*)"', tag)
            assert words and len(words[1]) > 15, f"{page.name}: {tag[:200]}"
            pictures += 1
        asked |= set(
            re.findall(
                r'(?:<script[^>]*\bsrc|<link[^>]*\bhref|<img[^>]*\bsrc|<iframe[^>]*\bsrc)="((?:https?:)?//[^"]+)"',
                text,
            )
        )
        for target in re.findall(r'<a\b[^>]*\bhref="([^"#?]+)', text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), (
                    f"{page.relative_to(html)} leads to {target}"
                )
    assert pictures >= 10 and not asked


def test_questions_lead_to_their_cells(site):
    _, html = site
    links = re.findall(
        r'href="([^"#]+)#(cell-[^"]+)"',
        (html / "questions.html").read_text(encoding="utf-8"),
    )
    assert len(links) >= 8
    for page, cell in links:
        assert f'id="{cell}"' in (html / page).read_text(encoding="utf-8"), (
            f"{page} has no {cell}"
        )


# The site's parts, without a browser


def test_reference_shows_names_signatures_docstrings_and_comments(tmp_path):
    import docs_reference

    package = tmp_path / "transfer_course"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "thing.py").write_text(
        '"A thing."\n__all__ = ["f", "Made", "SIZE"]\nSIZE = 3\n\n'
        "def f(x: int, # how many\n      y=(1, 2)): # a pair\n"
        '    "Says `so`."\n    return x # no parameter\n\n'
        'def _hidden(): "No."\n\n'
        '@dataclass\nclass Made:\n    "A record."\n'
        "    a: int = 1  # the first\n    _b: int = 2\n\n"
        "    @property\n    def twice(self) -> int:\n"
        '        "Two of it."\n        return 2\n'
    )
    (module,) = docs_reference.modules(tmp_path)
    text = docs_reference.page(module, {})
    for wanted in (
        "{py:function} f(x: int, y=(1, 2))",
        "Says `so`.",
        ":param x: how many",
        ":param y: a pair",
        "{py:data} SIZE",
        "{py:class} Made(a: int = 1)",
        ":param a: the first",
        "{py:property} twice",
    ):
        assert wanted in text, wanted
    assert "hidden" not in text and "no parameter" not in text and "_b" not in text


def test_claims_and_glossary_become_tables(tmp_path):
    record = {
        "mean": 0.1,
        "low": 0.02,
        "high": 0.2,
        "at_least": 0.0,
        "expected": "holds",
        "outcome": "holds",
        "about": "accuracy | gain",
    }
    (tmp_path / "claims.json").write_text(json.dumps({"11 a beats b": record}))
    wanted = (
        "| 11 a beats b | accuracy \\| gain | above 0 | +0.100 | +0.020 to +0.200 "
        "| holds | **holds** |"
    )
    assert wanted in docs_site.claims_page(tmp_path / "claims.json")
    (tmp_path / "glossary.csv").write_text(
        "term,zh,meaning\nhead,头,the last layer | new\n", encoding="utf-8"
    )
    assert "| **head** | 头 | the last layer \\| new |" in docs_site.glossary_page(
        tmp_path / "glossary.csv"
    )


def test_questions_become_links_or_promises(tmp_path):
    (tmp_path / "questions.csv").write_text(
        "id,question,answer\nQ01,Why?,Because.\n", encoding="utf-8"
    )
    taught = [
        {"id": "Q01", "lesson": "11_features", "cell": "ab"},
        {"id": "Q01", "lesson": "14_layers", "cell": ""},
        {"id": "Q02", "lesson": "x", "cell": "y"},
    ]
    assert (
        "| Why? | Because. | [11 features](#cell-ab), 14 layers (to come) |"
        in docs_site.questions_page(tmp_path / "questions.csv", taught)
    )


def test_links_to_files_that_are_no_pages_lead_to_the_repository(tmp_path):
    (tmp_path / "page.md").write_text("")
    text = docs_site.absolute_links(
        "[a](page.md) [b](LICENSE) [c](https://x.org) [d](#part)",
        "https://host/repo",
        tmp_path,
    )
    assert text == (
        "[a](page.md) [b](https://host/repo/blob/main/LICENSE) "
        "[c](https://x.org) [d](#part)"
    )


# JupyterLab


@pytest.fixture(scope="module")
def lab(window, tmp_path_factory):
    """JupyterLab on a learner's folder of lessons."""
    pytest.importorskip(
        "jupyterlab",
        reason="JupyterLab is not installed (it is in the extra `lessons`)",
    )
    folder = tmp_path_factory.mktemp("learner") / "lessons"
    command = [
        Path(sys.executable).parent / "transfer-course",
        "lab",
        folder,
        "--no-open",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with chrome.Lab(folder, tmp_path_factory.mktemp("home")) as server:
        yield server


def source(cell):
    """A cell's source as one string."""
    return "".join(cell["source"])


def learner_cell(cells, check):
    """The cell that the learner fills in for the exercise checked in cell `check`.

    And the exercise's name; None where nothing is left open.
    """
    (name,) = re.findall(
        r"""^check\(["'](\w+)["']\)""", source(cells[check]), re.MULTILINE
    )[:1]
    for i in range(check - 1, -1, -1):
        text = source(cells[i])
        mine = (
            re.search(rf"^(?:def|class) {name}\b|^{name}\s*=", text, re.MULTILINE)
            and "@exercise" not in text
        )
        if mine and cells[i]["cell_type"] == "code":
            return (
                (i, name)
                if re.search(r"^\s+\.\.\.\s*$|=\s*\.\.\.\s*$", text, re.MULTILINE)
                else None
            )
    return None


def wrong_answer(solved, name):
    """A typical mistake and the words its hint has to hold.

    From the solved notebook's hidden `mistakes(name, {words: answer})`.
    """
    for cell in solved:
        if cell["cell_type"] != "code" or "mistakes(" not in source(cell):
            continue
        tree = ast.parse(notebooks.DIRECTIVE.sub("", source(cell)))
        for call in ast.walk(tree):
            if (
                isinstance(call, ast.Call)
                and getattr(call.func, "id", "") == "mistakes"
                and call.args[0].value == name
            ):
                for words, answer in zip(
                    call.args[1].keys, call.args[1].values, strict=True
                ):
                    if isinstance(answer, ast.Lambda | ast.Constant):
                        return words.value, f"{name} = {ast.unparse(answer)}"
    return None


def meet(book, solved):
    """Run a lesson, move its widget, do its first open exercise wrong and right.

    Returns what was met.
    """
    cells = book.run_all(seconds=300)
    met = {"run"}
    for cell in cells:
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error", (
                f"{source(cell)[:200]}\n{out['ename']}: {out['evalue']}"
            )
    code = [c for c in cells if c["cell_type"] == "code" and source(c).strip()]
    assert code[-1]["execution_count"], "the last cell did not run"
    for i in book.widgets()[:1]:
        book.move(i)
        met.add("widget")
    checks = [
        i
        for i, c in enumerate(cells)
        if c["cell_type"] == "code" and re.search(r"^check\(", source(c), re.MULTILINE)
    ]
    for at in checks:
        found = learner_cell(cells, at)
        if not found:
            continue
        i, name = found
        assert "not yet" in book.output(at), (
            f"an untouched exercise says {book.output(at)!r}"
        )
        wrong = wrong_answer(solved, name)
        if wrong:
            book.write(i, wrong[1])
            book.run(i)
            said = book.run(at, SAYS)
            assert "not quite" in said and wrong[0] in said, (
                f"{wrong[1]!r} is answered by {said!r}"
            )
            met.add("wrong")
        (right,) = [source(c) for c in solved if c.get("id") == cells[i].get("id")]
        book.write(i, notebooks.DIRECTIVE.sub("", right).strip("\n"))
        assert "Error" not in book.run(i)
        assert "right:" in book.run(at, SAYS), book.output(at)
        met.add("right")
        break
    book.watched.clean()
    return met


TINY = [
    """import matplotlib.pyplot as plt
from transfer_course.classroom.exercises import check, exercise, mistakes
from transfer_course.classroom.widgets import explore, predict_first""",
    """guess = predict_first("How many?", (0, 1))""",
    """def draw(n, colour):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot(range(n), color=colour)
    return fig
explore(draw, "A line that gets longer.", n=[2, 3, 4], colour=["red", "blue"])""",
    """@exercise
def double(answer, hint):
    "Twice as much."
    hint(answer(2) != 1, "That is the half.")
    hint(answer(2) == 4, "It should be 4.")""",
    """def double(x):
    # BEGIN SOLUTION
    y = x
    if x > 0:
        y = x + x
    return y
    # END SOLUTION""",
    """check("double")""",
    """#| hide
mistakes(
    "double",
    {"half": lambda x: x / 2, "4": lambda x: x + 1},
)""",
    """print("the end")""",
]


def tiny(folder, name, cells):
    """A solved notebook's cells; its unsolved copy goes to the learner's folder."""
    kernel = {
        "kernelspec": {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
    }
    solved = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=kernel
    )
    nbformat.write(
        notebooks.unsolved(solved, f"{name}.ipynb"), folder / f"{name}.ipynb"
    )
    return solved.cells


def test_the_steps_themselves_on_a_tiny_notebook(lab, window):
    solved = tiny(lab.folder, "tiny", TINY)
    with (
        chrome.watching(window) as watched,
        chrome.Notebook(lab, watched, "tiny.ipynb") as book,
    ):
        assert meet(book, solved) == {"run", "widget", "wrong", "right"}


def test_a_traceback_is_noticed(lab, window):
    solved = tiny(lab.folder, "broken", ["1 / 0", "print('never')"])
    with (
        chrome.watching(window) as watched,
        chrome.Notebook(lab, watched, "broken.ipynb") as book,
        pytest.raises(AssertionError, match="ZeroDivisionError"),
    ):
        meet(book, solved)


@pytest.mark.parametrize(
    "name", [n for n in LESSONS if (BUNDLED / f"{n}.ipynb").exists()]
)
def test_a_lesson_as_a_learner_meets_it(name, lab, window):
    with chrome.watching(window, height=1400) as watched:
        solved = nbformat.read(SOLVED[name], as_version=4).cells
        with chrome.Notebook(lab, watched, f"{name}.ipynb") as book:
            met = meet(book, solved)
        text = (BUNDLED / f"{name}.ipynb").read_text(encoding="utf-8")
        assert ("explore(" in text) <= ("widget" in met), "its widget was not found"
        assert ("check(" in text) <= ("right" in met), "its exercises were not found"
