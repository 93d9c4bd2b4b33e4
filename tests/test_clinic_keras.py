"""`build` and `cut`: what is shared, what moves, and what is refused."""

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_keras
from transfer_course.practice.clinic import counts
from transfer_course.practice.clinic_keras import MODES, build, cut
from transfer_course.vision.freezing import moved, snapshot

keras = load_keras()
layers = keras.layers
X = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
Y = np.arange(8) % 4


def small(size=None):
    keras.utils.set_random_seed(0)
    images = layers.Input((size, size, 3))
    x = layers.BatchNormalization(name="bn1")(
        layers.Conv2D(4, 3, padding="same", name="conv1")(images)
    )
    y = layers.Conv2D(4, 3, padding="same", name="conv2")(x)
    return keras.Model(
        images, layers.Conv2D(5, 3, name="conv3")(layers.Add(name="add")([x, y]))
    )


def train(model, rate=0.1):
    model.compile(
        keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", run_eagerly=True
    )
    model.fit(X, Y, epochs=1, verbose=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_base_stays_as_it_was_and_the_copy_starts_where_the_mode_says(mode):
    base = small()
    before, flags = snapshot(base), [layer.trainable for layer in base.layers]
    model = build(mode, base, 4, shape=(6, 6, 3))
    same = np.array_equal(model.layers[1].get_weights()[0], base.get_weights()[0])
    assert same == (mode != "scratch")
    train(model)
    assert not moved(before, snapshot(base)) and flags == [
        layer.trainable for layer in base.layers
    ]


def test_what_moves_in_each_mode():
    names = {}
    for mode, options in (
        ("scratch", {}),
        ("features", {}),
        ("finetune", {}),
        ("finetune", {"open_from": "conv3"}),
    ):
        model = build(mode, small(), 4, shape=(6, 6, 3), **options)
        before = snapshot(model.layers[1])
        train(model)
        names[mode, bool(options)] = {
            n.split("/")[-2] for n in moved(before, snapshot(model.layers[1]))
        }
    assert names["features", False] == set()
    assert names["finetune", False] == {"conv1", "conv2", "conv3"}, (
        "BatchNorm is held, its statistics too"
    )
    assert names["finetune", True] == {"conv3"}
    assert names["scratch", False] == {"conv1", "conv2", "conv3", "bn1"}


@pytest.mark.parametrize(("pool", "numbers"), [("average", 5), ("flatten", 4 * 4 * 5)])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
def test_the_head_has_the_parameters_that_arithmetic_gives(pool, numbers, hidden):
    widths = [numbers, *hidden, 3]
    expected = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
    assert (
        counts(
            build("features", small(), 3, shape=(6, 6, 3), pool=pool, hidden=hidden)
        ).moving
        == expected
    )


def test_posts_own_numbers_without_drawing_weights():
    """The posts' numbers of parameters follow from the shapes of the maps.

    VGG16 + Flatten + Dense 10, and ResNet50 + average + Dense 1024 + Dense 10.
    """
    for maps, options, expected in (
        ((7, 7, 512), {"pool": "flatten"}, 250_890),
        ((7, 7, 2048), {"hidden": (1024,)}, 2_108_426),
    ):
        images = layers.Input(maps)
        base = keras.Model(images, layers.Activation("linear")(images))
        assert counts(build("features", base, 10, **options)) == (expected, expected)


def test_outputs_are_probabilities_or_plain_numbers():
    p = build("features", small(), 3, shape=(6, 6, 3)).predict(X, verbose=0)
    assert p.shape == (8, 3) and np.allclose(p.sum(1), 1, atol=1e-5)
    assert (
        build("features", small(), 1, shape=(6, 6, 3), activation=None)
        .layers[-1]
        .activation
        is keras.activations.linear
    )


def test_two_halves_are_the_whole_and_share_layers():
    base = small(6)
    below, above = cut(base, "add")
    assert np.allclose(above(below(X)), base(X), atol=1e-5)
    assert below.get_layer("conv1") is base.get_layer("conv1") and above.get_layer(
        "conv3"
    ) is base.get_layer("conv3")


def test_mistakes_are_told_in_a_sentence():
    with pytest.raises(BadValue, match="Did you mean 'features'"):
        build("feature", small(), 3)
    with pytest.raises(BadValue, match="nobody knows how many numbers Flatten makes"):
        build("features", small(), 3, pool="flatten")
    with pytest.raises(BadValue, match="'average' or 'flatten'"):
        build("features", small(), 3, pool="max")
    with pytest.raises(BadValue, match="no layer 'conv9'.* Did you mean"):
        build("finetune", small(), 3, open_from="conv9")
    with pytest.raises(BadValue, match="no layer 'ad'"):
        cut(small(), "ad")
    with pytest.raises(BadValue, match="a shortcut goes around it"):
        cut(small(), "conv2")
