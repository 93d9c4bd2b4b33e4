"""vision.budgets: break-even points against simulated worlds in which they are known.

And practice.label_curves: its records are complete, and its folds share no identity.
"""

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue
from transfer_course.practice import label_curves as study
from transfer_course.practice.photo_budget import folds
from transfer_course.trainer.recipe import Recipe
from transfer_course.vision.budgets import Curve, break_even, labels_needed
from transfer_course.vision.probing import FLOOR, floored_scaler

BUDGETS = (1, 4, 16)


def world(rng, seeds=8, identities=80):
    """Two curves, straight over log(labels), that cross at 4 · 4^0.6 labels per class.

    An identity and a seed move both curves, and the difference has an effect of its
    own of each identity.
    """
    easy = rng.normal(0, 0.15, identities)
    own = rng.normal(0, 0.08, identities)
    luck = rng.normal(0, 0.02, (2, seeds, 1))
    curves = []
    for means, effect, moved in (
        ((0.35, 0.45, 0.55), -own / 2, luck[0]),
        ((0.15, 0.375, 0.60), own / 2, luck[1]),
    ):
        chances = [np.clip(m + easy + effect + moved, 0, 1) for m in means]
        tables = tuple((rng.random(p.shape) < p) * 1.0 for p in chances)
        curves.append(Curve(BUDGETS, tables, np.arange(identities)))
    return curves


def test_the_interval_of_a_break_even_point_covers():
    """Nominal 95 %: of 200 worlds between 183 and 198, the range of 99 % binomial luck.

    With an interval that knew nothing of the identities, fewer worlds are covered.
    """
    rng = np.random.default_rng(0)
    truth = 4 * 4**0.6
    found = [break_even(*world(rng)) for _ in range(200)]
    covered = sum(f.low <= truth <= f.high for f in found)
    assert 181 <= covered <= 198
    assert 8 < np.median([f.at for f in found]) < 10.5


def test_a_higher_level_is_wider_and_holds_the_point():
    pair = world(np.random.default_rng(1))
    a, b = break_even(*pair, level=0.8), break_even(*pair, level=0.99)
    assert b.low <= a.low <= a.at <= a.high <= b.high


def test_labels_needed_is_the_inverse_of_the_curve():
    rng = np.random.default_rng(2)
    curve = world(rng)[0]
    need = labels_needed(curve, curve, 4)
    assert np.isclose(need.at, 4) and need.low <= 4 <= need.high
    with pytest.raises(BadValue, match="budget is 3"):
        labels_needed(curve, curve, 3)


def test_nothing_within_the_budgets_is_said_in_words():
    rng = np.random.default_rng(3)
    table = (rng.random((5, 40)) < 0.5) * 1.0
    low = Curve(BUDGETS, (table * 0, table * 0, table * 0))
    high = Curve(BUDGETS, (table * 0 + 1, table * 0 + 1, table * 0 + 1))
    assert str(break_even(high, low)) == "> 16"
    assert str(break_even(low, high)) == "≤ 1"


def test_a_nearly_constant_feature_cannot_outvote_the_others():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(30, 50))
    Z[:, 0] *= 1e-9
    Z[:, 1] = 3  # constant
    scaler = floored_scaler(Z)
    least = FLOOR * np.median(Z.std(0))
    assert np.isclose(scaler.scale_[0], least) and scaler.scale_[1] == 1
    assert np.abs(scaler.transform(np.ones((1, 50)))).max() < 1.1 / least


@pytest.mark.parametrize("name", study.STAGES)
def test_the_record_holds_every_run_that_is_claimed(name):
    runs, about = study.load_label_curves(name)
    found = [(r.seed, r.method, r.budget) for r in runs]
    assert sorted(found) == sorted(study.expected_runs(name))
    n = len(study.stage_data(name, study.SMALL))
    assert {len(r.correct) for r in runs} == {n}
    assert about["size"] == study.STAGES[name].size
    assert Recipe(**about["scratch"]) == study.SCRATCH
    assert about["epochs"] == {str(k): v for k, v in study.EPOCHS.items()}


@pytest.mark.parametrize("name", study.STAGES)
def test_enough_seeds(name):
    assert len(study.SEEDS["probe"]) >= 20 and len(study.SEEDS["scratch"]) >= 10


@pytest.mark.parametrize("name", study.STAGES)
def test_larger_budgets_contain_smaller_ones(name):
    data = study.stage_data(name, study.SMALL)
    for few, more in zip(folds(data, 3, 2), folds(data, 3, 5), strict=True):
        assert set(few.labelled) < set(more.labelled)
        assert not set(data.groups[more.labelled]) & set(data.groups[few.test])
        assert np.array_equal(few.test, more.test)


def test_both_studies_of_photographs_have_the_same_probe():
    """`photo_budget` and `label_curves` describe the same runs at five labels."""
    from transfer_course.practice.photo_budget import load_photo_budget, table

    runs = study.load_label_curves("photos")[0]
    for method in ("probe", "random_probe"):
        seeds = [r.seed for r in load_photo_budget()[0] if r.method == method]
        here = study.label_curve(runs, "photos", method).correct[2][seeds]
        np.testing.assert_array_equal(here, table(load_photo_budget()[0], method))
