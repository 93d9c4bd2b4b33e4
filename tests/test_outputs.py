"""Stored outputs are compared with what the cells print."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from compare_outputs import (  # noqa: E402
    count,
    differences,
    text_outputs,
    texts_agree,
)


@pytest.mark.parametrize(
    "stored, printed",
    [
        ("accuracy 0.643", "accuracy 0.644"),
        ("accuracy 0.643, loss 1.2", "accuracy 0.642, loss 1.3"),
        ("9.99 s", "10.00 s"),
        ("-0.00", "+0.00"),
        ("3e-08", "4e-08"),
        ("9e-16", "1e-15"),
        ("6.5e+06", "6.6e+06"),
        ("[ 0.06 -0.3 ]", "[0.05 -0.31]"),
        ("[1.  0.5]", "[0.99 0.5 ]"),
        ("a    12\nb  1,797", "a 12\nb 1,797"),
    ],
)
def test_what_agrees(stored, printed):
    assert texts_agree(stored, printed) and texts_agree(printed, stored)


@pytest.mark.parametrize(
    "stored, printed",
    [
        ("accuracy 0.643", "accuracy 0.645"),
        ("accuracy 0.643", "accuracy 0.743"),
        ("accuracy 0.643", "accuracy 0.643, loss 1.2"),
        ("accuracy 0.64", "recall 0.64"),
        ("0.05", "-0.05"),
        ("3e-08", "3e-07"),
        ("3e-08", "5e-08"),
        ("6.5e+06", "6.5e-06"),
        ("12 files", "13 files"),
        ("There are 2.", "There are 3."),
        ("[1. 2.]", "[1. 3.]"),
        ("1,797 digits", "1,798 digits"),
        ("98%", "97%"),
        ("version 2.4.1", "version 2.5.1"),
        ("version 2.4.1", "version 2.4.2"),
        ("66e07406", "66e07407"),
        ("2.0ms", "2.1ms"),
        ("nan", "0.5"),
        ("", "0.5"),
    ],
)
def test_what_does_not(stored, printed):
    assert not texts_agree(stored, printed) and not texts_agree(printed, stored)


@given(st.integers(-(10**9), 10**9), st.integers(1, 6), st.integers(0, 40))
def test_one_in_the_last_digit(number, places, apart):
    stored, printed = (
        f"about {value / 10**places:.{places}f} of it"
        for value in (number, number + apart)
    )
    assert texts_agree(stored, printed) == (apart <= 1)


@given(st.integers(), st.integers())
def test_whole_numbers(a, b):
    assert texts_agree(f"({a}, 5)", f"({b}, 5)") == (a == b)


@given(st.text())
def test_every_text_agrees_with_itself(text):
    assert texts_agree(text, text)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def result(kind="execute_result", **data):
    data = {name.replace("_", "/"): text for name, text in data.items()}
    return nbformat.v4.new_output(kind, data=data)


def test_images_and_warnings_are_not_compared():
    figure = result("display_data", image_png="…", text_plain="<Figure size 640x480>")
    assert text_outputs([stream("a\n"), figure, stream("hm", "stderr")]) == ["a\n"]


def test_pieces_of_a_stream_are_joined_and_results_follow():
    outputs = [stream("a"), result(text_plain="5"), stream("b\n")]
    assert text_outputs(outputs) == ["ab\n", "5"]


def test_what_a_reader_sees_is_compared():
    page = result(text_html="<b>5</b>", text_plain="<IPython.core.display.HTML object>")
    assert text_outputs([page]) == ["", "<b>5</b>"]


def test_differences_are_shown_line_by_line():
    stored, printed = "loss 0.50\nwords 3\n", "loss 0.51\nwords 4\n"
    expected = ["  stored   words 3", "  printed  words 4"]
    assert differences([stream(stored)], [stream(printed)]) == expected
    assert differences([], [stream("5\n")]) == [
        "  stored   (no such line)",
        "  printed  5",
    ]
    assert differences([result(text_plain="5")], [])


def change(nb, pattern, new):
    """Change the first match in what the cells printed; returns the cell's number."""
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells):
        for output in cell.outputs:
            if re.search(pattern, output.get("text", "")):
                output.text = re.sub(pattern, new, output.text, count=1)
                return number
    raise AssertionError(f"no stored output has {pattern}")


def five_away(match):
    """Another digit in a digit's place."""
    return str((int(match[0]) + 5) % 10)


CHANGES = {
    "whole number": (r"(?<![\w.])\d(?![\w.])", five_away),
    "decimal": (r"(?<=\d\.\d)\d(?=\d)", five_away),
    "word": (r"\bholds\b", "fails"),
}


def test_an_altered_output_fails_the_run(tmp_path):
    stored = nbformat.read(ROOT / "nbs/0_start/claims.ipynb", as_version=4)
    expected = set()
    for name, (pattern, new) in CHANGES.items():
        nb = nbformat.from_dict(stored)
        expected.add((name, change(nb, pattern, new)))
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
    nb = nbformat.from_dict(stored)
    code_cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    code_cells[change(nb, *CHANGES["word"])].metadata.tags = ["varies"]
    expected.add(("tag", change(nb, r"(?s).*does not hold its mean.*", "")))
    nbformat.write(nb, tmp_path / "tag.ipynb")

    shutil.copy(ROOT / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-rf"]
    command += ["-c", ROOT / "pyproject.toml", "--nbval", "--nbval-current-env"]
    done = subprocess.run(
        [*command, tmp_path],
        env=os.environ | {"TRANSFER_COURSE_STRICT": "1"},
        capture_output=True,
        text=True,
    )
    failed = re.findall(
        r"^FAILED .*?([\w ]+)\.ipynb::Cell (\d+)", done.stdout, re.MULTILINE
    )
    assert {(name, int(cell)) for name, cell in failed} == expected, done.stdout
    assert re.search(r"^outputs compared: \d+ of \d+ text outputs", done.stdout, re.M)


def test_most_outputs_are_compared():
    compared, stored = count()
    assert compared.total() >= 0.7 * stored.total()
    assert compared["1_theory"] == stored["1_theory"] > 100
