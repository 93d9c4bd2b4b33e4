"""What holds of `theory.training` beyond the lesson.

Properties, bad input, and the frameworks' own layers.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.theory import training
from transfer_course.theory.training import (
    BatchNorm,
    activation,
    activations_of,
    clip_by_norm,
    deep_layers,
    gradient_flow,
    gradients_of,
    init_weights,
)

few = settings(max_examples=25, deadline=None, derandomize=True)
numbers = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.fixture(scope="module")
def torch():
    from transfer_course.engine.frameworks import load_torch

    return load_torch()


@pytest.fixture(scope="module")
def keras():
    from transfer_course.engine.frameworks import load_keras

    return load_keras()


def arrays(keras, value):
    return keras.ops.convert_to_numpy(value)


def test_only_numpy_and_its_own_room_are_imported():
    tree = ast.parse(Path(training.__file__).read_text(encoding="utf-8"))
    froms = {
        (n.level, n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
    }
    plain = {
        a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    assert plain == {"numpy"} and froms == {(1, "losses")}


# ---- activations


@few
@given(
    st.lists(numbers, min_size=1, max_size=20),
    st.sampled_from(["relu", "tanh", "sigmoid", "identity"]),
)
def test_values_and_slopes_are_finite_and_slopes_never_exceed_one(x, kind):
    value, slope = activation(np.array(x), kind)
    assert np.isfinite(value).all() and (slope >= 0).all() and (slope <= 1).all()
    assert kind != "sigmoid" or slope.max() <= 0.25


@few
@given(
    st.lists(numbers, min_size=2, max_size=20),
    st.sampled_from(["relu", "tanh", "sigmoid", "identity"]),
)
def test_activations_never_fall(x, kind):
    assert (np.diff(activation(np.sort(x), kind)[0]) >= -1e-12).all()


def test_relu_has_slope_zero_at_zero_as_in_torch(torch):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    torch.relu(x).sum().backward()
    assert activation(np.zeros(1))[1] == x.grad.numpy() == 0


def test_an_unknown_activation_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="no activation 'swish'.*relu, tanh, sigmoid"):
        activation(np.zeros(2), "swish")


# ---- starts


@pytest.mark.parametrize(
    "kind,torch_name,keras_name",
    [
        ("he", "kaiming_normal_", "HeNormal"),
        ("xavier", "xavier_normal_", "GlorotNormal"),
        ("lecun", None, "LecunNormal"),
    ],
)
def test_starts_spread_as_those_of_both_frameworks(
    torch, keras, kind, torch_name, keras_name
):
    ours = init_weights(300, 200, kind)
    assert ours.shape == (200, 300)  # (outputs, inputs), as lesson 03 and PyTorch
    theirs = [
        arrays(keras, getattr(keras.initializers, keras_name)(seed=0)((300, 200)))
    ]
    if torch_name:
        torch.manual_seed(0)
        how = {"nonlinearity": "relu"} if kind == "he" else {}
        theirs.append(
            getattr(torch.nn.init, torch_name)(torch.empty(200, 300), **how).numpy()
        )
    assert abs(ours.mean()) < 5 * ours.std() / ours.size**0.5
    assert all(abs(ours.std() / t.std() - 1) < 0.02 for t in theirs)


def test_a_number_is_a_scale_and_zeros_are_zeros():
    assert np.allclose(init_weights(9, 4, 3.0, 5), 3 * init_weights(9, 4, "lecun", 5))
    assert not init_weights(9, 4, "zeros").any() and not init_weights(9, 4, 0).any()


def test_one_generator_gives_different_layers_and_one_seed_the_same():
    rng = np.random.default_rng(0)
    assert not np.array_equal(
        init_weights(3, 3, seed=rng), init_weights(3, 3, seed=rng)
    )
    assert np.array_equal(init_weights(3, 3, seed=1), init_weights(3, 3, seed=1))


@pytest.mark.parametrize("kind", ["glorot", -1.0])
def test_a_start_that_does_not_exist_is_refused(kind):
    with pytest.raises(
        ValueError, match="expected he, lecun, xavier, zeros, or a number"
    ):
        init_weights(3, 3, kind)


# ---- gradients by depth


@pytest.mark.parametrize(
    "kind,scale,residual,norm",
    [
        ("relu", "he", 0.0, False),
        ("sigmoid", 1.0, 0.5, False),
        ("tanh", 3.0, 0.0, True),
        ("relu", 1.0, 1.0, True),
    ],
)
def test_gradient_flow_is_what_autograd_finds_in_the_same_network(
    torch, kind, scale, residual, norm
):
    depth, width, batch = 6, 12, 10
    rng = np.random.default_rng(3)
    h = [torch.tensor(rng.normal(size=(batch, width)), requires_grad=True)]
    for _ in range(depth):
        z = h[-1] @ torch.tensor(init_weights(width, width, scale, rng)).T
        y = getattr(torch, kind)(
            torch.nn.functional.batch_norm(z, None, None, training=True) if norm else z
        )
        h.append(h[-1] + residual * y if residual else y)
    top = torch.tensor(rng.normal(size=(batch, width)))
    lengths = [g.norm().item() for g in torch.autograd.grad(h[-1], h, top / top.norm())]
    ours = gradient_flow(depth, kind, scale, residual, norm, width, batch, seed=3)
    np.testing.assert_allclose(ours, lengths, rtol=1e-9)


@pytest.mark.parametrize("residual,norm", [(0.0, False), (0.3, False), (1.0, True)])
def test_gradients_of_all_parameters_are_autograds(torch, residual, norm):
    rng = np.random.default_rng(5)
    layers = deep_layers(4, "tanh", 1.3, residual, norm, width=6, seed=rng)
    for layer in layers:
        for parameter in layer.parameters():
            parameter += rng.normal(0, 0.2, parameter.shape)
    x, top = rng.normal(size=(2, 9, 6))
    mine = [p for layer in layers for p in layer.parameters()]
    theirs = [torch.tensor(p, requires_grad=True) for p in mine]
    h, left = torch.tensor(x), iter(theirs)
    for _ in layers:
        z = torch.nn.functional.linear(h, next(left), next(left))
        if norm:
            scale, shift = next(left), next(left)
            z = torch.nn.functional.batch_norm(z, None, None, scale, shift, True)
        h = (h if residual else 0) + (residual or 1) * torch.tanh(z)
    np.testing.assert_allclose(activations_of(layers, x)[-1], h.detach(), atol=1e-10)
    _, grads = gradients_of(layers, top)
    wanted = torch.autograd.grad(h, theirs, torch.tensor(top))
    assert len(grads) == len(mine)
    for ours, their in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours, their.numpy(), atol=1e-9)


def test_a_layer_in_evaluation_mode_uses_the_stored_statistics():
    (layer,) = deep_layers(1, norm=True, width=5)
    x = np.random.default_rng(0).normal(3, 2, (8, 5))
    before = layer(x, training=False)
    layer(x)
    assert not np.allclose(before, layer(x, training=False))
    np.testing.assert_allclose(
        layer(x[:1], training=False), layer(x, training=False)[:1]
    )


def test_no_layers_leave_the_gradient_alone():
    np.testing.assert_allclose(gradient_flow(0), [1.0])


def test_identity_layers_with_residual_branch_of_zero_weights_pass_everything():
    np.testing.assert_allclose(gradient_flow(20, "identity", "zeros", residual=1.0), 1)


# ---- clipping


@few
@given(
    st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4),
    st.floats(1e-3, 1e3),
)
def test_clipping_bounds_the_length_and_keeps_the_direction(grads, limit):
    grads = [np.array(g) for g in grads]
    clipped, before = clip_by_norm(grads, limit)
    flat, long = np.concatenate(clipped), np.concatenate(grads)
    assert np.linalg.norm(flat) <= limit * (1 + 1e-9) and np.isclose(
        before, np.linalg.norm(long)
    )
    assert np.allclose(flat * np.linalg.norm(long), long * np.linalg.norm(flat))
    assert before > limit or np.array_equal(flat, long)


def test_clipping_is_that_of_both_frameworks(torch, keras):
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    ours, before = clip_by_norm(grads, 0.7)
    params = [
        torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads
    ]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.tensor(g)
    assert np.isclose(torch.nn.utils.clip_grad_norm_(params, 0.7).item(), before)
    variables = [keras.Variable(np.zeros(g.shape, "float32")) for g in grads]
    keras.optimizers.SGD(1.0, global_clipnorm=0.7).apply(
        [keras.ops.convert_to_tensor(g.astype("float32")) for g in grads], variables
    )
    for o, p, v in zip(ours, params, variables, strict=True):
        np.testing.assert_allclose(o, p.grad.numpy(), rtol=1e-6)
        np.testing.assert_allclose(o, -arrays(keras, v), rtol=1e-4, atol=1e-6)


def test_a_gradient_within_the_limit_is_never_lengthened():
    grads = [np.array([0.3]), np.array([[0.4]])]
    clipped, before = clip_by_norm(grads, 1)
    assert np.isclose(before, 0.5) and all(
        np.array_equal(c, g) for c, g in zip(clipped, grads, strict=True)
    )


def test_clipping_leaves_zeros_and_refuses_what_no_factor_mends():
    assert not clip_by_norm([np.zeros(3)], 1)[0][0].any()
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            clip_by_norm([np.array([1.0, bad])], 1)
    with pytest.raises(ValueError, match="above 0"):
        clip_by_norm([np.ones(2)], 0)


# ---- BatchNorm


@few
@given(st.integers(2, 40), st.floats(0.1, 100), st.floats(-100, 100))
def test_in_training_each_column_has_mean_beta_and_deviation_gamma(n, spread, centre):
    x, bn = np.random.default_rng(n).normal(centre, spread, (n, 3)), BatchNorm(3, eps=0)
    bn.gamma, bn.beta = np.array([1.0, 2, 0.5]), np.array([0.0, 5, -1])
    y = bn(x, training=True)
    np.testing.assert_allclose(y.mean(0), bn.beta, atol=1e-6)
    np.testing.assert_allclose(y.std(0), bn.gamma, rtol=1e-6)


def test_running_statistics_of_images_follow_both_frameworks_over_five_steps(
    torch, keras
):
    rng = np.random.default_rng(0)
    t_bn = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    k_bn = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    like_torch = BatchNorm(3)
    like_keras = BatchNorm(3, momentum=0.1, eps=1e-5, unbiased=False)
    for step in range(5):
        # Few pixels, so that N and N − 1 differ visibly.
        x = rng.normal(step, 1 + step, (2, 4, 4, 3))
        theirs = (
            t_bn(torch.tensor(x.transpose(0, 3, 1, 2)))
            .detach()
            .numpy()
            .transpose(0, 2, 3, 1)
        )
        ours = like_torch(x, training=True)
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
        out = arrays(keras, k_bn(x.astype("float32"), training=True))
        ours = like_keras(x, training=True)
        np.testing.assert_allclose(ours, out, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(like_torch.var, t_bn.running_var.numpy(), rtol=1e-10)
    np.testing.assert_allclose(like_torch.mean, t_bn.running_mean.numpy(), rtol=1e-10)
    np.testing.assert_allclose(
        like_keras.var, arrays(keras, k_bn.moving_variance), rtol=1e-4
    )
    # The two conventions are two.
    assert not np.allclose(like_torch.var, like_keras.var, rtol=1e-3)


def test_gradients_of_scale_and_shift_are_autograds(torch):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 4))
    g = rng.normal(size=(7, 4))
    bn = BatchNorm(4)
    t_bn = torch.nn.BatchNorm1d(4, dtype=torch.float64)
    bn.gamma, bn.beta = rng.normal(size=(2, 4))
    t_bn.load_state_dict(
        {
            **t_bn.state_dict(),
            "weight": torch.tensor(bn.gamma),
            "bias": torch.tensor(bn.beta),
        }
    )
    for training_mode in (True, False):
        tx = torch.tensor(x, requires_grad=True)
        bn(x, training_mode)
        theirs = torch.autograd.grad(
            t_bn.train(training_mode)(tx), [tx, t_bn.weight, t_bn.bias], torch.tensor(g)
        )
        for ours, their in zip(bn.backward(g), theirs, strict=True):
            np.testing.assert_allclose(ours, their.numpy(), atol=1e-10)


def test_the_gradient_of_images_is_that_of_all_their_pixels_as_rows():
    rng = np.random.default_rng(2)
    x, grad = rng.normal(size=(2, 3, 4, 4, 2))
    images, rows = BatchNorm(2), BatchNorm(2)
    images(x, training=True)
    rows(x.reshape(-1, 2), training=True)
    of_images = images.backward(grad)
    of_rows = rows.backward(grad.reshape(-1, 2))
    np.testing.assert_allclose(of_images[0].reshape(-1, 2), of_rows[0], atol=1e-12)
    for ours, theirs in zip(of_images[1:], of_rows[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_one_image_can_train_because_its_pixels_are_many():
    y = BatchNorm(1)(np.arange(16.0).reshape(1, 4, 4, 1), training=True)
    assert abs(y.mean()) < 1e-9 and abs(y.std() - 1) < 1e-4


def test_evaluation_changes_nothing_and_knows_no_neighbours():
    bn, x = BatchNorm(2), np.random.default_rng(0).normal(3, 2, (9, 2))
    bn(x, training=True)
    mean, var = bn.mean.copy(), bn.var.copy()
    together = bn(x, training=False)
    np.testing.assert_allclose(
        together, np.vstack([bn(row[None], training=False) for row in x])
    )
    assert np.array_equal(mean, bn.mean) and np.array_equal(var, bn.var)


def test_one_row_cannot_train_and_leaves_the_statistics_alone():
    bn = BatchNorm(2)
    with pytest.raises(ValueError, match="1 value per channel; .* at least 2"):
        bn(np.ones((1, 2)), training=True)
    assert not bn.mean.any() and (bn.var == 1).all()
