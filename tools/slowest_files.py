"""A pytest plugin for `make test`: slow files begin first, and a table ends the run.

Each file goes to one of two processes. A slow file that begins last leaves the other
process without work, so keep `FIRST` in the order of the table.
"""

from collections import Counter

import pytest

FIRST = [
    "test_lessons.py",
    "test_browser.py",
    "test_resume.py",
    "test_finetune.py",
    "test_cli.py",
    "test_extract.py",
    "test_keras_resume.py",
    "test_backbones.py",
    "test_frameworks.py",
    "test_hostile_folder.py",
    "test_bench.py",
]
SECONDS = Counter()  # file → seconds of its tests, with what they set up


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Bring the files of `FIRST` to the front; the others stay in order."""
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_runtest_logreport(report):
    """Add one phase of one test to its file; under `-n 2` all reports arrive here."""
    SECONDS[report.nodeid.split("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter):
    """Print the ten slowest files and the sum of all."""
    terminalreporter.section("ten slowest files")
    for file, seconds in SECONDS.most_common(10):
        terminalreporter.write_line(f"{seconds:7.1f} s  {file}")
    whole = sum(SECONDS.values())
    terminalreporter.write_line(f"{whole:7.1f} s  all {len(SECONDS)} files")
