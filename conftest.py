"""nbval: skip what nbdev does not evaluate, and refuse a checked cell that has no stored output."""

import re

import pytest

_NO_EVAL = re.compile(r"^#\|\s*eval\s*:?\s*false\s*$", re.MULTILINE)
_CHECK = re.compile(r"^\s*#\s*NBVAL_CHECK_OUTPUT\s*$", re.MULTILINE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None or cell.get("cell_type") != "code":
            continue
        if _NO_EVAL.search(cell.source):
            item.options["skip"] = True
        # nbdev-clean nulls the counts: without one, nbval refuses stored outputs and passes a check that has none.
        if cell.get("execution_count") is None and (
            cell.get("outputs") or _CHECK.search(cell.source)
        ):
            cell["execution_count"] = 1
