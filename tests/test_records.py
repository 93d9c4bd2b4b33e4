"""Every record holds every run that its table claims.

A table of means is only as good as the runs behind it.
"""

import pytest

from transfer_course.practice import tuning


@pytest.mark.parametrize("data", tuning.STUDIES)
def test_tuning(data):
    runs, _ = tuning.load_tuning(data)
    wanted = set(tuning.planned(data))
    assert {r[:4] for r in runs} == wanted and len(runs) == len(wanted)
    tested = {r: tuning._dealt(data, r) for r in {run.repeat for run in runs}}
    for run in runs:
        of = tested[run.repeat]
        counts = {test: (of[test] == run.fold).sum() for test in of}
        assert {test: len(c) for test, c in run.correct.items()} == counts
