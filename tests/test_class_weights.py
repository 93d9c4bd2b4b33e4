"""`Recipe.class_weights`: the same weighted loss in both loops and in the probe."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny import PLAIN, colours

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.trainer.batches import Data
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.trainer.start import initial_head, prepared
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import ImageDataset
from transfer_course.vision.features import extract, linear_probe
from transfer_course.vision.networks import copy_torch_to_keras

keras = load_keras()
torch = load_torch()
on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's way"
)
BOTH = ("torch", "keras")
WEIGHTS = (0.25, 1.0, 3.0)
RECIPE = Recipe(
    epochs=2,
    batch_size=8,
    lr=0.01,
    head_lr=0.1,
    **PLAIN,
    label_smoothing=0.1,
    class_weights=WEIGHTS,
)


def counted(counts, seed=0, brighter=25):
    """Noise, one channel `brighter`: as many images of each class as `counts` says."""
    return colours(np.repeat(np.arange(3), counts), 200, brighter, seed)


@pytest.fixture(scope="module")
def data():
    return counted((12, 8, 4))


@pytest.fixture(scope="module")
def nets():
    """The same random weights in both frameworks."""
    both = {f: backbone("small_cnn", f, weights=None, seed=3) for f in BOTH}
    copy_torch_to_keras(both["torch"].model.state_dict(), both["keras"].model)
    return both


def tuned(net, data, recipe=RECIPE, **kwargs):
    return fine_tune(net, data, None, recipe, progress=False, **kwargs)


def by_hand(logits, labels, weights, smoothing):
    """Mean over the images of w[y] times the smoothed cross-entropy, in NumPy."""
    logits = logits.astype(float)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    target = np.eye(logits.shape[1])[labels]
    target = target * (1 - smoothing) + smoothing / logits.shape[1]
    each = -(target * log_p).sum(1)
    return float(np.mean(np.asarray(weights)[labels] * each))


def gap(a, b, n=None):
    return np.abs(np.subtract(a.step_losses[:n], b.step_losses[:n])).max()


# --- the recipe -----------------------------------------------------------------------


def test_a_recipe_with_weights_survives_json():
    for given in (list(WEIGHTS), WEIGHTS, np.float32(WEIGHTS), "balanced", None):
        recipe = Recipe(class_weights=given)
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
        # What a resumed run is compared with has been through JSON.
        assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    assert recipe.class_weights is None and hash(RECIPE) == hash(RECIPE.but())


@pytest.mark.parametrize(
    "wrong", ["balance", [1, 0, 1], [1, -1, 1], [1, float("nan"), 1], ["a"], 3, [True]]
)
def test_weights_that_are_none_are_refused(wrong):
    with pytest.raises(BadValue, match="class_weights"):
        Recipe(class_weights=wrong)


@pytest.mark.parametrize("framework", BOTH)
def test_weights_that_do_not_fit_the_training_set_are_refused(framework, nets, data):
    with pytest.raises(BadValue, match="2 numbers.*3 classes"):
        tuned(nets[framework], data, RECIPE.but(class_weights=(1, 2)))
    for strategy in ("probe", "fine_tune"):
        recipe = RECIPE.but(strategy=strategy, class_weights="balanced")
        with pytest.raises(BadValue, match="'blue' has no training image"):
            tuned(nets[framework], data.subset(np.arange(20)), recipe)
    # Before anything is loaded or copied.
    with pytest.raises(BadValue, match="'blue' has no training image"):
        prepared(nets[framework], framework, data.subset(np.arange(20)), None, recipe)


# --- the loss -------------------------------------------------------------------------


def losses_by_hand(net, data, recipe, weights):
    """The losses of the head alone under plain gradient descent, in NumPy."""
    features = extract(net, data, cache=False, progress=False).astype(float)
    W, b = (a.astype(float) for a in initial_head(net.feature_dim, 3, recipe.seed))
    weights, smooth, losses = np.asarray(weights, float), recipe.label_smoothing, []
    for number in range(recipe.epochs):
        for rows in Data(data).epoch(recipe, number).parts:
            X, y = features[rows], data.labels[rows]
            logits = X @ W + b
            losses.append(by_hand(logits, y, weights, smooth))
            e = np.exp(logits - logits.max(1, keepdims=True))
            target = np.eye(3)[y] * (1 - smooth) + smooth / 3
            slope = (e / e.sum(1, keepdims=True) - target) * weights[y][:, None]
            W -= recipe.head_lr * X.T @ slope / len(y)
            b -= recipe.head_lr * slope.mean(0)
    return losses


@pytest.mark.parametrize("framework", BOTH)
def test_the_loss_and_its_updates_are_those_by_hand(framework, nets, data):
    recipe = RECIPE.but(strategy="head", class_weights="balanced")
    run = tuned(nets[framework], data, recipe)
    expected = losses_by_hand(nets[framework], data, recipe, (24 / 36, 1, 2))
    assert np.allclose(run.step_losses, expected, rtol=1e-4)
    plain = losses_by_hand(nets[framework], data, recipe, (1, 1, 1))
    assert not np.allclose(run.step_losses, plain, rtol=1e-2)


def test_both_frameworks_take_the_same_steps(nets, data):
    a, b = (tuned(nets[f], data) for f in BOTH)
    assert len(a.step_losses) == 6 and gap(a, b) < 1e-3
    assert gap(a, tuned(nets["torch"], data, RECIPE.but(class_weights=None))) > 0.05


@pytest.mark.parametrize("framework", BOTH)
def test_weights_of_one_change_nothing(framework, nets, data):
    ones = tuned(nets[framework], data, RECIPE.but(class_weights=(1, 1, 1)))
    none = tuned(nets[framework], data, RECIPE.but(class_weights=None))
    assert gap(ones, none) < 1e-5


@pytest.mark.parametrize("framework", BOTH)
def test_the_source_and_the_validation_loss_have_no_weights(framework, nets, data):
    net, source = nets[framework], counted((4, 4, 4), seed=1)
    # A source of its own classes has its own head, so its loss can be told apart.
    source = ImageDataset(source.images, source.labels, ["a", "b", "c"])
    first = {}
    for weights in (None, (1, 1, 1e4)):
        recipe = RECIPE.but(class_weights=weights, source_weight=10.0, epochs=1)
        alone, joint = tuned(net, data, recipe), tuned(net, data, recipe, source=source)
        first[weights] = joint.step_losses[0] - alone.step_losses[0]
    assert np.isclose(*first.values(), rtol=1e-2)
    run = fine_tune(net, data, data, RECIPE, progress=False)
    logits = run.logits(data)
    last = run.history[run.best_epoch - 1] if run.best_epoch else None
    if last:
        plain = by_hand(logits, data.labels, (1, 1, 1), 0)
        assert np.isclose(last["valid_loss"], plain, atol=1e-4)


# --- in pieces, in several processes, on another backend ------------------------------


@on_tensorflow
def test_pieces_make_the_same_step_in_keras(nets, data, monkeypatch):
    from transfer_course.trainer import keras_step

    whole = tuned(nets["keras"], data)
    settings = keras_step.Settings
    monkeypatch.setattr(keras_step, "Settings", lambda: settings(pieces=3))
    assert gap(tuned(nets["keras"], data), whole) < 1e-4


def test_parts_make_the_same_step_in_torch(nets, data, monkeypatch):
    from transfer_course.trainer.torch_step import Stepper

    whole = tuned(nets["torch"], data)
    monkeypatch.setattr(Stepper, "parts", 3)
    assert gap(tuned(nets["torch"], data), whole) < 1e-4


def elsewhere(code, tmp_path, *command, **env):
    """What `code` prints in a process of its own, as JSON."""
    program = tmp_path / "program.py"
    program.write_text(code)
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, *command, str(program)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return json.loads(lines[-1])


RUN = """
import json
{before}
from test_class_weights import RECIPE, backbone, copy_torch_to_keras, counted, tuned
net = backbone("small_cnn", "{framework}", weights=None, seed=3)
if "{framework}" == "keras":
    first = backbone("small_cnn", "torch", weights=None, seed=3)
    copy_torch_to_keras(first.model.state_dict(), net.model)
{inside}
    print(json.dumps(tuned(net, counted((12, 8, 4))).step_losses), flush=True)
"""


def test_keras_on_torch_takes_the_same_steps(nets, data, tmp_path):
    code = RUN.format(before="", framework="keras", inside="if True:")
    losses = elsewhere(code, tmp_path, KERAS_BACKEND="torch")
    expected = tuned(nets["torch"], data).step_losses
    assert np.abs(np.subtract(losses, expected)).max() < 1e-3


@on_tensorflow
def test_two_devices_of_keras_take_the_same_steps(nets, data, tmp_path):
    before = """
from transfer_course.engine.frameworks import load_torch
load_torch()
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
"""
    inside = """
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with mirrored.scope():
    net = backbone("small_cnn", "keras", weights=None, seed=3)
    copy_torch_to_keras(first.model.state_dict(), net.model)
"""
    code = RUN.format(before=before, framework="keras", inside=inside)
    losses = elsewhere(code, tmp_path)
    expected = tuned(nets["keras"], data).step_losses
    assert np.abs(np.subtract(losses, expected)).max() < 1e-4


def test_two_processes_take_the_same_steps(nets, data, tmp_path):
    code = RUN.format(before="", framework="torch", inside="if True:")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    losses = elsewhere(code, tmp_path, *launch, CUDA_VISIBLE_DEVICES="")
    expected = tuned(nets["torch"], data).step_losses
    assert np.abs(np.subtract(losses, expected)).max() < 1e-4


# --- the probe, resuming, saving ------------------------------------------------------


@pytest.mark.parametrize("framework", BOTH)
@pytest.mark.parametrize("weights", [WEIGHTS, "balanced"])
def test_a_probe_gets_the_weights(framework, weights, nets):
    data = counted((12, 8, 4), brighter=0)  # where the classes can't be told apart
    recipe = Recipe("probe", class_weights=weights)
    result = tuned(nets[framework], data, recipe)
    Z = extract(nets[framework], data, progress=False)
    if weights == "balanced":
        weights = (24 / 36, 1, 2)
    probe = linear_probe(Z, data.labels, data.groups, class_weights=weights)
    assert np.abs(result.predict(data) - probe.predict_proba(Z)).max() < 1e-3
    if weights is WEIGHTS:
        other = linear_probe(Z, data.labels, data.groups)
        assert np.abs(result.predict(data) - other.predict_proba(Z)).max() > 1e-2


@pytest.mark.parametrize("framework", BOTH)
def test_a_run_goes_on_with_the_same_weights_only(framework, nets, data, tmp_path):
    def stop(end):
        if end.epoch == 2:
            raise KeyboardInterrupt

    net = nets[framework]
    for name in ("whole", "run"):
        (tmp_path / name).mkdir()
    whole = tuned(net, data, checkpoint=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tuned(net, data, checkpoint=tmp_path / "run", callbacks=[stop])
    other = RECIPE.but(class_weights=(1, 1, 1))
    with pytest.raises(BadValue, match="class_weights"):
        tuned(net, data, other, checkpoint=tmp_path / "run")
    again = tuned(net, data, checkpoint=tmp_path / "run")
    assert again.step_losses == whole.step_losses
    again.save(tmp_path / "saved")
    assert load_result(tmp_path / "saved").recipe == RECIPE


@pytest.mark.parametrize("framework", BOTH)
def test_a_head_with_weights_predicts_the_rare_class_more(framework, nets):
    # The objective is convex and the classes overlap, so this has to be so.
    rare = counted((40, 40, 8), seed=2, brighter=1)
    recipe = RECIPE.but(strategy="head", epochs=10, label_smoothing=0.0)
    mean = {}
    for weights in (None, "balanced"):
        run = tuned(nets[framework], rare, recipe.but(class_weights=weights))
        mean[weights] = run.predict(rare)[:, 2].mean()
    assert mean["balanced"] > 2 * mean[None]
