"""The report and the card: complete, self-contained, no name in them becomes markup."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transfer_course.engine.errors import BadValue
from transfer_course.engine.files import printable
from transfer_course.engine.report import write_card, write_report

HISTORY = [
    dict(
        epoch=e,
        train_loss=2 / e,
        valid_loss=2 / e + 0.1,
        train_accuracy=0.5,
        valid_accuracy=0.4,
    )
    for e in range(1, 6)
]
MISTAKE = dict(
    image=np.zeros((9, 5, 3), "uint8"),
    true="cat",
    predicted="dog",
    probability=0.9,
    path="cats/1.jpg",
)


def info(classes=("cat", "dog"), **more):
    base = dict(
        framework="torch",
        strategy="fine_tune",
        backbone=dict(name="small_cnn", licence="Apache-2.0"),
        size=96,
    )
    metrics = dict(
        accuracy=0.8,
        balanced_accuracy=0.8,
        low=0.7,
        high=0.9,
        level=0.95,
        part="held-out",
    )
    return (
        base
        | dict(
            classes=list(classes),
            metrics=metrics,
            n_train=160,
            n_valid=40,
            seconds=65.0,
        )
        | more
    )


def report(folder, about=None, confusion=None, mistakes=(), curves=HISTORY):
    about = about or info()
    C = np.full((len(about["classes"]),) * 2, 2) if confusion is None else confusion
    path = write_report(
        folder, info=about, confusion=C, mistakes=list(mistakes), curves=curves
    )
    return Page(path.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Tags with attributes, open elements checked, and the text of each table cell."""

    VOID = {"meta", "br", "img", "path", "circle"}

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.open, self.cells, self.said = text, [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append((tag, ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag, (
            f"</{tag}> closes another element"
        )

    def handle_data(self, data):
        if "style" not in self.open:
            self.said += data
            if self.open and ("td" in self.open or "th" in self.open):
                self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)

    def of(self, tag):
        return [a for t, a in self.tags if t == tag]


ALLOWED = """
    html head meta title style body main h1 h2 h3 p section table caption tr th td
    details summary small strong b bdi i div span dl dt dd ol ul li svg path text circle
    figure img figcaption br pre code
"""


def check_safe(page):
    assert {t for t, _ in page.tags} <= set(ALLOWED.split())
    for tag, attrs in page.tags:
        assert not [a for a in attrs if a.startswith("on")], attrs
        assert "href" not in attrs and (tag == "img") == ("src" in attrs)
        if tag == "img":
            assert (
                attrs["src"].startswith("data:image/jpeg;base64,")
                and attrs["alt"].strip()
            )
        if tag == "svg":
            assert attrs["role"] == "img" and attrs["aria-label"].strip()
    policy = [
        a["content"]
        for a in page.of("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert page.of("html") == [{"lang": "en"}] and page.of("meta")[0] == {
        "charset": "utf-8"
    }
    assert not re.search(r"url\(|@import|<script", page.text.split("<body>")[0])


nasty = st.sampled_from(
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onload='x",
        "&lt;b&gt;",
        "</style><b>",
        "{0}{x}",
    ]
    + [
        "猫头鹰",
        "قط",
        "🦊👩‍👩‍👧",
        "a\nb",
        "\u202egnp.exe",
        "caf\udce9",
        "",
        " ",
        "`|`*_#",
        "\\",
        "\x00",
    ]
)
names = st.lists(st.text(max_size=12) | nasty, min_size=2, max_size=12)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names, st.data())
def test_no_name_becomes_markup(tmp_path, classes, data):
    name = st.sampled_from(classes)
    bad = dict(
        MISTAKE, true=data.draw(name), predicted=data.draw(name), path=data.draw(nasty)
    )
    about = info(
        classes,
        skipped=[dict(path=data.draw(nasty), reason=data.draw(nasty))] * 2,
        stopped=data.draw(nasty),
    )
    about |= dict(
        recipe={data.draw(nasty): data.draw(nasty)},
        warnings=[data.draw(nasty)],
        strategy=data.draw(nasty),
    )
    about |= dict(baselines={data.draw(nasty): 0.5}, counts={classes[0]: 3})
    page = report(tmp_path, about, mistakes=[bad])
    check_safe(page)
    shown = [text for tag, text in page.cells if tag == "th"]
    for c in classes:  # each name is there, as it is written
        assert any(printable(str(c), one_line=True) in text for text in shown)
    card = write_card(tmp_path, about).read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<", card) and len(re.findall(r"(?m)^## ", card)) == 8


def test_every_section_is_there(tmp_path):
    page = report(tmp_path, mistakes=[MISTAKE])
    check_safe(page)
    heads = re.findall(r"<h2>(.*?)</h2>", page.text)
    assert (
        len(heads) == 7
        and "How good it is" in heads
        and len(page.of("svg")) == 2
        and len(page.of("img")) == 1
    )
    for words in (
        "0.80",
        "0.70 to 0.90",
        "95 % interval",
        "small_cnn",
        "65 s",
        "Apache-2.0",
    ):
        assert words in page.said, words
    assert (
        f"transfer-course predict {tmp_path}" in page.said
        and "load_result" in page.said
    )


@pytest.mark.parametrize("n", [2, 8, 13, 40])
def test_confusion_matrix_holds_the_counts(tmp_path, n):
    C = np.random.default_rng(n).integers(0, 1000, (n, n))
    page = report(tmp_path, info([f"class {i}" for i in range(n)]), C)
    table = page.text.split("<table class='confusion")[1].split("</table>")[0]
    found = [int(v) for v in re.findall(r"<td class=\w style=[^>]*>(\d+)</td>", table)]
    np.testing.assert_array_equal(np.reshape(found, (n, n)), C)
    assert table.count("scope=col") == table.count("scope=row") == n
    i, j = np.unravel_index(np.argmax(C - np.diag(np.diag(C))), C.shape)
    assert f"class {i} taken for class {j}: {C[i, j]} of {C[i].sum()}" in page.said


def test_too_many_classes_say_so(tmp_path):
    page = report(
        tmp_path, info([f"c{i}" for i in range(120)]), np.eye(120, dtype=int) * 3
    )
    assert "too large to read" in page.said and "class='confusion" not in page.text
    assert "120 classes" in page.said


def test_recall_and_precision_of_each_class(tmp_path):
    page = report(
        tmp_path, info(["a", "b", "c"]), np.array([[3, 1, 0], [0, 0, 2], [0, 0, 0]])
    )
    rows = re.findall(
        r"<tr><th scope=row><bdi>\w</bdi></th>"
        r"<td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>",
        page.text,
    )
    assert rows == [("4", "0.75", "1.00"), ("2", "0.00", "0.00"), ("0", "–", "0.00")]


def test_wrong_confusion_is_refused(tmp_path):
    with pytest.raises(BadValue, match=r"\(3, 3\); expected \(2, 2\)"):
        report(tmp_path, confusion=np.eye(3))
    with pytest.raises(BadValue, match="expected uint8"):
        report(tmp_path, mistakes=[dict(MISTAKE, image=np.zeros((4, 4, 3)))])
    assert not (tmp_path / "report.html").exists()


def test_no_better_than_a_constant_answer_is_said(tmp_path):
    about = info(metrics=dict(accuracy=0.8, low=0.6, high=0.9))
    C = np.array([[30, 0], [8, 2]])
    assert "does not exclude" in report(tmp_path, about, C).said
    assert (
        "does not exclude"
        not in report(tmp_path, about, np.array([[15, 5], [3, 17]])).said
    )


def test_baselines_with_differences(tmp_path):
    given = dict(
        majority={"accuracy": 0.5},
        probe={"accuracy": 0.7, "difference": dict(mean=0.1, low=-0.02, high=0.21)},
    )
    said = report(tmp_path, info(baselines=given)).said
    assert (
        "over probe: +0.10 (-0.02 to +0.21)" in said
        and "majority" in said
        and "always" not in said
    )
    assert (
        "Accuracy of probe | 0.700"
        in write_card(tmp_path, info(baselines=given)).read_text()
    )


# ---- curves


def test_curves(tmp_path):
    rows = [dict(r) for r in HISTORY]
    rows[2]["valid_loss"] = None  # run.json's NaN
    page = report(tmp_path, info(best_epoch=4), curves=rows)
    loss, accuracy = page.of("svg")
    assert (
        loss["aria-label"]
        == "Loss by epoch: training from 2.00 to 0.40; held-out from 2.10 to 0.50."
    )
    held = [
        a["d"] for t, a in page.tags if t == "path" and a.get("class") == "line held"
    ][0]
    # The line is interrupted, not drawn through.
    assert held.count("M") == 2 and held.count("L") == 2
    assert "dotted line" in page.said and accuracy["aria-label"].startswith("Accuracy")


@pytest.mark.parametrize(
    "curves, words",
    [([], "no history"), (None, "no history"), (HISTORY[:1], "single row")],
)
def test_no_curves_say_so(tmp_path, curves, words):
    page = report(tmp_path, curves=curves)
    assert words in page.said and not page.of("svg")


odd = st.none() | st.floats() | st.text(max_size=3) | st.booleans()
keys = st.sampled_from(
    ["epoch", "loss", "train_loss", "valid_loss", "val_accuracy", "lr"]
)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.dictionaries(keys, odd), max_size=4))
def test_any_history_is_drawn_or_not(tmp_path, curves):
    page = report(tmp_path, curves=curves)
    check_safe(page)
    assert not re.search(
        r"\b(nan|inf)\b", " ".join(a.get("d", "") for a in page.of("path"))
    )


def test_nothing_known(tmp_path):
    page = Page(
        write_report(
            tmp_path, info={}, confusion=None, mistakes=None, curves=None
        ).read_text(encoding="utf-8")
    )
    check_safe(page)
    for words in (
        "No held-out images were scored",
        "No mistakes were recorded",
        "every file could be used",
    ):
        assert words in page.said
    assert "No held-out images" in write_card(tmp_path, {}).read_text(encoding="utf-8")


# ---- mistakes and skipped files


def test_mistakes(tmp_path):
    page = report(
        tmp_path,
        mistakes=[
            dict(MISTAKE, probability=p / 40, path=f"{p}.jpg") for p in range(30)
        ],
    )
    assert len(page.of("img")) == 24 and "24 of 30 are shown" in page.said
    # The most confident first.
    assert page.of("img")[0]["alt"] == "29.jpg: cat, taken for dog"
    assert "every held-out image was recognised" in report(tmp_path).said


def test_pictures_are_small(tmp_path):
    rng = np.random.default_rng(0)
    big = [dict(MISTAKE, image=rng.integers(0, 255, (900, 1200, 3), "uint8"))] * 24
    report(tmp_path, mistakes=big)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_many_skipped_files_are_folded(tmp_path):
    reasons = ["truncated", "empty file", "not an image"]
    skipped = [dict(path=f"a/{i}.jpg", reason=reasons[i % 3]) for i in range(500)]
    page = report(tmp_path, info(skipped=skipped))
    fold = page.text.split("<summary>All 500 files</summary>")[1].split("</details>")[0]
    assert fold.count("<li>") == 500 and "500 files: 167 × truncated" in page.said
    # A pair is as good as a dict.
    few = report(tmp_path, info(skipped=[["a.jpg", "truncated"]]))
    assert "a.jpg truncated" in few.said and "files</summary>" not in few.text


def test_drawing_loads_no_matplotlib(tmp_path):
    code = (
        "import sys, numpy as np; "
        "from transfer_course.engine.report import write_report; "
        "h = [dict(train_loss=1), dict(train_loss=.5)]; "
        "m = dict(image=np.zeros((2, 2, 3), 'uint8'), true='a', predicted='b');"
        "write_report(sys.argv[1], info=dict(classes=['a', 'b']), "
        "confusion=np.eye(2, dtype=int), mistakes=[m], curves=h);"
        "print([n for n in ('matplotlib', 'torch', 'tensorflow') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
