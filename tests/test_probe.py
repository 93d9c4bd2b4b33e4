"""`linear_probe`'s options against scikit-learn written out, and what it refuses."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transfer_course.engine.errors import BadValue
from transfer_course.vision.features import head_from_probe, linear_probe

rng = np.random.default_rng(0)
y = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
Z = rng.gamma(0.5, 1.0, (90, 20)) * (1 + 2 * np.eye(3, 20)[y])


@pytest.mark.parametrize("roots", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_options_are_what_they_say(roots, balanced):
    probe = linear_probe(Z, y, grid=(0.03,), roots=roots, balanced=balanced)
    X = np.sqrt(Z) - np.sqrt(Z).mean(0) if roots else (Z - Z.mean(0)) / Z.std(0)
    plain = LogisticRegression(
        C=0.03, max_iter=5000, tol=1e-8, class_weight="balanced" if balanced else None
    ).fit(X, y)
    np.testing.assert_allclose(
        probe.predict_proba(Z), plain.predict_proba(X), atol=2e-3
    )


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(BadValue, match="at least 0; the least is -1"):
        linear_probe(Z - 1 - Z.min(), y, roots=True)
    with pytest.raises(BadValue, match="no linear layer"):
        head_from_probe(linear_probe(Z, y, roots=True), 3)
