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
    anchor,
    early_stop,
    frozen,
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
@given(worlds, st.data())
def test_frozen_weights_stay_and_the_free_ones_are_optimal(w, data):
    target, _, start = world(*w)
    free = sorted(data.draw(st.sets(st.integers(0, len(start) - 1), min_size=1)))
    found = frozen(target, start, free)
    held = [i for i in range(len(start)) if i not in free]
    assert (found[held] == start[held]).all()
    np.testing.assert_allclose(target.gradient(found)[free], 0, atol=1e-8)
    if len(free) == len(start):
        np.testing.assert_allclose(found, target.minimiser(start), atol=1e-8)


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
