"""tf.distribute: two devices end with what one ends with.

Every image is seen once, whatever the batch's size.
"""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys
import numpy as np
from transfer_course.engine.frameworks import load_keras
keras = load_keras()
import tensorflow as tf
two = [tf.config.LogicalDeviceConfiguration()] * 2
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, two)
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import styles
from transfer_course.trainer.batches import Epoch
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune
from transfer_course.trainer import keras_step

# One for all: TensorFlow confuses the collectives of several.
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
seen = []
step = keras_step.gradients
def note(numbers, share):
    if share > 0:
        seen.extend(numbers.numpy().ravel().tolist())
def watched(model, x, y, share):
    if len(x["images"].shape) == 4:
        numbers = y["labels"] * 0 + tf.cast(x["images"][:, 0, 0, 0], tf.int32)
        tf.py_function(note, [numbers, 1.0 if share is None else share], [])
    return step(model, x, y, share)

images = styles("twemoji", size=32)
data = images.subset(np.flatnonzero(images.labels < 3)[::3]).only(images.classes[:3])
pixels = data.images.copy()
pixels[:, 0, 0, 0] = np.arange(len(data))  # each image says which one it is
from transfer_course.vision.data import ImageDataset
data = ImageDataset(pixels, data.labels, data.classes)
net = backbone("small_cnn", "keras", weights=None, seed=3)
keras_step.gradients = watched
out = {}
base = dict(
    epochs=2, optimizer="adamw", lr=1e-4, head_lr=1e-3, schedule="constant",
    warmup=0.0, weight_decay=0.01,
)
def penalty(s):
    square, total = keras.ops.square, keras.ops.sum
    return 1e-3 * sum(total(square(s.weights[k] - w)) for k, w in s.start.items())
def largest(x, y):
    return float(np.abs(x - y).max())
for name, changes, kwargs in CASES:
    runs = []
    for devices in (1, 2):
        seen.clear()
        recipe = Recipe(**{**base, **changes})
        go = lambda: fine_tune(net, data, data, recipe, progress=False, **kwargs)
        if devices == 1:
            runs.append((go(), sorted(seen)))
        else:
            with mirrored.scope():
                runs.append((go(), sorted(seen)))
    (a, once), (b, both) = runs
    whole = sorted(list(range(len(data))) * recipe.epochs)
    head_only = changes.get("strategy") == "head"
    ours, theirs = a.model.get_weights(), b.model.get_weights()
    rows = list(zip(a.history, b.history, strict=True))
    out[name] = dict(
        weights=max(largest(x, y) for x, y in zip(ours, theirs, strict=True)),
        losses=float(np.abs(np.subtract(a.step_losses, b.step_losses)).max()),
        moved=largest(ours[0], net.model.get_weights()[0]),
        accuracy=all(r["accuracy"] == s["accuracy"] for r, s in rows),
        history=max(
            abs(r["loss"] - s["loss"]) + abs(r["valid_loss"] - s["valid_loss"])
            for r, s in rows
        ),
        once=head_only or once == whole,
        both=head_only or both == whole,
        logits=largest(a.logits(data), b.logits(data)),
        sizes=sorted({len(p) for p in Epoch(data, recipe, 0).parts}),
    )
print(json.dumps(out))
"""


def run(cases):
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("CASES", cases)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        pytest.skip("tf.distribute is TensorFlow's")
    return run("""[
        ("uneven", dict(batch_size=7), dict(penalty=penalty)),
        ("one image for two", dict(strategy="head", batch_size=1, epochs=1), {}),
    ]""")


@pytest.mark.parametrize("case", ["uneven", "one image for two"])
def test_two_devices_end_with_what_one_ends_with(found, case):
    r = found[case]
    assert r["once"] and r["both"], "an image was seen twice or not at all"
    assert (
        r["losses"] < 1e-4
        and r["weights"] < 1e-4
        and r["history"] < 1e-3
        and r["accuracy"]
    ), r
    assert r["logits"] < 1e-3 and (r["moved"] > 1e-5 or case != "uneven"), r


def test_the_batches_were_not_divisible(found):
    assert any(n % 2 for n in found["uneven"]["sizes"]) and found["one image for two"][
        "sizes"
    ] == [1]
