"""Lesson 13: its program runs from an empty file and makes the updates of `fine_tune`,
and its exercise accepts every right form."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from tiny import PLAIN, colours, keras_backbone

from transfer_course.classroom import exercises
from transfer_course.engine.frameworks import load_keras
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune
from transfer_course.trainer.start import initial_head
from transfer_course.vision.finetune_keras import dense, freeze, thaw, train_plain

keras = load_keras()
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's way"
)
ROOT = Path(__file__).resolve().parent.parent
LESSON = nbformat.read(ROOT / "nbs/2_vision/13_finetune_keras.ipynb", as_version=4)
PROGRAM = [c.source for c in LESSON.cells if "program" in c.metadata.get("tags", [])]
ONCE = re.compile(r"epochs=\d+")  # one epoch in each phase is enough here


def test_the_program_is_short():
    lines = [line for line in "\n".join(PROGRAM).splitlines() if line.strip()]
    assert 30 <= len(lines) <= 40
    assert all(len(line) <= 88 for line in lines)


def test_the_program_runs_from_an_empty_file(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(ONCE.sub("epochs=1", "\n".join(PROGRAM)), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    name, probability = done.stdout.split()[-2:]
    assert name in PROGRAM[0] and 1 / 8 < float(probability) <= 1
    assert list(tmp_path.glob("*/photos.keras"))
    assert list(tmp_path.iterdir()).count(script) == 1


# Plain SGD instead of Adam, because an update then depends on its batch alone. Adam's
# epsilon differs between the frameworks, and `fine_tune` keeps the head's moments.
SETTINGS = [
    ("keras.optimizers.Adam(1e-3)", "keras.optimizers.SGD(0.5)"),
    ("(keras.optimizers.Adam)", "(keras.optimizers.SGD)"),
    ("TwoRates(1e-4)", "TwoRates(0.05)"),
]


def as_the_program(net, data, changes=()):
    """The model after the program's two phases, with one step in each of them."""
    body = keras.models.clone_model(net.model)
    body.set_weights(net.model.get_weights())
    images = keras.Input((32, 32, 3))
    head = dense(*initial_head(net.feature_dim, len(data.classes), 0), "head")
    outputs = keras.layers.Softmax()(head(body(images)))
    model = keras.Model(images, outputs)
    ready = SimpleNamespace(images=net.preprocess(data.images), labels=data.labels)
    names = dict(keras=keras, tempfile=tempfile, body=body, model=model)
    names |= dict(train=ready, valid=ready)
    changes = [*SETTINGS, *changes]
    source = ONCE.sub("epochs=1", "\n".join(PROGRAM[1:3])).replace(
        "verbose=2", "verbose=0"
    )
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    exec(source, names)
    return [*body.get_weights(), *head.get_weights()]


RECIPE = Recipe(
    "gradual",  # with two epochs: the head, then everything
    epochs=2,
    batch_size=16,
    lr=0.05,
    head_lr=0.5,
    **PLAIN,
)


@pytest.fixture(scope="module")
def tuned():
    net, data = keras_backbone(), colours(np.arange(15) % 3)
    result = fine_tune(net, data, None, RECIPE, progress=False)
    return net, data, result.model.get_weights()


def apart(one, two):
    return max(np.abs(a - b).max() for a, b in zip(one, two, strict=True))


def test_fine_tune_makes_the_updates_of_the_program(tuned):
    net, data, ours = tuned
    assert apart(as_the_program(net, data), ours) < 2e-6
    moved = [
        np.abs(a - b).max() for a, b in zip(net.model.get_weights(), ours, strict=False)
    ]
    assert sum(far > 1e-5 for far in moved) == 4  # both convolutions, no BatchNorm


@pytest.mark.parametrize(
    "change",
    [
        ("TwoRates(0.05)", "TwoRates(0.055)"),
        ("else 1", "else 2"),
        ("layer.trainable = False", "layer.trainable = True"),
    ],
    ids=["rate", "factor", "BatchNorm"],
)
def test_another_program_is_found(change, tuned):
    net, data, ours = tuned
    assert apart(as_the_program(net, data, [change]), ours) > 5e-6


@pytest.fixture(scope="module")
def lesson():
    """The names that the exercise's cells need, from the lesson itself."""
    wanted = ("aeb8bdf3", "7c02d9e4", "c56e57e5")
    wanted += ("b3a1c020", "2d4aedcc", "b3a1c021", "b3a1c004")
    names, cells = {}, {c.id: c.source for c in LESSON.cells}
    for cell in wanted:
        exec(cells[cell], names)
    yield names
    exercises._GRADERS.pop("two_phases")


def by_layer(lesson):
    """Flags set layer by layer, and two calls of `fit` in each phase."""

    def two_phases(model, body, rate):
        x, y, loss = (lesson[k] for k in ("toy_images", "toy_labels", "cross_entropy"))
        for layer in body.layers:
            layer.trainable = False
        model.compile(optimizer=keras.optimizers.Adam(learning_rate=rate), loss=loss())
        for _ in range(2):
            model.fit(x, y, verbose=0)
        body.get_layer("conv").trainable = True
        adam = keras.optimizers.Adam(learning_rate=rate / 10)
        model.compile(optimizer=adam, loss=loss())
        for _ in range(2):
            model.fit(x, y, verbose=0)
        return model

    return two_phases


def by_freeze(lesson):
    """The library's `freeze` and `thaw`."""

    def two_phases(model, body, rate):
        x, y, loss = (lesson[k] for k in ("toy_images", "toy_labels", "cross_entropy"))
        freeze(body)
        model.compile(keras.optimizers.Adam(rate), loss())
        model.fit(x, y, epochs=2, verbose=0)
        thaw(body, batch_norm="frozen")
        model.compile(keras.optimizers.Adam(rate / 10), loss())
        model.fit(x, y, epochs=2, verbose=0)
        return model

    return two_phases


def by_train_plain(lesson):
    """`train_plain` in two steps per epoch."""

    def two_phases(model, body, rate):
        how = dict(epochs=2, batch_size=8)
        x, y = lesson["toy_images"], lesson["toy_labels"]
        train_plain(model, x, y, ["head"], keras.optimizers.Adam(rate), **how)
        adam = keras.optimizers.Adam(rate / 10)
        train_plain(model, x, y, ["head", "conv"], adam, **how)
        return model

    return two_phases


def by_name(lesson):
    """The whole model opened by layer names, with one optimizer for each phase."""

    def two_phases(model, body, rate):
        x, y, loss = (lesson[k] for k in ("toy_images", "toy_labels", "cross_entropy"))
        freeze(model, ["conv", "bn"])
        for opened, factor in ((False, 1), (True, 0.1)):
            if opened:
                thaw(model, ["conv"])
            model.compile(keras.optimizers.Adam(factor * rate), loss())
            model.fit(x=x, y=y, epochs=2, verbose=0)
        return model

    return two_phases


@pytest.mark.parametrize("form", [by_layer, by_freeze, by_train_plain, by_name])
def test_every_right_form_of_two_phases_is_accepted(form, lesson):
    verdict, why = exercises.grade("two_phases", form(lesson))
    assert verdict == "right", why


def one_phase(model, body, rate):
    """The second phase is missing."""
    model.compile(keras.optimizers.Adam(rate), "mse")
    model.fit(np.zeros((4, 9, 9, 3)), np.zeros((4, 2)), verbose=0)
    return model


def test_more_wrong_forms_get_their_hint(lesson):
    x, y, loss = (lesson[k] for k in ("toy_images", "toy_labels", "cross_entropy"))

    def never_opened(model, body, rate):
        body.trainable = False
        model.compile(keras.optimizers.Adam(rate), loss())
        for _ in range(2):
            model.fit(x, y, verbose=0)
        return model

    def only_the_statistics_stay(model, body, rate):
        body.get_layer("bn").momentum = 1.0
        return opened_whole(model, body, rate)

    def opened_whole(model, body, rate):
        for opened in (False, True):
            body.trainable = opened
            model.compile(keras.optimizers.Adam(rate / 10), loss())
            model.fit(x, y, verbose=0)
        return model

    def phases(rates=(1, 0.1), epochs=2, adam=keras.optimizers.Adam, prefixes=None):
        """The solution, with one thing changed."""

        def run(model, body, rate):
            freeze(*((body,) if prefixes is None else (model, prefixes)))
            for phase in (0, 1):
                if phase:
                    thaw(body, batch_norm="frozen")
                model.compile(adam(rates[phase] * rate), loss())
                model.fit(x, y, epochs=epochs, verbose=0)
            return model

        return run

    def without_labels(model, body, rate):
        model.compile(keras.optimizers.Adam(rate), loss())
        model.fit(x, epochs=2, verbose=0)
        return model

    def two_rates(model, body, rate):
        freeze(body)
        model.compile(keras.optimizers.Adam(rate), loss())
        model.fit(x, y, epochs=2, verbose=0)
        thaw(body, batch_norm="frozen")
        model.compile(lesson["TwoRates"](rate / 10), loss())
        model.fit(x, y, epochs=2, verbose=0)
        return model

    found = [
        ("at least twice", one_phase),
        ("still frozen", never_opened),
        ("scale or shift", only_the_statistics_stay),
        ("running statistics", opened_whole),
        ("the whole `rate`", phases(rates=(0.1, 0.1))),
        ("a tenth of the rate", phases(rates=(1, 0.01))),
        ("the same rate", two_rates),
        ("two epochs", phases(epochs=1)),
        ("Use Adam", phases(adam=keras.optimizers.SGD)),
        ("its layers conv and bn", phases(prefixes=["body"])),
        ("the labels", without_labels),
        ("Return the model", lambda *given: phases()(*given) and None),
    ]
    for words, answer in found:
        verdict, why = exercises.grade("two_phases", answer)
        assert verdict == "not quite" and words in why, (words, why)
    stub = exercises.grade("two_phases", lambda model, body, rate: None)
    assert stub[0] == "not yet"
