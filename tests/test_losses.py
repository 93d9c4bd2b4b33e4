"""Losses and their gradients.

Properties, refusals, and the frameworks in float32 and at the extremes.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special

from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.theory.losses import (
    binary_cross_entropy,
    binary_cross_entropy_gradient,
    cross_entropy,
    cross_entropy_gradient,
    entropy,
    kl_divergence,
    kl_divergence_gradient,
    log_sigmoid,
    log_softmax,
    logsumexp,
    mse,
    mse_gradient,
    numerical_gradient,
    one_hot,
    sigmoid,
    softmax,
)

quick = settings(max_examples=50, deadline=None, derandomize=True)
numbers = st.floats(-1000, 1000)
rows = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: arrays(float, shape, elements=numbers)
)


@pytest.fixture(autouse=True)
def no_warnings():
    """Nothing overflows, divides by 0 or is invalid on finite logits."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        yield


@quick
@given(rows, st.floats(-1000, 1000))
def test_softmax_is_a_distribution_that_a_shift_leaves_alone(z, shift):
    p = softmax(z)
    assert (p >= 0).all() and p.sum(-1) == pytest.approx(np.ones(len(z)))
    np.testing.assert_allclose(softmax(z + shift), p, atol=1e-9)
    np.testing.assert_allclose(logsumexp(z + shift), logsumexp(z) + shift, atol=1e-9)
    assert (p[np.arange(len(z)), z.argmax(-1)] == p.max(-1)).all()


@quick
@given(rows)
def test_softmax_family_is_scipys_on_every_axis(z):
    for axis in (0, 1, -1):
        np.testing.assert_allclose(
            softmax(z, axis), special.softmax(z, axis), rtol=1e-10, atol=1e-300
        )
        np.testing.assert_allclose(
            log_softmax(z, axis), special.log_softmax(z, axis), rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(
            logsumexp(z, axis), special.logsumexp(z, axis), rtol=1e-10, atol=1e-12
        )


@quick
@given(arrays(float, 7, elements=numbers))
def test_sigmoid_is_scipys_and_its_complement_is_the_negative_logit(z):
    np.testing.assert_allclose(sigmoid(z), special.expit(z), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(log_sigmoid(z), special.log_expit(z), rtol=1e-10)
    np.testing.assert_allclose(sigmoid(z) + sigmoid(-z), 1)


def test_a_large_common_part_of_the_logits_does_not_hide_a_small_difference():
    """In PyTorch 0.4.1 the loss of (1e8, 1e8) was 0 instead of log 2.

    See pytorch/pytorch#11752.
    """
    assert cross_entropy(np.full((1, 2), 1e8, np.float32), [1]) == pytest.approx(
        np.log(2)
    )


@quick
@given(rows, st.integers(0, 1000), st.floats(0, 1))
def test_classification_losses_are_never_negative_and_gradients_add_up_to_nothing(
    z, seed, smoothing
):
    y = np.random.default_rng(seed).integers(0, z.shape[1], len(z))
    assert cross_entropy(z, y, smoothing) >= 0
    assert binary_cross_entropy(z, one_hot(y, z.shape[1])) >= 0
    assert cross_entropy_gradient(z, y, smoothing).sum(1) == pytest.approx(
        np.zeros(len(z)), abs=1e-12
    )


@quick
@given(rows, st.integers(0, 1000))
def test_kl_is_never_negative_nothing_to_itself_and_cross_entropy_minus_the_targets_own(
    z, seed
):
    q = np.random.default_rng(seed).dirichlet(np.ones(z.shape[1]), len(z))
    assert kl_divergence(z, q) >= 0
    # Rounding alone would end below 0 at times.
    assert 0 <= kl_divergence(z, softmax(z)) < 1e-9
    soft = -(q * log_softmax(z)).sum(1).mean()
    assert kl_divergence(z, q) == pytest.approx(
        soft - special.entr(q).sum(1).mean(), abs=1e-8
    )


@quick
@given(rows)
def test_entropy_is_scipys_and_largest_where_nothing_is_known(z):
    q = softmax(z)
    np.testing.assert_allclose(entropy(q), special.entr(q).sum(-1), atol=1e-12)
    assert (entropy(q) <= np.log(q.shape[1]) + 1e-12).all()
    assert entropy(np.eye(3)) == pytest.approx(np.zeros(3))


def test_kl_of_a_target_that_rules_classes_out():
    q = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    z = np.array([[3.0, -1.0, 0.0], [0.0, 0.0, 50.0]])
    assert kl_divergence(z, q) == pytest.approx(
        special.rel_entr(q, softmax(z)).sum(1).mean()
    )


def test_two_classes_are_the_binary_loss():
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 5, 20), rng.integers(0, 2, 20)
    assert cross_entropy(np.c_[np.zeros(20), z], y) == pytest.approx(
        binary_cross_entropy(z, y)
    )
    np.testing.assert_allclose(
        cross_entropy_gradient(np.c_[np.zeros(20), z], y)[:, 1],
        binary_cross_entropy_gradient(z, y),
    )


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_measured_slopes(seed):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, 3, (3, 5)), rng.integers(0, 5, 3)
    share, q = rng.random((3, 5)), rng.dirichlet(np.ones(5), 3)
    for loss, gradient, truth in (
        (binary_cross_entropy, binary_cross_entropy_gradient, share),
        (cross_entropy, cross_entropy_gradient, y),
        (
            lambda z, y: cross_entropy(z, y, 0.3),
            lambda z, y: cross_entropy_gradient(z, y, 0.3),
            y,
        ),
        (mse, mse_gradient, share),
        (kl_divergence, kl_divergence_gradient, q),
    ):
        measured = numerical_gradient(
            lambda z, loss=loss, truth=truth: loss(z, truth), z
        )
        np.testing.assert_allclose(gradient(z, truth), measured, atol=1e-8)


def test_with_smoothing_the_best_prediction_is_the_smoothed_target():
    t = one_hot([2, 0], 4, 0.2)
    assert (
        t.sum(1) == pytest.approx(np.ones(2))
        and t[0, 2] == pytest.approx(0.85)
        and t[0, 1] == pytest.approx(0.05)
    )
    np.testing.assert_allclose(
        cross_entropy_gradient(np.log(t), [2, 0], 0.2), 0, atol=1e-15
    )


def test_numerical_gradient_keeps_the_shape_and_its_argument():
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(
        numerical_gradient(lambda a: (a**3).sum(), x), 3 * x**2, atol=1e-6
    )
    np.testing.assert_array_equal(x, np.arange(6.0).reshape(2, 3))
    assert numerical_gradient(lambda a: a * a, 3).item() == pytest.approx(6)
    # Whole numbers take small steps too.
    assert numerical_gradient(np.sum, np.array([1, 2])).dtype == float
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        numerical_gradient(lambda a: a, np.zeros(3))


def test_the_type_of_the_logits_is_kept():
    z = np.array([[1.0, 2.0]], np.float32)
    for f in (softmax, log_softmax, logsumexp, sigmoid, log_sigmoid):
        assert f(z).dtype == np.float32 and f([[1, 2]]).dtype == float
    for gradient in (
        cross_entropy_gradient(z, [1]),
        binary_cross_entropy_gradient(z, z * 0),
        mse_gradient(z, z),
        kl_divergence_gradient(z, softmax(z)),
    ):
        assert gradient.dtype == np.float32
    for loss in (
        cross_entropy(z, [1]),
        binary_cross_entropy(z, z * 0),
        mse(z, z),
        kl_divergence(z, softmax(z)),
    ):
        assert type(loss) is float


bad = [[np.nan, 0.0]]
REFUSALS = {
    "no class": (lambda: softmax(np.zeros((3, 0))), "(3, 0)"),
    "a single number": (lambda: log_softmax(3.0), "(C,) or (N, C)"),
    "words": (lambda: sigmoid(["a"]), "real numbers"),
    "NaN": (lambda: logsumexp(bad), "NaN or infinity"),
    "infinity": (lambda: log_sigmoid(np.inf), "NaN or infinity"),
    "NaN in the loss": (lambda: cross_entropy(bad, [0]), "NaN or infinity"),
    "class number as yes or no": (
        lambda: binary_cross_entropy([0.0], [3]),
        "use cross_entropy",
    ),
    "negative label": (
        lambda: binary_cross_entropy_gradient([0.0], [-1]),
        "0 (no) or 1 (yes)",
    ),
    "shapes that would broadcast": (
        lambda: binary_cross_entropy(np.zeros((4, 1)), np.zeros(4)),
        "(4, 1)",
    ),
    "no example": (lambda: binary_cross_entropy([], []), "not empty"),
    "one-hot rows for class numbers": (
        lambda: cross_entropy(np.zeros((2, 3)), np.eye(3)[:2]),
        "y.argmax(1)",
    ),
    "one-hot row of one example": (
        lambda: cross_entropy(np.zeros((1, 3)), [[0, 1, 0]]),
        "y.argmax(1)",
    ),
    "probabilities for class numbers": (
        lambda: cross_entropy(np.zeros((2, 3)), [0.2, 0.8]),
        "whole numbers",
    ),
    "class that is not there": (
        lambda: cross_entropy(np.zeros((2, 3)), [0, 3]),
        "expected 0 … 2",
    ),
    "unlabelled": (
        lambda: cross_entropy_gradient(np.zeros((2, 3)), [0, -1]),
        "unlabelled",
    ),
    "another number of labels": (
        lambda: cross_entropy(np.zeros((2, 3)), [0]),
        "as many of both",
    ),
    "logits of one example": (
        lambda: cross_entropy(np.zeros(3), [0, 1, 2]),
        "an example a row",
    ),
    "no rows": (lambda: cross_entropy(np.zeros((0, 3)), []), "an example a row"),
    "smoothing in percent": (
        lambda: cross_entropy(np.zeros((1, 3)), [0], 10),
        "0 to 1",
    ),
    "squared error that would broadcast": (
        lambda: mse(np.zeros((4, 1)), np.zeros(4)),
        "same shape",
    ),
    "logits for a distribution": (
        lambda: kl_divergence(np.zeros((1, 3)), [[1.0, 2.0, 3.0]]),
        "Apply softmax",
    ),
    "negative share": (
        lambda: kl_divergence(np.zeros((1, 2)), [[1.5, -0.5]]),
        "Apply softmax",
    ),
    "entropy of logits": (lambda: entropy([1.0, 2.0]), "Apply softmax"),
    "entropy of a negative share": (lambda: entropy([1.5, -0.5]), "Apply softmax"),
    "distribution of one example": (
        lambda: kl_divergence_gradient(np.zeros(2), [0.5, 0.5]),
        "(N, C)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_what_was_expected(case):
    call, words = REFUSALS[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_one_output_needs_no_batch():
    assert softmax([0.0, 0.0]) == pytest.approx([0.5, 0.5]) and logsumexp(
        [0.0, 0.0]
    ) == pytest.approx(np.log(2))
    assert sigmoid(0.0) == 0.5 and softmax([[5.0]]) == 1


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_float32_and_extreme_logits_are_pytorchs(scale):
    torch = load_torch()
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    z = (scale * rng.normal(0, 1, (8, 5))).astype(np.float32)
    y, yes = rng.integers(0, 5, 8), rng.integers(0, 2, (8, 5)).astype(np.float32)
    q = rng.dirichlet(np.ones(5), 8).astype(np.float32)
    for ours, slope, truth, theirs in (
        (cross_entropy, cross_entropy_gradient, y, functional.cross_entropy),
        (
            binary_cross_entropy,
            binary_cross_entropy_gradient,
            yes,
            functional.binary_cross_entropy_with_logits,
        ),
        (mse, mse_gradient, q, functional.mse_loss),
        (
            kl_divergence,
            kl_divergence_gradient,
            q,
            lambda z, q: functional.kl_div(
                functional.log_softmax(z, 1), q, reduction="batchmean"
            ),
        ),
    ):
        t = torch.tensor(z, requires_grad=True)
        value = theirs(t, torch.tensor(truth))
        value.backward()
        assert ours(z, truth) == pytest.approx(value.item(), rel=1e-4)
        np.testing.assert_allclose(
            slope(z, truth), t.grad.numpy(), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_float32_and_extreme_logits_are_keras(scale):
    losses = load_keras().losses
    rng = np.random.default_rng(1)
    z = (scale * rng.normal(0, 1, (8, 5))).astype(np.float32)
    y, yes = rng.integers(0, 5, 8), rng.integers(0, 2, (8, 5)).astype(np.float32)
    sparse = losses.SparseCategoricalCrossentropy(from_logits=True)
    smoothed = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    assert cross_entropy(z, y) == pytest.approx(float(sparse(y, z)), rel=1e-4)
    assert cross_entropy(z, y, 0.2) == pytest.approx(
        float(smoothed(one_hot(y, 5), z)), rel=1e-4
    )
    assert binary_cross_entropy(z, yes) == pytest.approx(
        float(losses.BinaryCrossentropy(from_logits=True)(yes, z)), rel=1e-4
    )


def test_class_weights_are_divided_by_their_sum_in_pytorch_and_by_the_count_in_keras():
    """The lesson's exercise says so."""
    torch, losses = load_torch(), load_keras().losses
    rng = np.random.default_rng(2)
    z = rng.normal(0, 1, (6, 3))
    y = rng.integers(0, 3, 6)
    weight = np.array([1.0, 2.0, 5.0])
    each = -log_softmax(z)[np.arange(6), y]
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(z), torch.tensor(y), weight=torch.tensor(weight)
    ).item()
    assert theirs == pytest.approx((weight[y] * each).sum() / weight[y].sum())
    sparse = losses.SparseCategoricalCrossentropy(from_logits=True)
    assert float(sparse(y, z, sample_weight=weight[y])) == pytest.approx(
        (weight[y] * each).mean(), rel=1e-5
    )
