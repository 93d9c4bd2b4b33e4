"""The demo's rows: what is live, what comes from the record; every row says which."""

import json
import re

import numpy as np
import pytest

from transfer_course.practice import demo, tuning
from transfer_course.vision.evaluate import Interval


@pytest.fixture
def fake(monkeypatch):
    """Training replaced: every method answers at random in no time."""
    ran = []

    def run_tuning(data, framework, strategy, repeat, fold, images, scratch):
        ran.append((framework, strategy, repeat, fold))
        rng = np.random.default_rng(len(ran))
        where = tuning.where_tested(images, 4, repeat)
        tests = tuning.tuning_fold(images, where, fold).tests
        guess = {t: rng.integers(0, 10, len(d)) for t, d in tests.items()}
        correct = {t: guess[t] == d.labels for t, d in tests.items()}
        letters = {t: tuning._letters(g) for t, g in guess.items()}
        return tuning.Run(framework, strategy, repeat, fold, 0.01, 1, correct, letters)

    monkeypatch.setattr(demo, "run_tuning", run_tuning)
    return ran


def test_scratch_comes_from_the_record_and_the_rows_say_so(fake, tmp_path):
    told = []
    rows, report = demo.run_demo(
        tmp_path, fold=1, say=lambda text="": told.append(text)
    )
    assert fake == [
        (f, s, 0, 1)
        for f in ("torch", "keras")
        for s in ("majority", "probe", "random_probe", "fine_tune")
    ]
    assert len(rows) == 2 * 5 * 2
    for row in rows:
        scratch = row["strategy"] == "scratch"
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["source"] == ("record" if scratch else "live + record")
        assert row["live_models"] == (not scratch) and row["models"] >= 4
    starred = [line for line in demo.as_table(rows).splitlines() if "*" in line]
    assert len(starred) == 2 and all("from scratch*" in line for line in starred)
    assert "* all models from the stored results of `make study`" in told
    stored = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    assert stored["rows"] == rows and (tmp_path / "demo.png").exists()
    page = report.read_text(encoding="utf-8")
    assert page.count("<img alt=") == 2 and "openmoji" in page


def test_a_line_per_row_with_the_time_left(fake, tmp_path):
    told = []
    demo.run_demo(tmp_path, say=lambda text="": told.append(text))
    lines = [t for t in told if re.search(r"cut-outs \d\.\d\d   scenes \d\.\d\d", t)]
    assert len(lines) == 8
    assert all(re.search(r"about \d+ (s|min) left$", t) for t in lines[:-1])
    assert not lines[-1].endswith("left")


def test_live_takes_nothing_from_the_record(fake, monkeypatch, tmp_path):
    few = [
        (framework, strategy, 0, k)
        for framework in ("torch", "keras")
        for strategy in tuning.STRATEGIES
        for k in range(4)
    ]
    monkeypatch.setattr(demo, "planned", lambda data, frameworks: few)
    rows, _ = demo.run_demo(tmp_path, live=True, say=lambda text="": None)
    assert sorted(fake) == sorted(few)
    assert all(r["source"] == "live" and r["models"] == 4 for r in rows)


def test_one_framework_is_enough(fake, tmp_path):
    rows, _ = demo.run_demo(tmp_path, frameworks=("keras",), say=lambda text="": None)
    assert {r["framework"] for r in rows} == {"keras"} and len(rows) == 10


def test_the_strip_shows_what_the_record_predicts():
    """Unseen identities, one image per class, the same images every time."""
    strip, again = demo.recorded_strip(), demo.recorded_strip()
    assert [t.predicted for t in strip] == [t.predicted for t in again]
    assert [t.test for t in strip] == ["cutout"] * 4 + ["scene"] * 4
    for test in ("cutout", "scene"):
        truths = [t.truth for t in strip if t.test == test]
        assert len(set(truths)) == 4
    assert all(set(t.predicted) == {"scratch", "fine_tune"} for t in strip)


def test_what_an_interval_says():
    def told(*ends):
        return demo._finding("Keras, scenes", "fine_tune", "probe", Interval(*ends))

    unclear = told(0.01, -0.02, 0.04)
    assert "our data cannot tell" in unclear and "between -2 and +4 points" in unclear
    more, less = told(0.05, 0.02, 0.08), told(-0.05, -0.08, -0.02)
    ends = "accurate than the probe by 5 points (95 % interval: 2 to 8)"
    assert f"more {ends}" in more and f"less {ends}" in less
