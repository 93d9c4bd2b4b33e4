"""`linear_probe` against scikit-learn written out, and what it refuses."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from transfer_course.engine.errors import BadValue
from transfer_course.vision import features, probing
from transfer_course.vision.features import GRID, head_from_probe, linear_probe

rng = np.random.default_rng(0)
y = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
Z = rng.gamma(0.5, 1.0, (90, 20)) * (1 + 2 * np.eye(3, 20)[y])
WIDE = np.concatenate([Z, rng.normal(size=(90, 200))], axis=1)  # more than rows


@pytest.mark.parametrize("roots", [False, True])
@pytest.mark.parametrize("weights", [None, "balanced", (1.0, 2.0, 0.5)])
@pytest.mark.parametrize("features", [Z, np.abs(WIDE)], ids=["tall", "wide"])
def test_the_options_are_what_they_say(roots, weights, features):
    probe = linear_probe(features, y, class_weights=weights, grid=(0.03,), roots=roots)
    X = np.sqrt(features) if roots else features / features.std(0)
    given = dict(enumerate(weights)) if isinstance(weights, tuple) else weights
    plain = LogisticRegression(C=0.03, max_iter=5000, tol=1e-8, class_weight=given)
    np.testing.assert_allclose(
        probe.predict_proba(features),
        plain.fit(X - X.mean(0), y).predict_proba(X - X.mean(0)),
        atol=2e-3,
    )


def test_balanced_is_the_same_as_its_weights_written_out():
    written = compute_class_weight("balanced", classes=np.arange(3), y=y)
    a = linear_probe(Z, y, class_weights="balanced", grid=(0.1,))
    b = linear_probe(Z, y, class_weights=list(written), grid=(0.1,))
    np.testing.assert_allclose(a[-1].coef_, b[-1].coef_, atol=1e-10)
    none = linear_probe(Z, y, class_weights=None, grid=(0.1,))
    assert np.abs(none[-1].coef_ - a[-1].coef_).max() > 0.01


@pytest.mark.parametrize("data", [Z, WIDE], ids=["tall", "wide"])
def test_c_is_chosen_as_by_a_pipeline_inside_the_cross_validation(data):
    """The scaler of a fold has seen nothing of the fold's held-out images."""
    groups = rng.permutation(np.repeat(np.arange(45), 2))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": GRID},
        scoring="neg_log_loss",
        cv=probing.probe_folds(y, groups),
    ).fit(data, y)
    probe = linear_probe(data, y, groups, class_weights=None)
    assert search.best_params_["logisticregression__C"] == probe[-1].C


def test_held_out_images_do_not_move_the_scaler(monkeypatch):
    """Each fold scales with its own training rows: no call sees all of them first."""
    seen = []
    scaled = features.scaled
    monkeypatch.setattr(
        features, "scaled", lambda Z, std: seen.append(len(Z)) or scaled(Z, std)
    )
    linear_probe(Z, y)
    assert len(seen) == 4 and seen[-1] == len(Z) and max(seen[:-1]) < len(Z)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(BadValue, match="at least 0; the least is -1"):
        linear_probe(Z - 1 - Z.min(), y, roots=True)
    with pytest.raises(BadValue, match="no linear layer"):
        head_from_probe(linear_probe(Z, y, roots=True), 3)


@pytest.mark.parametrize(
    "weights", ["equal", (1, 2), (1, 2, 0), (1, 2, np.nan), 3, (1, 2, "a"), {0: 1}]
)
def test_class_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(BadValue, match="for each of the 3 classes"):
        linear_probe(Z, y, class_weights=weights)
