"""`build` and `cut`: what is shared, what moves, and what is refused.

`observe`: what a program's network receives, in whatever form the program passes it.
"""

import numpy as np
import pytest

from transfer_course.classroom.exercises import Hint, hint
from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_keras
from transfer_course.practice.clinic import counts
from transfer_course.practice.clinic_keras import (
    MODES,
    build,
    cut,
    explain_stop,
    explained_calls,
    keeps_training,
    observe,
    observed,
    received,
    sample,
    unprepared,
    whole_traceback,
)
from transfer_course.vision.freezing import moved, snapshot

keras = load_keras()
layers = keras.layers
X = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
Y = np.arange(8) % 4
READY = keras.applications.vgg16.preprocess_input


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
    with pytest.raises(
        BadValue, match="number of values that Flatten returns is not known"
    ):
        build("features", small(), 3, pool="flatten")
    with pytest.raises(BadValue, match="'average' or 'flatten'"):
        build("features", small(), 3, pool="max")
    with pytest.raises(BadValue, match="no layer 'conv9'.* Did you mean"):
        build("finetune", small(), 3, open_from="conv9")
    with pytest.raises(BadValue, match="no layer 'ad'"):
        cut(small(), "ad")
    with pytest.raises(BadValue, match="a shortcut goes around it"):
        cut(small(), "conv2")


def head_on_vgg16(inside):
    """VGG16, flattened, four classes; the preprocessing may be inside."""
    body = keras.applications.VGG16(include_top=False, input_shape=(32, 32, 3))
    image = layers.Input((32, 32, 3))
    ready = keras.applications.vgg16.preprocess_input(image) if inside else image
    outputs = layers.Dense(4, activation="softmax")(layers.Flatten()(body(ready)))
    model = keras.Model(image, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def batches(images, labels):
    """A data set of batches, as Keras reads it on any backend."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return images[i::2], labels[i::2]

    return Batches()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("pack", [lambda x, y: (x, y), lambda x, y: (batches(x, y),)])
def test_what_reaches_the_network_is_seen_in_any_style(inside, pack):
    images, labels = sample(5, 4, seed=1)
    ready = keras.applications.vgg16.preprocess_input(images)
    given = images if inside else ready

    def program(images, labels):
        model = head_on_vgg16(inside)
        more = pack(given[:2], labels[:2])
        more = more[0] if len(more) == 1 else more
        history = model.fit(*pack(given, labels), epochs=3, validation_data=more)
        return model, history

    seen = observe(program, images, labels)
    assert seen.said == "it runs"
    fit = explain_stop(seen, hint)
    assert fit.model is seen.returned[0]
    assert received(fit.train, ready, labels) and received(fit.valid, ready[:2])
    assert not received(fit.train, ready, np.roll(labels, 1))
    assert not received(fit.train, ready[:4]) and not received(fit.valid, ready)
    history = seen.returned[1].history
    assert {len(values) for values in history.values()} == {3}
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_watching_ends_with_the_context():
    fit, vgg16 = keras.Model.fit, keras.applications.VGG16
    with observed():
        assert keras.Model.fit is not fit
    assert keras.Model.fit is fit and keras.applications.VGG16 is vgg16


@pytest.mark.parametrize(
    ("loss", "activation", "fine"),
    [
        ("sparse_categorical_crossentropy", "softmax", True),
        ("categorical_crossentropy", "softmax", True),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, True),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "softmax",
            False,
        ),
        ("sparse_categorical_crossentropy", None, False),
        ("mse", "softmax", False),
        ("binary_crossentropy", "softmax", False),
    ],
)
def test_the_loss_has_to_fit_the_outputs(loss, activation, fine):
    images = layers.Input((6, 6, 3))
    outputs = layers.Dense(4, activation=activation)(layers.Flatten()(images))
    model = keras.Model(images, outputs)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    if fine:
        keeps_training(model, hint, 1e-4)
    else:
        with pytest.raises(Hint, match="loss does not fit"):
            keeps_training(model, hint, 1e-4)
    with pytest.raises(Hint, match="learning rate is 0.0001"):
        keeps_training(model, hint, 1e-3)


def test_a_program_that_never_fits_or_returns_no_model_gets_a_hint():
    with pytest.raises(Hint, match="never calls fit"):
        explain_stop(observe(lambda: head_on_vgg16(True)), hint)
    data = sample(4, 4, seed=0)
    with pytest.raises(Hint, match="Return the model"):
        explain_stop(observe(lambda: head_on_vgg16(True).fit(*data)), hint)
    with pytest.raises(Hint, match="It stops: ZeroDivisionError"):
        explain_stop(observe(lambda: 1 / 0), hint)


def with_images(change):
    """A program whose fit receives changed images."""

    def program(images, labels):
        model = head_on_vgg16(inside=False)
        model.fit(change(images), labels)
        return model

    return program


def in_place(images):
    images = images.astype("float32")
    keras.applications.vgg16.preprocess_input(images)
    return images


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: READY(keras.ops.convert_to_tensor(x)), "wrapped around"),
        (lambda x: READY(keras.ops.convert_to_tensor(x.astype("int32"))), "rounded"),
        (lambda x: READY(READY(x)), "prepared twice"),
        (lambda x: READY(in_place(x)), "prepared twice"),
        (in_place, "order red, green, blue"),
        (lambda x: READY(x / 255), "divided by 255"),
        (lambda x: x, "not the images that VGG16"),
    ],
)
def test_the_usual_faults_of_preprocessing_are_named(change, words):
    images, labels = sample(5, 4, seed=1)
    fit = explain_stop(observe(with_images(change), images, labels), hint)
    assert not received(fit.train, READY(images))
    assert words in unprepared(fit.train, images)


def test_a_body_frozen_by_one_program_is_open_in_the_next():
    def frozen(images, labels):
        body = keras.applications.VGG16(include_top=False, input_shape=(32, 32, 3))
        for layer in body.layers:
            layer.trainable = False
        return body

    data = sample(4, 4, seed=0)
    assert not observe(frozen, *data).returned.trainable_weights
    model = observe(with_images(READY), *data).returned
    assert len(model.trainable_weights) == len(model.weights) == 28


def test_images_of_any_size_and_another_adam():
    images = layers.Input((None, None, 3))
    outputs = layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(images))
    model = keras.Model(images, outputs)
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy")
    keeps_training(model, hint, 1e-4)
    model.compile(keras.optimizers.AdamW(1e-4), "categorical_crossentropy")
    with pytest.raises(Hint, match="is AdamW"):
        keeps_training(model, hint, 1e-4)


def test_a_traceback_has_no_folders_and_other_errors_stay():
    text = whole_traceback(lambda: keras.optimizers.Adam(lr=1e-3))
    assert 'File "keras/' in text and "site-packages" not in text
    assert text.splitlines()[-1].startswith("ValueError: Argument(s) not recognized")
    assert whole_traceback(lambda: 1) == "it runs"
    with pytest.raises(Hint, match="cannot be called"), explained_calls(hint):
        small().layers[0](X)
    with pytest.raises(ValueError, match="something else"), explained_calls(hint):
        raise ValueError("something else")
