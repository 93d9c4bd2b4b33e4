"""The runs in `saved_runs/`: made once by the code of commit bcced3b (26 November
2026), before the training loops moved to the `trainer` room. They must load, predict
and resume for ever after.

python tests/saved_runs.py FOLDER torch|keras    makes one framework's part anew
"""

import os
import sys
from pathlib import Path

import numpy as np

CLASSES = ["bird", "drink", "face"]
FOLDER = Path(__file__).parent / "saved_runs"


def data(seed, each=6, side=32):
    """Coloured noise, one colour per class: every machine can make it again."""
    from transfer_course import ImageDataset

    rng = np.random.default_rng(seed)
    labels = np.arange(len(CLASSES) * each) % len(CLASSES)
    images = rng.integers(0, 96, (len(labels), side, side, 3), dtype=np.uint8)
    images[np.arange(len(labels)), :, :, labels] += 128
    return ImageDataset(images=images, labels=labels, classes=CLASSES)


def weights(path, framework):
    """small_cnn with weights of three values, which compress well; for `weights=`."""
    from safetensors.numpy import save_file

    from transfer_course import backbone

    state = backbone("small_cnn", "torch", weights=None).model.state_dict()
    coarse = {}
    for i, (name, value) in enumerate(state.items()):
        signs = np.random.default_rng(i).integers(-1, 2, tuple(value.shape))
        fan_in = max(1, int(np.prod(value.shape[1:])))
        coarse[name] = (signs * np.sqrt(3 / fan_in)).astype("float32")
    save_file(coarse, str(path))
    return backbone("small_cnn", framework, weights=path)


def recipe():
    """Two phases' worth of state: the head alone, with moments, patience and views."""
    from transfer_course import Recipe

    return Recipe(
        strategy="head",
        epochs=4,
        batch_size=5,
        lr=0.01,
        head_lr=0.05,
        augment=0.5,
        views=2,
        patience=4,
        seed=3,
    )


def killed(net, folder, saves):
    """The run, ended hard after so many checkpoints."""
    from transfer_course import fine_tune
    from transfer_course.engine.checkpoints import Checkpoint

    folder.mkdir()
    save, count = Checkpoint.save, []

    def counted(self, *a, **k):
        save(self, *a, **k)
        count.append(1)
        if len(count) == saves:
            raise KeyboardInterrupt

    Checkpoint.save = counted
    try:
        fine_tune(net, data(0), data(1), recipe(), progress=False, checkpoint=folder)
    except KeyboardInterrupt:
        pass
    finally:
        Checkpoint.save = save


def make(root, framework):
    """A finished run, a checkpoint in the midst, and what both gave then."""
    from transfer_course import fine_tune

    os.environ["TRANSFER_COURSE_CHECKPOINT_SECONDS"] = "0"
    root.mkdir(parents=True, exist_ok=True)
    net = weights(root / "weights.safetensors", framework)
    whole = fine_tune(net, data(0), data(1), recipe(), progress=False)
    whole.save(root / f"{framework}-run", size=32)
    killed(net, root / f"{framework}-checkpoint", 7 if framework == "torch" else 2)
    np.savez(
        root / f"{framework}-expected.npz",
        probabilities=whole.predict(data(2).images),
        step_losses=whole.step_losses,
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
