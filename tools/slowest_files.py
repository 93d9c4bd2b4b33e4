"""A pytest plugin for `make test`.

The slowest files begin first, and the ten slowest are told at the end.

Each file goes to one of two processes. A long one that begins last leaves the other
process without work, so put here what the table shows.
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
    "test_bench.py",
    "test_frameworks.py",
    "test_backbones.py",
    "test_hostile_folder.py",
]
SECONDS = Counter()  # file → seconds of its tests, with what they set up


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Bring the files of `FIRST` to the front; the others stay in order."""
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_runtest_logreport(report):
    """Add one phase of one test to its file.

    Under xdist the controller hears of all.
    """
    SECONDS[report.nodeid.split("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter):
    """Print the table."""
    terminalreporter.section("ten slowest files")
    for file, seconds in SECONDS.most_common(10):
        terminalreporter.write_line(f"{seconds:7.1f} s  {file}")
    whole = sum(SECONDS.values())
    terminalreporter.write_line(f"{whole:7.1f} s  all {len(SECONDS)} files")
