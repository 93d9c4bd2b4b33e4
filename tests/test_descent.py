"""Gradient descent.

Limits of the rate, rules without side effects, gradients of any perceptron, and whole
training runs beside both frameworks.
"""

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.theory.descent import (
    adam,
    backward,
    descend,
    forward,
    loss_and_gradients,
    minibatches,
    mlp,
    momentum,
    rate_limit,
    sgd,
    train,
    update,
)
from transfer_course.theory.losses import numerical_gradient

quick = settings(max_examples=30, deadline=None, derandomize=True)
RULES = [
    (sgd, {}),
    (momentum, {"beta": 0.8}),
    (adam, {}),
    (adam, {"eps_hat": True, "eps": 1e-7}),
]


def bowl(seed, size=4):
    """A symmetric matrix with eigenvalues between 0.5 and 20."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return q @ np.diag(rng.uniform(0.5, 20, size)) @ q.T


@quick
@given(st.integers(0, 999), st.floats(0.05, 1.6))
def test_descent_on_a_bowl_is_its_closed_form_and_shrinks_only_below_the_limit(
    seed, part
):
    A = bowl(seed)
    rate = part * rate_limit(A)
    start = np.linalg.eigh(A)[1].sum(1)  # a bit of every direction
    path = descend(lambda w: A @ w, start, sgd, 30, rate=rate)
    np.testing.assert_allclose(
        path[-1],
        np.linalg.matrix_power(np.eye(4) - rate * A, 30) @ start,
        rtol=1e-6,
        atol=1e-12,
    )
    steep = np.abs(path @ np.linalg.eigh(A)[1][:, -1])
    if abs(part - 1) > 1e-3:
        assert (steep[-1] < steep[0]) == (part < 1)


@quick
@given(st.floats(0, 0.99), st.floats(0.1, 50), st.floats(0.01, 3))
def test_the_limit_with_momentum_is_where_the_spectral_radius_is_one(
    beta, curvature, part
):
    rate = part * rate_limit([[curvature]], beta)
    # (w, v) → w − rate (βv + λw), βv + λw.
    one_step = np.array([[1 - rate * curvature, -rate * beta], [curvature, beta]])
    radius = np.abs(np.linalg.eigvals(one_step)).max()
    if abs(part - 1) > 1e-3:
        assert (radius < 1) == (part < 1)


def test_the_path_stops_by_itself():
    assert len(descend(lambda w: 2 * w, 1.0, sgd, 500, tol=1e-3, rate=0.1)) < 50
    # tol=0 takes every step, even where nothing moves.
    assert len(descend(lambda w: 0 * w, np.ones(3), sgd, 5)) == 6
    # Diverges faster than any exponential.
    path = descend(lambda w: w**3, 10.0, sgd, 500, rate=1.0)
    assert len(path) < 30 and np.isfinite(path).all()


@pytest.mark.parametrize("rule, how", RULES)
def test_rules_leave_their_arguments_alone_and_keep_float32(rule, how):
    w, g = np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    state = None
    for _ in range(3):
        frozen = (
            None
            if state is None
            else [np.copy(s) for s in (state if isinstance(state, tuple) else (state,))]
        )
        new, after = rule(w, g, state, rate=0.1, **how)
        assert (
            new.dtype == np.float32
            and (new < w).all()
            and (w == 1).all()
            and (g == 0.5).all()
        )
        if frozen is not None:
            for a, b in zip(
                frozen, state if isinstance(state, tuple) else (state,), strict=True
            ):
                np.testing.assert_array_equal(a, b)
        state = after


def test_momentum_without_memory_is_plain_descent():
    A = bowl(0)
    plain, heavy = (
        descend(lambda w: A @ w, np.ones(4), *rule, 10, rate=0.02)
        for rule in ((sgd,), (momentum,))
    )
    assert not np.allclose(plain, heavy)
    np.testing.assert_array_equal(
        plain, descend(lambda w: A @ w, np.ones(4), momentum, 10, rate=0.02, beta=0.0)
    )


@quick
@given(st.floats(1e-3, 1e3), st.integers(1, 40))
def test_adams_step_in_a_steady_gradient_is_the_rate(size, steps):
    path = descend(
        lambda w: np.full_like(w, size), 0.0, adam, steps, rate=0.01, eps=0.0
    )
    np.testing.assert_allclose(path, -0.01 * np.arange(steps + 1), rtol=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-7])
def test_eps_hat_is_the_papers_faster_form(size):
    """alpha_t = rate sqrt(1 - beta2^t) / (1 - beta1^t), epsilon beside the raw root.

    This is the form just before section 2.1.
    """
    w, state, want, m, v = 0.0, None, 0.0, 0.0, 0.0
    for t in range(1, 21):
        g = size * np.sin(t)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        want -= 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        w, state = adam(w, g, state, rate=0.01, eps=1e-7, eps_hat=True)
    assert w == pytest.approx(want, rel=1e-9)


@quick
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_gradients_of_any_perceptron_are_the_measured_ones(sizes, n, seed):
    rng = np.random.default_rng(seed)
    params = {
        k: v + 0.1 * rng.standard_normal(v.shape) for k, v in mlp(sizes, seed).items()
    }
    x, y = rng.standard_normal((n, sizes[0])), rng.integers(0, sizes[-1], n)
    _, grads = loss_and_gradients(params, x, y)
    assert set(grads) == set(params)
    for k, w in params.items():
        np.testing.assert_allclose(
            grads[k],
            numerical_gradient(
                lambda v, k=k: loss_and_gradients(params | {k: v}, x, y)[0], w
            ),
            atol=1e-6,
        )


def test_a_perceptron_without_hidden_layer_is_its_head():
    params = mlp((3, 2))
    assert list(params) == ["head.weight", "head.bias"]
    logits, seen = forward(params, np.eye(3))
    np.testing.assert_allclose(logits, params["head.weight"].T)
    assert backward(params, seen, np.ones((3, 2)))["head.weight"].shape == (2, 3)


@quick
@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 9))
def test_minibatches_hold_every_row_once(n, batch, seed):
    parts = minibatches(n, batch, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert [len(p) for p in parts[:-1]] == [batch] * (len(parts) - 1) and 0 < len(
        parts[-1]
    ) <= batch


def test_the_gradient_of_minibatches_is_right_on_average():
    rng = np.random.default_rng(0)
    params, x, y = mlp((6, 5, 3)), rng.standard_normal((60, 6)), np.arange(60) % 3
    whole = loss_and_gradients(params, x, y)[1]
    parts = [
        loss_and_gradients(params, x[rows], y[rows])[1]
        for rows in minibatches(60, 12, rng)
    ]
    for k, grad in whole.items():
        np.testing.assert_allclose(np.mean([p[k] for p in parts], 0), grad, atol=1e-12)


def blobs(n=60):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return np.eye(3)[y] @ rng.standard_normal((3, 5)) + 0.1 * rng.standard_normal(
        (n, 5)
    ), y


def test_training_counts_its_updates_repeats_itself_and_leaves_the_start_alone():
    x, y = blobs()
    start = mlp((5, 8, 3))
    before = {k: v.copy() for k, v in start.items()}
    one, losses = train(start, x, y, momentum, epochs=3, batch=32, rate=0.1)
    two, again = train(start, x, y, momentum, epochs=3, batch=32, rate=0.1)
    assert len(losses) == 3 * 2 and losses[-1] < losses[0]
    np.testing.assert_array_equal(losses, again)
    for k in start:
        np.testing.assert_array_equal(start[k], before[k])
        np.testing.assert_array_equal(one[k], two[k])
        assert not np.array_equal(one[k], start[k])
    assert not np.array_equal(
        train(start, x, y, momentum, epochs=3, batch=32, rate=0.1, seed=1)[1], losses
    )


@pytest.mark.parametrize("rule, how", RULES[:3])
def test_twenty_updates_of_the_perceptron_are_pytorchs(rule, how):
    torch = load_torch()
    x, y = np.random.default_rng(0).random((160, 784)), np.arange(160) % 10
    params = mlp()
    L = torch.nn.Linear
    layers = OrderedDict(
        hidden1=L(784, 128),
        a=torch.nn.ReLU(),
        hidden2=L(128, 64),
        b=torch.nn.ReLU(),
        head=L(64, 10),
    )
    net = torch.nn.Sequential(layers).double()
    net.load_state_dict({k: torch.tensor(v) for k, v in params.items()})
    make = {
        sgd: torch.optim.SGD,
        momentum: lambda w, lr: torch.optim.SGD(w, lr, momentum=0.8),
        adam: torch.optim.Adam,
    }[rule]
    optimiser, rng = make(net.parameters(), lr=0.01), np.random.default_rng(3)
    for rows in (rows for _ in range(4) for rows in minibatches(160, 32, rng)):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(
            net(torch.tensor(x[rows])), torch.tensor(y[rows])
        ).backward()
        optimiser.step()
    ours, losses = train(
        params, x, y, rule, epochs=4, batch=32, seed=3, rate=0.01, **how
    )
    assert len(losses) == 20
    for k, w in net.named_parameters():
        np.testing.assert_allclose(ours[k], w.detach().numpy(), rtol=1e-6, atol=1e-8)


def test_twenty_updates_of_the_perceptron_are_keras():
    keras = load_keras()
    x = np.random.default_rng(0).random((160, 784)).astype(np.float32)
    y = np.arange(160) % 10
    params = mlp(dtype=np.float32)
    D = keras.layers.Dense
    model = keras.Sequential(
        [keras.Input((784,)), D(128, "relu"), D(64, "relu"), D(10)]
    )
    model.set_weights([v.T for v in params.values()])
    assert model.count_params() == 109_386
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(3)
    for rows in (rows for _ in range(4) for rows in minibatches(160, 32, rng)):
        model.train_on_batch(x[rows], y[rows])
    ours, _ = train(params, x, y, momentum, epochs=4, batch=32, seed=3, rate=0.01)
    for a, b in zip(ours.values(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b.T, rtol=1e-4, atol=1e-6)


BEGIN = np.random.default_rng(1).standard_normal(6)
# Twenty gradients for six weights, of very different sizes.
PUSHES = 1 + 0.5 * np.random.default_rng(0).standard_normal((20, 6))
PUSHES *= 10.0 ** -np.arange(0, 12, 2)


def moved_here(rule, rates, **how):
    w, state = BEGIN, None
    for grad, rate in zip(PUSHES, rates, strict=True):
        w, state = rule(w, grad, state, rate=rate, **how)
    return w - BEGIN


def moved_in_torch(make, rates):
    torch = load_torch()
    w = torch.nn.Parameter(torch.tensor(BEGIN))
    optimizer = make(torch.optim, [w])
    for grad, rate in zip(PUSHES, rates, strict=True):
        w.grad, optimizer.param_groups[0]["lr"] = torch.tensor(grad), rate
        optimizer.step()
    return w.detach().numpy() - BEGIN


def moved_in_keras(make, rates):
    keras = load_keras()
    optimizer, w = make(keras.optimizers), keras.Variable(BEGIN, dtype="float64")
    for grad, rate in zip(PUSHES, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(grad)], [w])
    return keras.ops.convert_to_numpy(w) - BEGIN


@pytest.mark.parametrize(
    "rule, how, in_torch, in_keras",
    [
        (sgd, {}, lambda o, w: o.SGD(w), lambda o: o.SGD()),
        (
            momentum,
            {},
            lambda o, w: o.SGD(w, momentum=0.9),
            lambda o: o.SGD(momentum=0.9),
        ),
        (adam, {}, lambda o, w: o.Adam(w), None),
        (adam, {"eps": 1e-7, "eps_hat": True}, None, lambda o: o.Adam()),
    ],
)
def test_the_rules_move_as_both_frameworks_do(rule, how, in_torch, in_keras):
    """Gradients down to 1e-10: there the two places of Adam's epsilon differ."""
    ours = moved_here(rule, [0.01] * 20, **how)
    if in_torch:
        theirs = moved_in_torch(in_torch, [0.01] * 20)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    if in_keras:  # which keeps the rate in float32
        theirs = moved_in_keras(in_keras, [0.01] * 20)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_when_the_rate_changes_momentum_is_pytorchs_and_not_keras():
    cut = [0.01] * 10 + [0.001] * 10
    ours = moved_here(momentum, cut)
    in_torch = moved_in_torch(lambda o, w: o.SGD(w, momentum=0.9), cut)
    in_keras = moved_in_keras(lambda o: o.SGD(momentum=0.9), cut)
    np.testing.assert_allclose(ours, in_torch, rtol=1e-9)
    assert not np.allclose(ours, in_keras, rtol=1e-2)


@pytest.mark.parametrize("rate", [0, -0.1, np.nan, np.inf])
@pytest.mark.parametrize("rule", [sgd, momentum, adam])
def test_a_rate_that_leads_nowhere_is_refused(rule, rate):
    with pytest.raises(ValueError, match="positive"):
        rule(1.0, 0.5, rate=rate)


@pytest.mark.parametrize("rule", [sgd, momentum, adam])
def test_a_gradient_of_another_shape_is_refused_instead_of_broadcast(rule):
    with pytest.raises(ValueError, match="one derivative for each weight"):
        rule(np.ones((3, 1)), np.ones(3))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: rate_limit([1.0, 25.0]), "np.diag"),
        (lambda: rate_limit([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (lambda: rate_limit(np.diag([1.0, -1.0])), "no minimum"),
        (lambda: rate_limit([[1.0]], beta=1.0), "without 1"),
        (lambda: mlp((784,)), "two or more"),
        (lambda: mlp((784, 0, 10)), "positive"),
        (
            lambda: update(sgd, mlp((2, 2)), {"head.weight": np.ones((2, 2))}),
            "head.bias",
        ),
        (lambda: minibatches(10, 0, np.random.default_rng(0)), "1 or more"),
        (lambda: forward(mlp(), np.ones((2, 28, 28))), "reshape"),
        (lambda: forward(mlp(), np.ones((2, 64))), "784"),
        (lambda: train(mlp((2, 2)), np.ones((4, 2)), np.zeros((4, 1), int)), r"\(N,\)"),
        (lambda: train(mlp((2, 2)), np.ones((4, 2)), np.zeros(3, int)), "as many"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_flat_bowl_has_no_limit():
    assert rate_limit([[0.0]]) == np.inf


def test_the_module_needs_numpy_alone():
    code = (
        "import sys, transfer_course.theory.descent; "
        "print([m for m in ('torch', 'tensorflow', 'keras', 'sklearn', "
        "'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
