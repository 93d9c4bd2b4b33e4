"""Minimisers, their paths and limits, for random bowls.

What stands still, what comes back, and what is refused.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.theory.descent import descend
from transfer_course.theory.objective import (
    Quadratic,
    TwoLayer,
    anchor,
    early_stop,
    fisher,
    frozen_head,
    joint_loss,
    least_squares,
    path,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)
worlds = st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(0, 10_000))
LAMBDAS = np.geomspace(1e-3, 1e3, 25)


def world(d, n, seed):
    """A target with n labels, a source with plenty, and a start.

    The labels may be fewer than the weights.
    """
    rng = np.random.default_rng(seed)
    target = least_squares(rng.normal(size=(n, d)), rng.normal(size=n))
    source = least_squares(rng.normal(size=(5 * d + 5, d)), rng.normal(size=5 * d + 5))
    return target, source, rng.normal(size=d)


@quick
@given(worlds)
def test_the_minimiser_is_flat_and_nearest_to_the_start(w):
    target, _, start = world(*w)
    end = target.minimiser(start)
    np.testing.assert_allclose(target.gradient(end), 0, atol=1e-8)
    h, V = np.linalg.eigh(target.H)
    # No step along a valley.
    np.testing.assert_allclose(V[:, h < 1e-10].T @ (end - start), 0, atol=1e-8)
    np.testing.assert_allclose(
        end,
        start + np.linalg.pinv(target.H, rcond=1e-10) @ (target.b - target.H @ start),
        atol=1e-6,
    )


@quick
@given(worlds)
def test_along_a_path_the_target_loses_and_the_other_gains(w):
    target, source, start = world(*w)
    for other in (source, anchor(start), anchor(np.zeros(len(start)))):
        way = path(target, other, LAMBDAS, start)
        assert (np.diff(target(way)) >= -1e-9).all() and (
            np.diff(other(way)) <= 1e-9
        ).all()


@quick
@given(worlds)
def test_ends_of_the_paths(w):
    target, source, start = world(*w)
    zero = np.zeros(len(start))
    for other, end in (
        (source, source.minimiser()),
        (anchor(start), start),
        (anchor(zero), zero),
    ):
        first, last = path(target, other, [0, 1e9], start)
        np.testing.assert_allclose(first, target.minimiser(start), atol=1e-8)
        np.testing.assert_allclose(last, end, atol=1e-5)


@quick
@given(worlds)
def test_the_sources_whole_curvature_is_the_sources_data(w):
    target, source, _ = world(*w)
    np.testing.assert_allclose(
        path(target, anchor(source.minimiser(), source.H), LAMBDAS),
        path(target, source, LAMBDAS),
        rtol=1e-6,
        atol=1e-8,
    )


@quick
@given(worlds, st.integers(0, 200))
def test_stopped_descent_is_its_closed_form(w, steps):
    target, _, start = world(*w)
    rate = 1 / np.linalg.eigvalsh(target.H)[-1]
    np.testing.assert_allclose(
        early_stop(target, start, rate, steps),
        descend(target.gradient, start, rate=rate, steps=steps)[-1],
        atol=1e-8,
    )
    assert early_stop(target, start, rate, np.arange(7)).shape == (7, len(start))


@quick
@given(worlds, st.floats(0, 10))
def test_a_frozen_backbone_leaves_a_bowl_for_the_head(w, lam):
    d, n, seed = w
    rng = np.random.default_rng(seed)
    features, y = rng.normal(size=(n, d)), rng.normal(size=n)
    head = frozen_head(features, y, lam)
    slope = features.T @ (features @ head - y) / n + lam * head
    np.testing.assert_allclose(slope, 0, atol=1e-8)
    if lam == 0:
        shortest = np.linalg.lstsq(features, y, rcond=1e-6)[0]
        np.testing.assert_allclose(head, shortest, atol=1e-5)


def test_weight_decay_is_ridge_regression_and_plain_sgds():
    linear_model = pytest.importorskip("sklearn.linear_model")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X, y, start = rng.normal(size=(6, 2)), rng.normal(size=6), rng.normal(size=2)
    decayed = least_squares(X, y) + 0.2 * anchor([0.0, 0.0])
    ridge = linear_model.Ridge(alpha=0.2 * 6, fit_intercept=False).fit(X, y).coef_
    np.testing.assert_allclose(decayed.minimiser(), ridge, atol=1e-6)
    np.testing.assert_allclose(frozen_head(X, y, 0.2), ridge, atol=1e-6)
    w = torch.tensor(start, requires_grad=True)
    sgd = torch.optim.SGD([w], lr=0.1, weight_decay=0.2)
    for _ in range(50):
        sgd.zero_grad()
        (((torch.tensor(X) @ w - torch.tensor(y)) ** 2).mean() / 2).backward()
        sgd.step()
    ours = descend(decayed.gradient, start, rate=0.1, steps=50)[-1]
    np.testing.assert_allclose(w.detach(), ours, atol=1e-10)


def test_two_layers_have_the_gradient_and_the_slopes_of_autograd():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(9, 2)), rng.normal(size=9)
    loss, points = TwoLayer(X, y), rng.normal(size=(4, 5, 2))
    assert loss(points).shape == (4, 5) and loss.gradient(points).shape == (4, 5, 2)
    for point in points.reshape(-1, 2):
        w = torch.tensor(point, requires_grad=True)
        predicted = w[1] * (torch.tensor(X[:, 0]) + w[0] * torch.tensor(X[:, 1]))
        value = ((predicted - torch.tensor(y)) ** 2).mean() / 2
        assert loss(point) == pytest.approx(value.item())
        (by_torch,) = torch.autograd.grad(value, w, retain_graph=True)
        np.testing.assert_allclose(loss.gradient(point), by_torch, atol=1e-12)
        rows = [torch.autograd.grad(p, w, retain_graph=True)[0] for p in predicted]
        np.testing.assert_allclose(loss.slopes(point), torch.stack(rows), atol=1e-12)
    where = points.reshape(-1, 2)
    np.testing.assert_allclose(loss(points).ravel(), [loss(w) for w in where])
    flat = loss.gradient(points).reshape(-1, 2)
    np.testing.assert_allclose(flat, [loss.gradient(w) for w in where])


def test_fisher_information_is_a_matrix_and_the_curvature_of_a_linear_model():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    np.testing.assert_allclose(fisher(X), least_squares(X, y).H)
    # Where every prediction is right, it is also the network's second derivative.
    X, w = rng.normal(size=(30, 2)), np.array([0.7, 1.3])
    loss, eps = TwoLayer(X, w[1] * (X[:, 0] + w[0] * X[:, 1])), 1e-6
    bent = [
        (loss.gradient(w + eps * e) - loss.gradient(w - eps * e)) / (2 * eps)
        for e in np.eye(2)
    ]
    np.testing.assert_allclose(fisher(loss.slopes(w)), bent, atol=1e-6)


def test_a_tilted_flat_direction_has_no_minimum():
    tilted = Quadratic(np.diag([1.0, 0.0]), [1.0, 1.0])
    for start in (None, [3.0, 4.0]):
        with pytest.raises(ValueError, match="falls for ever"):
            tilted.minimiser(start)
    # A stopped descent is somewhere all the same.
    way = descend(tilted.gradient, [3.0, 4.0], rate=0.5, steps=20)[-1]
    np.testing.assert_allclose(early_stop(tilted, [3.0, 4.0], 0.5, 20), way)
    level = Quadratic(np.zeros((2, 2)), [0.0, 0.0])
    assert (level.minimiser([3.0, 4.0]) == [3, 4]).all()
    assert (early_stop(level, [3.0, 4.0], 0.5, 20) == [3, 4]).all()


def test_sums_and_multiples_are_those_of_the_values():
    target, source, w = world(3, 9, 1)
    many = np.random.default_rng(0).normal(size=(4, 5, 3))
    np.testing.assert_allclose(
        (target + 2.5 * source)(many), target(many) + 2.5 * source(many)
    )
    eps = 1e-6
    slope = [(target(w + eps * e) - target(w - eps * e)) / (2 * eps) for e in np.eye(3)]
    np.testing.assert_allclose(target.gradient(w), slope, atol=1e-6)
    assert (0 * source)(w) == 0


def test_one_task_is_half_the_mean_squared_error():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(7, 4))
    Y = rng.normal(size=(7, 2))
    u = rng.normal(size=(4, 3))
    v = rng.normal(size=(3, 2))
    other = (rng.normal(size=(5, 4)), rng.normal(size=(5, 9)))
    alone = joint_loss(u, rng.normal(size=(3, 9)), v, other, (X, Y), 0)
    assert alone == pytest.approx(
        sum(least_squares(X @ u, y)(c) for y, c in zip(Y.T, v.T, strict=True))
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quadratic(np.eye(2), np.ones(3)),
        lambda: Quadratic([[1.0, 2.0], [0.0, 1.0]], [0.0, 0.0]),
        lambda: Quadratic(-np.eye(2), np.zeros(2)),
        lambda: -1 * Quadratic(np.eye(2), np.zeros(2)),
        lambda: least_squares(np.ones((1, 2)), np.ones(1)).minimiser(),
        lambda: least_squares(np.ones((3, 2)), np.ones(2)),
        lambda: TwoLayer(np.ones((3, 3)), np.ones(3)),
        lambda: TwoLayer(np.ones((3, 2)), np.ones(2)),
        lambda: fisher(np.ones(3)),
        lambda: Quadratic(np.diag([1.0, 0.0]), [0.0, 1.0]).minimiser([1.0, 1.0]),
        lambda: early_stop(Quadratic(np.eye(2), np.zeros(2)), np.ones(2), 2.5, 3),
        lambda: joint_loss(
            np.ones((2, 2)),
            np.ones((2, 9)),
            np.ones((2, 9)),
            (np.ones((1, 2)), np.ones((1, 9))),
            (np.ones((1, 2)), np.ones((1, 2))),
            1,
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make):
    with pytest.raises(ValueError, match="expected|has to be|give the start"):
        make()


def test_theory_needs_no_framework():
    code = (
        "import sys, transfer_course.theory.objective, "
        "transfer_course.theory.taxonomy as t; "
        "print(sorted({'torch', 'tensorflow', 'keras', 'matplotlib', 'sklearn', "
        "'scipy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
