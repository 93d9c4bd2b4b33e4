"""Convolution written by hand.

It equals the frameworks', its gradients are adjoint, its counts are right, and mistakes
are told.
"""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.classroom.windows import window_at, window_starts
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.theory.convolution import (
    VGG16,
    Layer,
    conv2d,
    im2col,
    input_gradient,
    layer_table,
    out_size,
    pool2d,
    same_padding,
    weight_gradient,
    windows,
)

keras = load_keras()
torch = load_torch()
F = torch.nn.functional
# torch, where TensorFlow has looked for a GPU before it.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization")
few = settings(max_examples=25, deadline=None, derandomize=True)
hows = st.fixed_dictionaries(
    dict(
        stride=st.integers(1, 3),
        padding=st.integers(0, 3),
        dilation=st.integers(1, 2),
        groups=st.sampled_from([1, 2, 4]),
    )
)
kernels = st.tuples(st.integers(1, 3), st.integers(1, 4))
sizes = st.tuples(st.integers(7, 10), st.integers(7, 10))


def numbers(how, kernel, size, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 4, *size))
    w = rng.normal(size=(8, 4 // how["groups"], *kernel))
    b = rng.normal(size=8)
    return x, w, b, rng.normal(size=conv2d(x, w, b, **how).shape)


@few
@given(hows, kernels, sizes)
def test_output_and_gradients_are_torchs(how, kernel, size):
    x, w, b, dy = numbers(how, kernel, size)
    X, W, B = (torch.tensor(a, requires_grad=True) for a in (x, w, b))
    Y = F.conv2d(X, W, B, **how)
    Y.backward(torch.tensor(dy))
    np.testing.assert_allclose(conv2d(x, w, b, **how), Y.detach(), atol=1e-6)
    np.testing.assert_allclose(input_gradient(dy, w, size, **how), X.grad, atol=1e-6)
    np.testing.assert_allclose(weight_gradient(x, dy, kernel, **how), W.grad, atol=1e-6)
    np.testing.assert_allclose(dy.sum((0, 2, 3)), B.grad, atol=1e-6)


@few
@given(hows, kernels, sizes, st.booleans())
def test_gradients_are_the_adjoint_of_the_layer(how, kernel, size, same):
    """⟨conv(x, w), dy⟩ = ⟨x, dx⟩ = ⟨w, dw⟩ for every x, w and dy.

    This must hold because the layer is linear in each of the two.
    """
    how = how | dict(padding="same") if same else how
    x, w, _, dy = numbers(how, kernel, size)
    other_x, other_w, _, _ = numbers(how, kernel, size, seed=1)
    np.testing.assert_allclose(
        np.vdot(conv2d(other_x, w, **how), dy),
        np.vdot(other_x, input_gradient(dy, w, size, **how)),
    )
    np.testing.assert_allclose(
        np.vdot(conv2d(x, other_w, **how), dy),
        np.vdot(other_w, weight_gradient(x, dy, kernel, **how)),
    )


@pytest.mark.parametrize(
    "n, k, s, d", itertools.product((7, 8, 33), (1, 2, 3, 5), (1, 2, 3), (1, 2))
)
def test_same_keeps_as_many_places_as_strides_fit(n, k, s, d):
    before, after = same_padding(n, k, s, d)
    assert after - before in (0, 1), "the odd zero goes to the end"
    assert (
        out_size(n, k, s, "same", d)
        == -(-n // s)
        == len(range(0, n + before + after - d * (k - 1), s))
    )


@pytest.mark.parametrize(
    "n, k, s, d", itertools.product((3, 7, 8), (1, 2, 3, 5), (1, 2, 3), (1, 2))
)
def test_the_drawn_window_stands_where_the_layer_computes(n, k, s, d):
    pads = same_padding(n, k, s, d)
    for padding, drawn in ((0, 0), (2, 2), ("same", pads)):
        try:
            places = out_size(n, k, s, padding, d)
        except ValueError:
            with pytest.raises(ValueError, match="does not fit"):
                window_starts(n, k, s, drawn, d)
            continue
        assert len(window_starts(n, k, s, drawn, d)) == places
    if d * (k - 1) < n:
        x = np.arange(n * n).reshape(n, n)
        seen = windows(x, (k, k), s, d)
        step = seen.shape[0] ** 2 - 1
        cell, rows, columns = window_at(step, n, k, s, dilation=d)
        np.testing.assert_array_equal(seen[cell], x[np.ix_(rows, columns)])


@pytest.mark.parametrize("side, stride", [(8, 2), (9, 2), (9, 3), (10, 3)])
def test_same_with_a_stride_is_keras_and_not_torchs_padding(side, stride):
    x, w, _, _ = numbers(dict(groups=1), (3, 3), (side, side))
    layer = keras.layers.Conv2D(8, 3, stride, "same", use_bias=False, dtype="float64")
    layer.build((None, side, side, 4))
    layer.set_weights([w.transpose(2, 3, 1, 0)])
    theirs = np.asarray(layer(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(
        conv2d(x, w, stride=stride, padding="same"), theirs, atol=1e-6
    )
    odd = same_padding(side, 3, stride) != (1, 1)
    assert odd != np.allclose(
        conv2d(x, w, stride=stride, padding=1)[:, :, :3, :3], theirs[:, :, :3, :3]
    )


def in_keras(x, w, b, dy, stride=1, padding=0, groups=1):
    """Output, and gradients by input, weights and bias, from Keras."""
    kept = dict(groups=groups, padding=padding or "valid", dtype="float64")
    layer = keras.layers.Conv2D(len(w), w.shape[2:], stride, **kept)
    X, dY = (keras.ops.convert_to_tensor(a.transpose(0, 2, 3, 1)) for a in (x, dy))
    layer.build(X.shape)
    layer.set_weights([w.transpose(2, 3, 1, 0), b])
    variables = [v.value for v in layer.trainable_weights]
    if keras.config.backend() == "torch":
        Y = layer(X.requires_grad_())
        results = [Y, *torch.autograd.grad(Y, [X, *variables], dY)]
    else:
        import tensorflow

        with tensorflow.GradientTape() as tape:
            tape.watch(X)
            Y = layer(X)
        results = [Y, *tape.gradient(Y, [X, *variables], dY)]
    Y, dX, dW, dB = map(keras.ops.convert_to_numpy, results)
    return [a.transpose(0, 3, 1, 2) for a in (Y, dX)] + [dW.transpose(3, 2, 0, 1), dB]


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 10)])
@pytest.mark.parametrize(
    "how",
    [dict(stride=2, padding="same"), dict(groups=4), dict(groups=2, padding="same")],
    ids=str,
)
def test_output_and_gradients_are_keras(how, size):
    x, w, b, dy = numbers(dict(groups=1) | how, (3, 3), size)
    ours = [
        conv2d(x, w, b, **how),
        input_gradient(dy, w, size, **how),
        weight_gradient(x, dy, (3, 3), **how),
        dy.sum((0, 2, 3)),
    ]
    with keras.device("cpu"):
        theirs = in_keras(x, w, b, dy, **how)
    for a, c in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-10)


def test_one_kernel_a_channel_is_keras_depthwise_layer():
    x = np.random.default_rng(0).normal(size=(2, 5, 9, 8))
    w = np.random.default_rng(1).normal(size=(5, 1, 3, 3))
    layer = keras.layers.DepthwiseConv2D(
        3, padding="same", use_bias=False, dtype="float64"
    )
    layer.build((None, 9, 8, 5))
    layer.set_weights([w.transpose(2, 3, 0, 1)])
    theirs = np.asarray(layer(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(
        conv2d(x, w, padding="same", groups=5), theirs, atol=1e-6
    )


def test_two_linear_layers_are_one_with_a_larger_kernel():
    """3 × 3 after 3 × 3 sees 5 × 5.

    Without something between them they are a 5 × 5 kernel: their full convolution.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 1, 9, 9))
    v = rng.normal(size=(1, 1, 3, 3))
    w = rng.normal(size=(1, 1, 3, 3))
    one = conv2d(np.pad(v, ((0, 0), (0, 0), (2, 2), (2, 2))), w[:, :, ::-1, ::-1])
    np.testing.assert_allclose(conv2d(conv2d(x, v), w), conv2d(x, one), atol=1e-12)
    assert (
        layer_table([Layer("v", 1), Layer("w", 1)], (1, 9, 9))[-1].sees
        == one.shape[-1]
        == 5
    )


def test_types_stay_and_arguments_are_not_written_to():
    x, w, b, dy = (a.astype("float32") for a in numbers(dict(groups=1), (3, 3), (8, 8)))
    kept = [a.copy() for a in (x, w, dy)]
    results = (
        conv2d(x, w, b),
        input_gradient(dy, w, (8, 8)),
        weight_gradient(x, dy, (3, 3)),
        pool2d(x),
    )
    assert {r.dtype for r in results} == {np.dtype("float32")}
    assert all((a == old).all() for a, old in zip((x, w, dy), kept, strict=True))
    assert (
        conv2d(np.ones((1, 1, 4, 4), int), np.ones((1, 1, 2, 2), int)).dtype.kind == "i"
    )


def test_windows_are_a_view_that_refuses_to_be_written_to():
    x = np.arange(30.0).reshape(5, 6)
    seen = windows(x, (2, 3), stride=2)
    assert seen.shape == (2, 2, 2, 3) and np.shares_memory(x, seen)
    np.testing.assert_array_equal(seen[1, 1], x[2:4, 2:5])
    with pytest.raises(ValueError, match="read-only"):
        seen[0, 0, 0, 0] = 1
    theirs = F.unfold(torch.tensor(x[None, None]), (2, 3), dilation=2)
    np.testing.assert_array_equal(im2col(x[None, None], (2, 3), dilation=2), theirs)


@pytest.mark.parametrize("size, stride", [(2, None), (3, 2), (2, 1)])
def test_pooling_is_both_frameworks(size, stride):
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8))
    for kind, theirs, layer in (
        ("max", F.max_pool2d, keras.layers.MaxPooling2D),
        ("mean", F.avg_pool2d, keras.layers.AveragePooling2D),
    ):
        np.testing.assert_allclose(
            pool2d(x, size, stride, kind),
            theirs(torch.tensor(x), size, stride),
            atol=1e-6,
        )
        in_keras = np.asarray(
            layer(size, stride, dtype="float64")(x.transpose(0, 2, 3, 1))
        ).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(pool2d(x, size, stride, kind), in_keras, atol=1e-6)


def test_vgg16_is_keras_layer_by_layer():
    model = keras.applications.VGG16(
        weights=None, include_top=False, input_shape=(224, 224, 3)
    )
    rows = layer_table(VGG16[:-3])
    assert [r.name for r in rows] == [layer.name for layer in model.layers[1:]]
    assert [(*r.shape[1:], r.shape[0]) for r in rows] == [
        tuple(layer.output.shape[1:]) for layer in model.layers[1:]
    ]
    assert [r.parameters for r in rows] == [
        layer.count_params() for layer in model.layers[1:]
    ]
    assert sum(r.parameters for r in rows) == model.count_params() == 14_714_688


def test_vgg16_costs_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import vgg16

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = vgg16().eval()
        model(torch.empty(1, 3, 224, 224))
    rows = layer_table(VGG16)
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(r.parameters for r in rows) == parameters == 138_357_544
    # The counter counts additions as well.
    multiplications = sum(r.multiplications for r in rows)
    assert 2 * multiplications == counter.get_total_flops()
    assert rows[-4].numbers == 25_088 and rows[-4].sees == 212


chains = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2)),
    min_size=1,
    max_size=4,
)


@few
@given(chains)
def test_the_receptive_field_is_where_the_gradient_arrives(chain):
    layers = [Layer(str(i), 1, k, s, 0, d) for i, (k, s, d) in enumerate(chain)]
    n = layer_table(layers, (1, 200, 200))[-1].sees + 3
    sides = [n, *(r.shape[1] for r in layer_table(layers, (1, n, n)))]
    back = np.zeros((1, 1, sides[-1], sides[-1]))
    back[0, 0, 0, 0] = 1
    for layer, side in zip(layers[::-1], sides[-2::-1], strict=True):
        back = input_gradient(
            back,
            np.ones((1, 1, layer.kernel, layer.kernel)),
            (side, side),
            layer.stride,
            0,
            layer.dilation,
        )
    reached = np.flatnonzero(back[0, 0].any(0))
    assert (
        reached[0] == 0 and reached[-1] + 1 == layer_table(layers, (1, n, n))[-1].sees
    )


def test_groups_and_dense_layers_are_counted():
    whole, grouped, dense, mean = layer_table(
        [
            Layer("a", 32),
            Layer("b", 32, groups=32),
            Layer("c", 10, None),
            Layer("d", kernel=None),
        ],
        (32, 16, 12),
    )
    assert (
        whole.parameters,
        grouped.parameters,
        dense.parameters,
        mean.parameters,
    ) == (32 * 32 * 9 + 32, 32 * 9 + 32, 32 * 16 * 12 * 10 + 10, 0)
    assert (
        grouped.multiplications == 32 * 9 * 16 * 12
        and dense.multiplications == 32 * 16 * 12 * 10
    )
    assert dense.shape == (10, 1, 1)


x4, w4 = np.zeros((1, 4, 8, 8)), np.zeros((6, 4, 3, 3))
BAD = {
    "x has shape (4, 8, 8)": lambda: conv2d(x4[0], w4),
    "x has 8 channels": lambda: conv2d(x4.transpose(0, 2, 3, 1), w4),
    "groups is 4": lambda: conv2d(x4, w4, groups=4),
    "groups is 0": lambda: conv2d(x4, w4, groups=0),
    "b has shape (4,)": lambda: conv2d(x4, w4, np.zeros(4)),
    "does not fit into 8 pixels": lambda: conv2d(x4, w4, dilation=4),
    "stride is 0": lambda: conv2d(x4, w4, stride=0),
    "stride is 1.5": lambda: out_size(8, 3, 1.5),
    "padding is 'valid'": lambda: conv2d(x4, w4, padding="valid"),
    "padding is -1": lambda: conv2d(x4, w4, padding=-1),
    "dilation is True": lambda: out_size(8, 3, dilation=True),
    "dy has shape (1, 6, 8, 8)": lambda: input_gradient(
        np.zeros((1, 6, 8, 8)), w4, (8, 8)
    ),
    "(N, 6, 6, 6)": lambda: weight_gradient(x4, np.zeros((1, 6, 5, 6)), (3, 3)),
    "w expects 1 in each of 3 groups": lambda: weight_gradient(
        x4, np.zeros((1, 6, 6, 6)), (3, 3), groups=3
    ),
    "kind is 'sum'": lambda: pool2d(x4, kind="sum"),
    "expected (…, H, W)": lambda: pool2d(np.zeros(5)),
    "a cuts 3 channels": lambda: layer_table([Layer("a", 4, groups=2)], (3, 8, 8)),
}


@pytest.mark.parametrize("words", BAD)
def test_a_mistake_is_told_in_a_sentence(words):
    with pytest.raises(ValueError) as told:
        BAD[words]()
    assert words in str(told.value)


def test_theory_needs_numpy_only():
    code = (
        "import sys, transfer_course.theory.convolution; "
        "print(sorted({'torch', 'tensorflow', 'keras', 'scipy', "
        "'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
