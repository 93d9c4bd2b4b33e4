"""nbval: skip what nbdev does not evaluate, and compare what the other cells print."""

import re

import pytest

pytest_plugins = ["compare_outputs"]  # in tools
_NO_EVAL = re.compile(r"^#\|\s*eval\s*:?\s*false\s*$", re.MULTILINE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None or cell.get("cell_type") != "code":
            continue
        if _NO_EVAL.search(cell.source):
            item.options["skip"] = True
        # nbdev-clean nulls the counts, and nbval compares nothing without one.
        if cell.get("execution_count") is None:
            cell["execution_count"] = 1
