"""Keras: a run that was killed ends with the same bits.

Also memory that runs out, losses that are no numbers, and the same seed twice.
"""

import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from transfer_course.engine.checkpoints import NAME
from transfer_course.engine.errors import BadValue, UserMistake
from transfer_course.engine.frameworks import load_keras
from transfer_course.trainer import keras_frozen
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.vision.backbones import KerasBackbone
from transfer_course.vision.data import styles

keras = load_keras()
RECIPE = Recipe(epochs=4, batch_size=8, lr=1e-3, head_lr=1e-2, weight_decay=0.01)
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's way"
)


@pytest.fixture(scope="module")
def data():
    images = styles("twemoji", size=32)
    return images.subset(np.flatnonzero(images.labels < 3)[::4]).only(
        images.classes[:3]
    )


class Small(KerasBackbone):
    """Three convolutions with BatchNorm and Dropout: every kind of state matters."""


@pytest.fixture(scope="module")
def net():
    return small()


def small():
    keras.utils.set_random_seed(0)
    k, x = keras.layers, keras.Input((None, None, 3))
    y = k.ReLU()(
        k.BatchNormalization(name="stem_bn")(
            k.Conv2D(8, 5, strides=3, name="stem_conv")(x)
        )
    )
    y = k.Dropout(0.2, name="mid_drop")(
        k.ReLU()(
            k.BatchNormalization(name="mid_bn")(
                k.Conv2D(16, 3, strides=2, name="mid_conv")(y)
            )
        )
    )
    body = keras.Model(
        x, k.GlobalAveragePooling2D()(k.ReLU()(k.Conv2D(32, 3, name="late_conv")(y)))
    )
    stages = {s: (s + "_",) for s in ("stem", "mid", "late")}
    return Small(
        name="small",
        framework="keras",
        params=0,
        feature_dim=32,
        stages=stages,
        model=body,
    )


def tune(net, data, recipe=RECIPE, **kwargs):
    return fine_tune(
        net, data, kwargs.pop("valid", data), recipe, progress=False, **kwargs
    )


def same(a, b):
    mine, theirs = a.model.get_weights(), b.model.get_weights()
    assert len(mine) == len(theirs) > 4
    return all(np.array_equal(x, y) for x, y in zip(mine, theirs, strict=True))


class Killed(Exception):
    pass


def killed_after(epoch):
    def kill(end):
        if end.epoch == epoch:
            raise Killed

    return kill


CASES = {
    "everything": dict(batch_norm="train", augment=0.5, optimizer="sgd"),
    "gradual": dict(strategy="gradual", patience=5),
    "frozen part": dict(strategy="lp_ft", train_from="late"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_bits(case, net, data, tmp_path, monkeypatch):
    recipe = RECIPE.but(**CASES[case])
    valid = None if case == "everything" else data
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = tune(net, data, recipe, valid=valid, checkpoint=tmp_path / "whole")
    for at in (2, 3):
        with pytest.raises(Killed):
            tune(
                net,
                data,
                recipe,
                valid=valid,
                checkpoint=tmp_path / "cut",
                callbacks=[killed_after(at)],
            )
    assert (tmp_path / "cut" / NAME).exists()
    # A resumed run brings its head along.
    monkeypatch.setattr("transfer_course.trainer.start.probe_head", None)
    again = tune(net, data, recipe, valid=valid, checkpoint=tmp_path / "cut", workers=2)
    assert same(whole, again)
    assert (
        whole.step_losses == again.step_losses
        and whole.best_epoch == again.best_epoch
        and whole.stopped == again.stopped
    )
    # It is finished: nothing is left to train.
    once_more = tune(net, data, recipe, valid=valid, checkpoint=tmp_path / "cut")
    assert same(whole, once_more)
    for other in (again, once_more):
        assert [row | {"seconds": 0} for row in whole.history] == [
            row | {"seconds": 0} for row in other.history
        ]


# --- kill -9, through the command line ------------------------------------------------


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    from PIL import Image

    at = tmp_path_factory.mktemp("images")
    for i, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
        (at / f"class{label}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(at / f"class{label}" / f"{i}.png")
    return at


def begin(folder, run):
    options = [
        "--framework",
        "keras",
        "--backbone",
        "small_cnn",
        "--strategy",
        "gradual",
        "--epochs",
        "8",
        "--size",
        "32",
        "--resume",
        "--json",
    ]
    command = [
        sys.executable,
        "-m",
        "transfer_course.cli",
        "fine-tune",
        str(folder),
        "--out",
        str(run),
        *options,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def weights(run):
    return load_result(run).model.get_weights()


def finished(folder, run):
    began, process = time.perf_counter(), begin(folder, run)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return time.perf_counter() - began


def killed(folder, run, after):
    """Whether SIGKILL after so many seconds found the run still going."""
    process = begin(folder, run)
    time.sleep(after)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_a_killed_process_ends_with_the_same_bits(folder, tmp_path):
    """Killed as soon as there is a checkpoint.

    The uninterrupted run is made in this process; another one gives the same bits.
    """
    from transfer_course.practice.own_folder import tune_folder

    tune_folder(
        folder,
        tmp_path / "whole",
        framework="keras",
        backbone="small_cnn",
        strategy="gradual",
        epochs=8,
        size=32,
        progress=False,
    )
    process, run = begin(folder, tmp_path / "cut"), tmp_path / "cut"
    while process.poll() is None and not (run / NAME).exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (run / "run.json").exists()
    finished(folder, run)
    assert not (run / NAME).exists(), "a finished run needs no checkpoint"
    assert all(
        np.array_equal(a, b)
        for a, b in zip(weights(tmp_path / "whole"), weights(run), strict=True)
    )


@pytest.mark.stress
def test_twenty_kills(folder, tmp_path):
    most = finished(folder, tmp_path / "whole")
    whole = weights(tmp_path / "whole")
    rng = np.random.default_rng(0)
    kills = 0
    runs = 0
    while kills < 20:
        run, runs = tmp_path / f"cut{runs}", runs + 1
        for _ in range(4):
            if not killed(folder, run, rng.uniform(0.3, 1) * most):
                break
            kills += 1
        finished(folder, run)
        assert all(
            np.array_equal(a, b) for a, b in zip(whole, weights(run), strict=True)
        ), f"run {runs}, after {kills} kills"


def test_another_recipe_is_not_continued(net, data, tmp_path):
    tune(net, data, RECIPE.but(epochs=1), checkpoint=tmp_path)
    with pytest.raises(BadValue, match="lr"):
        tune(net, data, RECIPE.but(epochs=1, lr=0.5), checkpoint=tmp_path)


def test_a_loss_that_is_no_number_is_told_again_and_not_trained_on(net, data, tmp_path):
    recipe = RECIPE.but(optimizer="sgd", lr=1e25, head_lr=1e25)
    with pytest.warns(UserWarning, match="last good weights"):
        first = tune(net, data, recipe, valid=None, checkpoint=tmp_path)
    file = (tmp_path / NAME).read_bytes()
    with pytest.warns(UserWarning, match="last good weights"):
        again = tune(net, data, recipe, valid=None, checkpoint=tmp_path)
    assert (
        same(first, again)
        and first.stopped == again.stopped != ""
        and (tmp_path / NAME).read_bytes() == file
    )
    assert np.isfinite(again.predict(data)).all() and len(again.history) < recipe.epochs


# --- the same seed --------------------------------------------------------------------


def test_same_seed_same_bits_with_one_worker_and_two(net, data):
    recipe = RECIPE.but(augment=0.5, epochs=2)
    a, b, c = (
        tune(net, data, recipe.but(seed=s), workers=w)
        for s, w in ((0, 1), (0, 2), (1, 1))
    )
    assert same(a, b) and a.step_losses == b.step_losses
    assert not same(a, c)


# --- memory ---------------------------------------------------------------------------


def needs_a_lot_beyond(images):
    """A penalty of nothing that runs out of memory in the middle of a step.

    It does so where a piece has more than `images`.
    """
    import tensorflow as tf

    def check(n):
        if n > images:
            raise MemoryError  # TensorFlow makes a ResourceExhaustedError of it
        return 0.0

    return lambda step: tf.ensure_shape(
        tf.stop_gradient(tf.py_function(check, [tf.shape(step.labels)[0]], tf.float32)),
        (),
    )


GENTLE = Recipe(
    epochs=2,
    batch_size=8,
    optimizer="sgd",
    momentum=0.0,
    lr=0.01,
    head_lr=0.1,
    schedule="constant",
    warmup=0.0,
)


def without_dropout():
    net = small()
    net.model.get_layer("mid_drop").rate = 0.0
    return net


def test_out_of_memory_halves_the_batch_and_keeps_the_step(data):
    net = without_dropout()
    plain = tune(net, data, GENTLE)
    with pytest.warns(UserWarning, match="Out of memory") as told:
        short = tune(net, data, GENTLE, penalty=needs_a_lot_beyond(1))
    assert len(told) == 3 and "4 pieces" in str(told[1].message)
    assert np.abs(np.subtract(plain.step_losses, short.step_losses)).max() < 1e-4
    assert all(
        np.allclose(a, b, atol=1e-4)
        for a, b in zip(
            plain.model.get_weights(), short.model.get_weights(), strict=True
        )
    )
    assert [r["accuracy"] for r in plain.history] == [
        r["accuracy"] for r in short.history
    ]


def test_no_room_for_one_image_is_one_sentence(net, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserMistake, match="single image"):
            tune(net, data, GENTLE, penalty=needs_a_lot_beyond(0))


def test_a_run_short_of_memory_goes_on_in_pieces(net, data, tmp_path):
    recipe, short = RECIPE.but(epochs=2), needs_a_lot_beyond(4)
    folders = [tmp_path / "a", tmp_path / "b"]
    for f in folders:
        f.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = tune(net, data, recipe, penalty=short, checkpoint=folders[0])
        with pytest.raises(Killed):
            tune(
                net,
                data,
                recipe,
                penalty=short,
                checkpoint=folders[1],
                callbacks=[killed_after(2)],
            )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it need not run out a second time
        again = tune(net, data, recipe, penalty=short, checkpoint=folders[1])
    assert same(whole, again)


# --- the frozen part ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        dict(strategy="head"),
        dict(strategy="gradual", epochs=4),
        dict(augment=0.5, views=2, epochs=4),
    ],
)
def test_what_is_frozen_runs_once_and_changes_nothing(changes, data, monkeypatch):
    net = without_dropout()
    recipe = GENTLE.but(**{"train_from": "late", **changes})
    kept = tune(
        net,
        data,
        recipe,
        unlabelled=data,
        penalty=lambda step: keras.ops.mean(step.unlabelled_features) * 0.1,
    )
    monkeypatch.setattr(keras_frozen, "freeze_point", lambda body: None)
    plain = tune(
        net,
        data,
        recipe,
        unlabelled=data,
        penalty=lambda step: keras.ops.mean(step.unlabelled_features) * 0.1,
    )
    assert np.abs(np.subtract(plain.step_losses, kept.step_losses)).max() < 1e-4
    assert all(
        np.allclose(a, b, atol=1e-4)
        for a, b in zip(
            plain.model.get_weights(), kept.model.get_weights(), strict=True
        )
    )
    for a, b in zip(plain.history, kept.history, strict=True):
        assert (
            a["valid_loss"] == pytest.approx(b["valid_loss"], abs=1e-4)
            and a["accuracy"] == b["accuracy"]
        )


def test_the_frozen_part_sees_each_image_once(data, monkeypatch):
    seen, of = [], keras_frozen.Frozen.of

    def watched(self, key, n, images):
        def noted(rows):
            seen.extend((str(key), row) for row in rows)
            return images(rows)

        return of(self, key, n, noted)

    monkeypatch.setattr(keras_frozen.Frozen, "of", watched)
    tune(without_dropout(), data, GENTLE.but(train_from="late", epochs=3))
    assert len(seen) == len(set(seen)) == 2 * len(data)  # training and validation


def test_a_frozen_part_that_a_callback_changes_is_left(data):
    net = without_dropout()

    def nudge(end):
        if end.epoch == 2:
            end.result.backbone.model.get_layer("stem_conv").kernel.assign_add(
                np.full((5, 5, 3, 8), 0.01, "float32")
            )

    recipe = GENTLE.but(train_from="late", epochs=4)
    result = tune(net, data, recipe, callbacks=[nudge])
    assert (
        len(result.history) == 4
        and result.history[-1]["loss"] != result.history[1]["loss"]
    )
    stem = [
        r.model.get_layer("stem_conv").get_weights()[0]
        for r in (result, tune(net, data, recipe))
    ]
    assert not np.allclose(*stem)
