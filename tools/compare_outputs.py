"""A pytest plugin: nbval compares what each cell prints with what is stored.

Every text output counts: what a cell prints to stdout, and the text of what it shows.
Images and stderr do not. A cell tagged `varies` is run and not compared: timings,
facts about the machine, figures that depend on the processor.

Words and whole numbers have to be equal. A number with decimals may differ by one in
its last printed digit, because processors round differently: 0.643 agrees with 0.644
and not with 0.645, 3e-08 with 4e-08 and not with 5e-08. A rounding error differs by
more than that, so print that it lies below a bound. Spacing does not count: a column
moves when a number gets longer.
"""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from functools import partial
from itertools import zip_longest
from pathlib import Path

import nbformat
from nbval.plugin import IPyNbCell

NBS = Path(__file__).resolve().parent.parent / "nbs"
# A version or a hash has no decimals: "2.4.1", "66e07406".
DECIMALS = re.compile(
    r"(?<![\w.])[-+]?(?:\d+\.\d*(?:e[-+]\d+)?|\d+e[-+]\d+)(?!\w|\.\d)"
)
# What a reader sees of an output that is no image: the first of these that it has.
TEXT_KINDS = ("text/markdown", "text/html", "text/plain")


def numbers_agree(stored: str, printed: str) -> bool:
    """Whether two numbers are at most one apart in the last digit printed."""
    a, b = Decimal(stored), Decimal(printed)
    if a == b:
        return True
    # NumPy leaves trailing zeros out, so the longer of the two has the last digit.
    last_digit = min(a.as_tuple().exponent, b.as_tuple().exponent)
    is_whole = stored.endswith(".") and printed.endswith(".")
    return not is_whole and abs(a - b) <= Decimal(1).scaleb(last_digit)


def texts_agree(stored: str, printed: str) -> bool:
    """Whether two texts have the same words and numbers that agree."""
    words = [
        [piece.split() for piece in DECIMALS.split(text)] for text in (stored, printed)
    ]
    numbers = zip(DECIMALS.findall(stored), DECIMALS.findall(printed), strict=False)
    return words[0] == words[1] and all(numbers_agree(a, b) for a, b in numbers)


def text_outputs(outputs: list) -> list[str]:
    """What a cell printed, in one piece, then the text of each thing that it showed."""
    printed, shown = "", []
    for output in outputs:
        data = output.get("data", {})
        kinds = [kind for kind in TEXT_KINDS if kind in data]
        if output.output_type == "stream" and output.name == "stdout":
            printed += output.text
        elif kinds and not any(kind.startswith("image/") for kind in data):
            shown.append(data[kinds[0]])
    return [printed, *shown]


def differences(stored: list, printed: list) -> list[str]:
    """The lines in which the text outputs of a cell disagree; none if they agree."""
    found = []
    texts = zip_longest(text_outputs(stored), text_outputs(printed), fillvalue="")
    for old_text, new_text in texts:
        if texts_agree(old_text, new_text):
            continue
        lines = zip_longest(
            old_text.splitlines(), new_text.splitlines(), fillvalue="(no such line)"
        )
        for old, new in lines:
            if not texts_agree(old, new):
                found += [f"  stored   {old}", f"  printed  {new}"]
    return found


def varies(cell) -> bool:
    """Whether a cell is run without comparing its outputs."""
    return "varies" in cell.metadata.get("tags", [])


def compare(item, printed: list, stored: list) -> bool:
    """Stands in for nbval's own comparison of a cell's outputs."""
    # IPython looks for the semicolon in the history, and nbval keeps none.
    if item.cell.source.rstrip().endswith(";"):
        printed = [o for o in printed if o.output_type != "execute_result"]
    item.comparison_traceback = differences(stored, printed)
    return not item.comparison_traceback


def pytest_itemcollected(item):
    """Let nbval compare in this way every cell whose outputs do not vary."""
    if isinstance(item, IPyNbCell):
        item.options["check"] = item.options["check"] and not varies(item.cell)
        item.compare_outputs = partial(compare, item)


def count(folder: Path = NBS) -> tuple[Counter, Counter]:
    """How many text outputs are compared, and how many there are, for each room."""
    compared, stored = Counter(), Counter()
    for path in folder.rglob("*.ipynb"):
        room = path.relative_to(folder).parts[0]
        for cell in nbformat.read(path, as_version=4).cells:
            number = sum(bool(text) for text in text_outputs(cell.get("outputs", [])))
            stored[room] += number
            compared[room] += number * (not varies(cell))
    return compared, stored


def pytest_terminal_summary(terminalreporter, config):
    """Print the share of the text outputs that nbval compares."""
    if config.option.nbval:
        compared, stored = count()
        share = 100 * compared.total() / stored.total()
        theory = f"theory {compared['1_theory']} of {stored['1_theory']}"
        terminalreporter.write_line(
            f"outputs compared: {compared.total()} of {stored.total()} text outputs "
            f"({share:.0f} %); {theory}"
        )
