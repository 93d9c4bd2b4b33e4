"""The demo's table: what is live, what comes from the records; every row says which."""

import json

import numpy as np
import pytest

from transfer_course.practice import demo
from transfer_course.trainer.recipe import Recipe


@pytest.fixture
def fake(monkeypatch):
    """Training replaced: every method answers at random in no time."""
    ran = []

    def run_one(framework, strategy, seed, f, scratch="small_cnn", progress=False):
        ran.append((framework, strategy))
        rng = np.random.default_rng(len(ran))
        return demo.Run(
            framework,
            strategy,
            seed,
            0.01,
            1,
            {s: rng.random(len(t)) < 0.5 for s, t in f.tests.items()},
        )

    monkeypatch.setattr(demo, "run_one", run_one)
    return ran


def test_heavy_rows_come_from_the_records_where_they_do_not_fit_and_say_so(
    fake, tmp_path
):
    told = []
    rows, report = demo.run_demo(
        tmp_path, minutes=0, say=lambda text="": told.append(text), progress=False
    )
    assert {k for k in fake if k[1] == "scratch"} == set() and len(fake) == 8
    assert any("from the records alone" in t for t in told)
    assert len(rows) == 2 * 5 * 5
    for row in rows:
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["source"] == (
            "record" if row["strategy"] == "scratch" else "live + record"
        )
        assert row["live_seeds"] == (row["strategy"] != "scratch") and row["seeds"] >= 3
    assert report.exists() and (tmp_path / "demo.png").exists()
    assert (
        json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))["rows"] == rows
    )


def test_all_rows_are_live_where_they_fit(fake, tmp_path):
    rows, _ = demo.run_demo(
        tmp_path, say=lambda text="": None, minutes=1e6, progress=False
    )
    assert len(fake) == 10 and all(r["live_seeds"] == 1 for r in rows)
    assert {(r["framework"], r["strategy"]) for r in rows} == {
        (f, s) for f in ("torch", "keras") for s in demo.STRATEGIES
    }


def test_the_records_show_what_the_demo_promises():
    """Fine-tuning reaches 0.60 on noto in both frameworks, and lies above scratch."""
    runs, record = demo.load_records()
    data = demo.everything(size=64)
    items = {s: demo.fold(data, s).items for s in demo.SEEDS}
    rows = {
        (r["framework"], r["strategy"]): r
        for r in demo.rows_of(runs, data, items)
        if r["style"] == "noto"
    }
    for framework in ("torch", "keras"):
        assert (
            rows[framework, "fine_tune"]["seeds"] >= 3
            and rows[framework, "fine_tune"]["accuracy"] >= 0.60
        )
        assert (
            demo.difference(
                runs, framework, "fine_tune", "scratch", "noto", data, items
            ).low
            > 0
        )
    assert set(record["scratch_candidates"]) == set(demo.SETTINGS["scratch"])
    assert (
        Recipe(**record["settings"]["fine_tune"]) == demo.SETTINGS["fine_tune"]
        and record["size"] == demo.SIZE
    ), "the records are of other settings"


def test_a_validation_identity_is_never_tested():
    data = demo.everything(size=64)
    role = demo.roles(data)
    for seed in demo.SEEDS:
        f = demo.fold(data, seed)
        for test in f.tests.values():
            assert {role[g] for g in test.groups.tolist()} <= {seed}
            assert not set(test.groups.tolist()) & set(f.train.groups.tolist())
