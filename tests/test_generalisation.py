"""What holds of `theory.generalisation` beyond the lesson.

Properties, bad input, and early stopping in Keras.
"""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.theory import generalisation
from transfer_course.theory.generalisation import dropout, k_fold

ROOT = Path(__file__).resolve().parent.parent
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def keras():
    from transfer_course.engine.frameworks import load_keras

    return load_keras()


def test_only_numpy_is_imported():
    tree = ast.parse(Path(generalisation.__file__).read_text(encoding="utf-8"))
    froms = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import)]
    assert {a.name for n in imports for a in n.names} == {"numpy"} and not froms


# ---- dropout


@few
@given(st.floats(0, 0.95), st.integers(0, 99))
def test_dropout_gives_zero_or_the_scaled_value_and_says_its_slope(p, seed):
    x = np.arange(1.0, 201)
    y, slope = dropout(x, p, np.random.default_rng(seed))
    assert np.array_equal(y, x * slope) and all(
        np.isclose(s, 0) or np.isclose(s, 1 / (1 - p)) for s in np.unique(slope)
    )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_dropped_is_p_and_the_mean_stays(p):
    y, slope = dropout(np.ones(100_000), p, np.random.default_rng(0))
    assert abs((slope == 0).mean() - p) < 5 * (p * (1 - p) / 1e5) ** 0.5
    assert abs(y.mean() - 1) < 5 * (p / (1 - p) / 1e5) ** 0.5


def test_evaluation_is_the_identity_and_draws_nothing():
    rng, fresh = np.random.default_rng(0), np.random.default_rng(0)
    assert np.array_equal(
        dropout(np.arange(5), 0.5, rng, training=False)[0], np.arange(5)
    )
    assert rng.random() == fresh.random()


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
def test_a_share_that_cannot_be_is_refused(p):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        dropout(np.ones(3), p, np.random.default_rng(0))


# ---- cross-validation and early stopping


@few
@given(st.integers(2, 60), st.integers(2, 10), st.integers(0, 9))
def test_each_example_is_held_out_once_and_trains_otherwise(n, k, seed):
    k = min(k, n)
    folds = k_fold(n, k, seed)
    assert sorted(np.concatenate([v for _, v in folds]).tolist()) == list(range(n))
    assert all(sorted(np.concatenate(f).tolist()) == list(range(n)) for f in folds)


def test_parts_have_the_sizes_of_scikit_learns():
    from sklearn.model_selection import KFold

    theirs = [
        len(v) for _, v in KFold(5, shuffle=True, random_state=0).split(np.zeros(23))
    ]
    assert [len(v) for _, v in k_fold(23, 5)] == theirs


@pytest.mark.parametrize("n,k", [(10, 1), (3, 5)])
def test_a_number_of_parts_that_cannot_be_is_refused(n, k):
    with pytest.raises(ValueError, match=f"k is {k} for {n} examples"):
        k_fold(n, k)


def test_the_exercise_on_early_stopping_does_what_keras_does(keras):
    cells = json.loads(
        (ROOT / "nbs/1_theory/04b_generalisation.ipynb").read_text(encoding="utf-8")
    )["cells"]
    solution = next(
        "".join(c["source"])
        for c in cells
        if "".join(c["source"]).startswith("def early_stop(")
    )
    room = {"np": np}
    exec(solution, room)
    for seed in range(20):
        losses = np.random.default_rng(seed).random(12).round(1).tolist()
        model = type("Model", (), {"stop_training": False})()
        stop = keras.callbacks.EarlyStopping(patience=3, mode="min")
        stop.set_model(model)
        stop.on_train_begin()
        for epoch, loss in enumerate(losses):
            stop.on_epoch_end(epoch, {"val_loss": loss})
            if model.stop_training:
                break
        assert room["early_stop"](losses, 3) == (stop.best_epoch, epoch + 1), losses
