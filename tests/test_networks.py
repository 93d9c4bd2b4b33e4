"""vision.twins, vision.networks and the training of practice.letters.

Twins stay twins, a load copies what fits and says so, what is frozen stays.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_course.engine.errors import BadValue, Damaged
from transfer_course.engine.frameworks import installed, load_keras, load_torch
from transfer_course.practice.letters import as_input, train_net
from transfer_course.vision.networks import (
    LoadReport,
    compare_tensors,
    conv_classifier,
    copy_torch_to_keras,
    load_matching,
    mlp,
    small_cnn,
)

pytestmark = pytest.mark.skipif(
    not (installed("torch") and installed("keras")), reason="needs both frameworks"
)
FEW = settings(max_examples=5, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def keras():
    """Keras, which has to be there before torch's libraries load triton."""
    return load_keras()


@pytest.fixture(scope="module")
def torch(keras):
    """PyTorch beside it."""
    return load_torch()


def pictures(n=12, size=8, classes=3, seed=0):
    """Random images and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), np.uint8), rng.integers(
        0, classes, n
    )


def small(classes=3, seed=0, size=8):
    """A network of a few hundred parameters."""
    return conv_classifier("torch", classes, size, (2, 3), 4, seed)


def copies(net):
    """A network's tensors, which further training leaves alone."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


# --- twins ----------------------------------------------------------------------------


@FEW
@given(
    classes=st.integers(2, 6),
    size=st.integers(4, 19),
    widths=st.sampled_from([(2, 3), (4, 1), (3,)]),
    hidden=st.integers(1, 7),
)
def test_both_frameworks_have_the_parameters_that_the_formula_says(
    classes, size, widths, hidden
):
    channels = (3, *widths)
    blocks = sum(9 * a * b + b for a, b in zip(channels, widths, strict=False))
    flat = widths[-1] * (size // 2 ** len(widths)) ** 2
    expected = blocks + flat * hidden + hidden + hidden * classes + classes
    t, k = (
        conv_classifier(f, classes, size, widths, hidden) for f in ("torch", "keras")
    )
    assert sum(p.numel() for p in t.parameters()) == k.count_params() == expected


@FEW
@given(size=st.integers(4, 19), seed=st.integers(0, 2**32 - 1))
def test_one_set_of_weights_gives_the_same_logits_at_every_size(size, seed):
    t, k = (conv_classifier(f, 3, size, (2, 3), 4, seed) for f in ("torch", "keras"))
    assert copy_torch_to_keras(t.state_dict(), k) == []
    images = pictures(4, size)[0]
    with load_torch().inference_mode():
        expected = t(as_input(images)).numpy()
    np.testing.assert_allclose(
        load_keras().ops.convert_to_numpy(k(as_input(images, "keras"))),
        expected,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["mlp", "conv_classifier"])
def test_twins_are_equal_after_three_steps_of_gradient_descent(torch, keras, kind):
    rng = np.random.default_rng(0)
    images, y = pictures(24)
    build = (
        (lambda f: mlp(f, (20, 7, 5, 3)))
        if kind == "mlp"
        else (lambda f: conv_classifier(f, 3, 8, (2, 3), 4))
    )
    t, k = build("torch"), build("keras")
    copy_torch_to_keras(t.state_dict(), k)
    vectors = rng.normal(size=(24, 20)).astype("float32")
    xt, xk = (
        (torch.from_numpy(vectors), vectors)
        if kind == "mlp"
        else (as_input(images), as_input(images, "keras"))
    )
    start, steps = copies(t), torch.optim.SGD(t.parameters(), 0.1)
    k.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for rows in np.arange(24).reshape(3, 8):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(
            t(xt[rows]), torch.as_tensor(y[rows])
        ).backward()
        steps.step()
        k.train_on_batch(xk[rows], y[rows])
    twin = build("keras")
    copy_torch_to_keras(t.state_dict(), twin)
    for ours, theirs in zip(twin.get_weights(), k.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert all(
        not torch.equal(tensor, start[name])
        for name, tensor in t.state_dict().items()
        if name.startswith("fc")
    )


def test_dense_layers_of_the_mlp_end_without_relu_in_both(torch, keras):
    t, k = mlp("torch", (5, 4, 3), seed=1), mlp("keras", (5, 4, 3), seed=1)
    copy_torch_to_keras(t.state_dict(), k)
    x = np.random.default_rng(0).normal(size=(50, 5)).astype("float32")
    logits = keras.ops.convert_to_numpy(k(x))
    assert (logits < 0).any() and [layer.name for layer in k.layers] == ["fc1", "fc2"]
    np.testing.assert_allclose(
        logits, t(torch.from_numpy(x)).detach().numpy(), atol=1e-5
    )


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_seed_decides_and_the_callers_random_numbers_go_on(torch, framework):
    def of(net):
        return (
            net.get_weights()
            if framework == "keras"
            else [tensor.numpy() for tensor in net.state_dict().values()]
        )

    for build in (
        mlp,
        lambda f, seed: conv_classifier(f, 3, 8, (2, 3), 4, seed),
        small_cnn,
    ):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        a, b, c = (of(build(framework, seed=s)) for s in (1, 1, 2))
        assert torch.equal(torch.rand(3), expected)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and not all(
            np.array_equal(x, y) for x, y in zip(a, c, strict=True)
        )


def test_pixels_become_the_same_numbers_for_both(torch):
    images = np.array([0, 51, 255] * 4, np.uint8).reshape(1, 2, 2, 3)
    a, b = as_input(images, "torch"), as_input(images, "keras")
    assert (
        a.dtype == torch.float32
        and a.is_contiguous()
        and b.dtype == np.float32
        and b.min() == -1
        and b.max() == 1
    )
    np.testing.assert_array_equal(a.permute(0, 2, 3, 1).numpy(), b)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mlp("torch", (3,)), "sizes is"),
        (lambda: mlp("torch", (3, 0, 2)), "sizes is"),
        (lambda: mlp("pytorch"), "'torch' or 'keras'"),
        (lambda: conv_classifier("tensorflow"), "'keras'"),
        (lambda: conv_classifier("torch", size=3), "4 pixels or more"),
        (lambda: conv_classifier("keras", classes=0), "classes is 0"),
        (
            lambda: as_input(np.zeros((1, 2, 2, 3), np.uint8), "numpy"),
            "'torch' or 'keras'",
        ),
        (
            lambda: train_net(small(), *pictures(4)[:1], np.zeros((4, 1), int), 1),
            r"\(4,\)",
        ),
        (lambda: train_net(small(), pictures(4)[0], np.zeros(3, int), 1), r"\(4,\)"),
        (
            lambda: train_net(small(), pictures(4)[0], np.array([0, 1, -1, 0]), 1),
            "unlabelled",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, words):
    with pytest.raises(BadValue, match=words):
        call()


# --- what a load copies ---------------------------------------------------------------

tensors = st.dictionaries(
    st.sampled_from("abcdef"),
    st.sampled_from([(2,), (3,), (2, 3), ()]).map(np.zeros),
    max_size=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(file=tensors, own=tensors)
def test_every_tensor_is_in_the_report_once(file, own):
    report = compare_tensors(file, own)
    assert sorted(report.copied + report.other_shape + report.missing) == sorted(own)
    assert sorted(report.copied + report.other_shape + report.unexpected) == sorted(
        file
    )
    assert all(file[n].shape == own[n].shape for n in report.copied)
    assert all(file[n].shape != own[n].shape for n in report.other_shape)


def test_a_load_copies_what_fits_and_nothing_else(torch):
    source, net = small(5, seed=1), small(3, seed=2)
    own = copies(net)
    report = load_matching(net, source.state_dict() | {"extra": torch.ones(2)})
    stages = [
        "stage1.conv.weight",
        "stage1.conv.bias",
        "stage2.conv.weight",
        "stage2.conv.bias",
    ]
    assert report == LoadReport(
        [*stages, "fc1.weight", "fc1.bias"], ["fc2.weight", "fc2.bias"], [], ["extra"]
    )
    for name, tensor in net.state_dict().items():
        assert torch.equal(
            tensor, source.state_dict()[name] if name in report.copied else own[name]
        )
    net.stage1.conv.weight.data.zero_()  # a copy, not the same memory
    assert source.stage1.conv.weight.abs().min() > 0


def test_a_load_of_which_nothing_fits_is_refused_and_changes_nothing(torch):
    net = small()
    own = copies(net)
    with pytest.raises(Damaged, match="Not one of 8 tensors fits"):
        load_matching(
            net, {"module." + name: tensor + 1 for name, tensor in own.items()}
        )
    with pytest.raises(Damaged, match="Not one of 0 tensors"):
        load_matching(net, {})
    with pytest.raises(Damaged, match=r"fc1.bias \(1,\).*network fc1.bias \(4,\)"):
        load_matching(net, {name: torch.ones(1) for name in own})
    assert all(
        torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items()
    )


def test_a_long_list_of_names_is_wrapped_between_names():
    names = [f"stage{i}.conv.weight" for i in range(12)]
    lines = str(LoadReport(names, [], [], [])).splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 80
    assert all(name in "".join(lines) for name in names)


def test_the_report_is_a_line_a_kind():
    text = str(
        compare_tensors(
            {"a": np.zeros(2), "c": np.zeros(1)}, {"a": np.zeros(2), "b": np.zeros(2)}
        )
    )
    assert [line.split() for line in text.split("\n")] == [
        ["copied", "1", "a"],
        ["other", "shape", "0"],
        ["missing", "1", "b"],
        ["unexpected", "1", "c"],
    ]


# --- training -------------------------------------------------------------------------


def test_training_learns_and_leaves_alone_what_is_frozen(torch):
    images, y = pictures(30)
    images[np.arange(30), :, :, y] = 255  # the class is a colour
    net = small()
    for name, p in net.named_parameters():
        p.requires_grad_(not name.startswith("stage1"))
    before = copies(net)
    losses = train_net(net, images, y, epochs=25, lr=0.02, batch_size=7)
    assert len(losses) == 25 and losses[-1] < 0.3 * losses[0]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("stage1"), name


def test_the_same_seed_trains_the_same_network(torch):
    images, y = pictures(20)
    a, b, c = small(), small(), small()
    torch.manual_seed(1)
    first = train_net(a, images, y, 2, seed=3)
    torch.manual_seed(2)
    assert train_net(b, images, y, 2, seed=3) == first
    train_net(c, images, y, 2, batch_size=8, seed=4)
    assert all(torch.equal(v, b.state_dict()[n]) for n, v in a.state_dict().items())
    assert not torch.equal(a.fc1.weight, c.fc1.weight)
