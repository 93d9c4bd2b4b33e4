"""Every record holds every run that its table claims.

A table of means is only as good as the runs behind it.
"""

from itertools import product

from transfer_course.practice import demo, halves


def test_demo():
    runs, _ = demo.load_records()
    wanted = set(product(("torch", "keras"), demo.STRATEGIES, demo.SEEDS))
    assert {(r.framework, r.strategy, r.seed) for r in runs} == wanted and len(
        runs
    ) == len(wanted)
    data = demo.everything(size=64)
    tested = {
        s: {k: len(i) for k, i in demo.fold(data, s).items.items()} for s in demo.SEEDS
    }
    assert all(
        {k: len(c) for k, c in r.correct.items()} == tested[r.seed] for r in runs
    )


def test_halves():
    runs, record = halves.load_halves()
    wanted = set(product(halves.WAYS, halves.SEEDS))
    assert {(r.way, r.seed) for r in runs} == wanted and len(runs) == len(wanted)
    assert len(record["source_accuracy"]) == len(halves.SEEDS)
