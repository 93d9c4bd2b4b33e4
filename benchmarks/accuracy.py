"""(g) What a fast path costs in accuracy.

The same seeds, splits and recipe run with it and without it; the difference is paired,
over identities too.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import peers
from common import WORK

SEEDS = range(5)
TUNE = dict(strategy="lp_ft", epochs=6, lr=3e-4, head_lr=3e-4, train_from="stage6")


def probed(Z, data, seed: int) -> np.ndarray:
    """Right or wrong for each picture that this seed holds out, NaN for the others.

    A probe on the features `Z` of all pictures.
    """
    from transfer_course import linear_probe

    train, held_out = parts(data, seed)
    out = np.full(len(data), np.nan)
    out[held_out] = (
        linear_probe(Z[train], data.labels[train], data.groups[train]).predict(
            Z[held_out]
        )
        == data.labels[held_out]
    )
    return out


def tuned(data, seed: int, **how) -> np.ndarray:
    """The same for a fine-tuned network.

    The last epoch counts, so that no path chooses its best epoch on the test set.
    """
    from transfer_course import Recipe, fine_tune

    train, held_out = parts(data, seed)
    recipe = Recipe(**{**TUNE, "seed": seed, **how})
    result = fine_tune(peers.lite0(), data.subset(train), None, recipe, progress=False)
    out = np.full(len(data), np.nan)
    out[held_out] = (
        result.predict(data.subset(held_out)).argmax(1) == data.labels[held_out]
    )
    return out


def parts(data, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, no identity in both."""
    from transfer_course import ImageDataset

    numbered = ImageDataset(
        data.images,
        data.labels,
        data.classes,
        groups=data.groups,
        names=np.arange(len(data)),
    )
    train, held_out, _ = numbered.split(valid=0.3, test=0, seed=seed)
    return train.names, held_out.names


def compared(name: str, plain, fast, groups) -> dict:
    """Mean accuracies and the paired difference with its 99 % interval."""
    from transfer_course.vision.evaluate import paired_interval

    plain, fast = np.array(plain), np.array(fast)
    tested = ~np.isnan(plain).all(0)  # under one seed at least
    plain, fast, groups = plain[:, tested], fast[:, tested], groups[tested]
    d = paired_interval(fast, plain, groups, level=0.99)
    means = dict(plain=float(np.nanmean(plain)), fast=float(np.nanmean(fast)))
    return dict(
        name=name,
        **means,
        difference=float(d[0]),
        low=float(d[1]),
        high=float(d[2]),
        seeds=len(plain),
        images=int(len(groups)),
    )


def features(data, seeds) -> list[dict]:
    """Extraction: the chosen engine and bfloat16 beside an eager loop."""
    from transfer_course import extract
    from transfer_course.engine.engines import choose

    net = peers.lite0()
    plain = peers.torch_eager(peers.lite0(), data.images)()
    # The same engine as without where the processor has no bfloat16.
    halves = choose(net, *data.images.shape[1:3], bf16=True)
    paths = {"extraction: chosen engine": {}} | (
        {f"extraction: {halves}": {"bf16": True}} if "bf16" in halves else {}
    )
    rows = []
    for name, how in paths.items():
        Z = extract(net, data, cache=False, progress=False, **how)
        rows.append(
            compared(
                name,
                [probed(plain, data, s) for s in seeds],
                [probed(Z, data, s) for s in seeds],
                data.groups,
            )
        )
    return rows


def jpeg_scale(data, size: int, seeds) -> dict:
    """JPEG files decoded at a reduced scale beside the same files decoded whole.

    The pictures are enlarged to four times their size first.
    """
    from PIL import Image

    from transfer_course import ImageDataset, extract

    folder, paths = WORK / f"scale-{size}-{len(data)}", []
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(data.images):
        paths.append(folder / f"{i:03}.jpg")
        if not paths[-1].exists():
            Image.fromarray(image).resize((4 * size, 4 * size), Image.BICUBIC).save(
                paths[-1], quality=92
            )
    net, Z = peers.lite0(), {}
    for fast in (False, True):
        read = ImageDataset(
            None, data.labels, data.classes, paths=paths, size=size, draft=fast
        )
        Z[fast] = extract(net, read, cache=False, progress=False)
    two = [[probed(Z[fast], data, s) for s in seeds] for fast in (False, True)]
    return compared("decoding: JPEG at a reduced scale", *two, data.groups)


@contextmanager
def step_by_step():
    """Fine-tuning without any of the shortcuts.

    The frozen part runs in every epoch, as if its activations did not fit into the
    memory; a held BatchNorm stands for itself, and every gradient is the library's.
    """
    from unittest import mock

    from transfer_course.trainer.torch_frozen import Kept
    from transfer_course.trainer.torch_speed import Folded, Quick

    def never(*_):
        return False

    with (
        mock.patch.object(Kept, "fits", never),
        mock.patch.object(Folded, "fits", never),
        mock.patch.object(Quick, "fits", never),
    ):
        yield


def tuning(data, seeds, **how) -> list[dict]:
    """Fine-tuning: the fast paths beside the plain one.

    The frozen part runs once, BatchNorm is folded, and a few augmented views are kept
    instead of a fresh one in every epoch.
    """
    views = dict(augment=0.5, **how)
    plain, kept, fresh, few = [], [], [], []
    for s in seeds:
        with step_by_step():
            plain.append(tuned(data, s, **how))
            fresh.append(tuned(data, s, **views))
        kept.append(tuned(data, s, **how))
        few.append(tuned(data, s, views=4, **views))
    return [
        compared(
            "fine-tuning: frozen part run once, BatchNorm folded, small maps",
            plain,
            kept,
            data.groups,
        ),
        compared(
            "fine-tuning: 4 kept views, not a fresh one an epoch",
            fresh,
            few,
            data.groups,
        ),
    ]


def section(quick: bool, rounds: int) -> dict:
    """The comparisons of (g)."""
    from common import first_of_each_class

    from transfer_course import styles

    size, seeds = (32, range(2)) if quick else (96, SEEDS)
    data = styles("noto", size=size)
    if quick:
        data = data.subset(first_of_each_class(data.labels, 4))
    how = dict(epochs=1) if quick else {}
    return {
        "accuracy": [
            *features(data, seeds),
            jpeg_scale(data, size, seeds),
            *tuning(data, seeds, **how),
        ]
    }
