"""Keras code is Keras 3 that runs on any backend.

The same run is made once on the torch backend, in a process of its own.
"""

import os
import subprocess
import sys

CODE = """
import numpy as np
from transfer_course.engine.frameworks import load_keras
keras = load_keras()
assert keras.config.backend() == "torch"
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import styles
from transfer_course.vision.networks import copy_torch_to_keras
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.vision.freezing import assert_frozen, snapshot

data = styles("twemoji", size=64)
images = data.subset(np.flatnonzero(data.labels < 3)[::3]).only(data.classes[:3])
nets = {f: backbone("small_cnn", f, weights=None, seed=3) for f in ("torch", "keras")}
copy_torch_to_keras(nets["torch"].model.state_dict(), nets["keras"].model)
recipe = Recipe(
    epochs=2, batch_size=8, optimizer="sgd", momentum=0.0, lr=0.01, head_lr=0.1,
    schedule="constant", warmup=0.0,
)
a, b = (fine_tune(nets[f], images, images, recipe, progress=False) for f in nets)
gap = np.abs(np.array(a.step_losses) - np.array(b.step_losses))
assert len(gap) >= 10 and gap[:10].max() < 1e-3, gap
lite0 = backbone("efficientnet_lite0", "keras")
before = snapshot(lite0.model)
head_only = recipe.but(strategy="head", epochs=1)
head = fine_tune(lite0, images, None, head_only, progress=False)
print("frozen", assert_frozen(before, snapshot(head.backbone.model)))
expected = b.logits(images)
b.save("run", size=64)
assert np.array_equal(load_result("run").logits(images), expected)
print("alive")
"""


def test_the_same_run_on_the_torch_backend(tmp_path):
    env = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("alive"), done.stderr[
        -1500:
    ]
