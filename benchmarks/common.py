"""What every section of the bench uses: threads, turns, rows, the pictures as files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Pictures, and the curves of runs that are done.
WORK = Path(os.environ.get("TRANSFER_COURSE_BENCH", ROOT / "out" / "bench"))
# The bundled weights' preprocessing, as torchvision's Normalize says it.
LITE0 = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def cores() -> int:
    """CPU cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )


def same_threads() -> int:
    """Give PyTorch, TensorFlow and OpenVINO the same number of threads.

    To be called before any of them is imported.
    """
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    os.environ["TF_NUM_INTRAOP_THREADS"] = threads
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    return int(threads)


def seconds(call) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def turns(
    ours, theirs, rounds: int, warm: bool = True
) -> tuple[list[float], list[float]]:
    """Seconds of each round of both.

    They take turns, also in who goes first, so that a slow minute hits both.
    """
    if warm:
        ours(), theirs()
    mine, other = [], []
    for i in range(rounds):
        pair = [(ours, mine), (theirs, other)]
        for call, kept in pair if i % 2 == 0 else pair[::-1]:
            kept.append(seconds(call))
    return mine, other


def row(
    section, name, peer, ours, theirs, unit, ratios=(), floor=None, note=""
) -> dict:
    """One line of the table.

    `ratios` holds one number per round, above 1 where ours is better; `theirs` is None
    where there is no peer.
    """
    r = np.asarray(ratios, float)
    middle, low, high = (
        (float(np.median(r)), float(r.min()), float(r.max())) if len(r) else (None,) * 3
    )
    ours, theirs = (None if v is None else float(v) for v in (ours, theirs))
    return dict(
        section=section,
        name=name,
        peer=peer,
        ours=ours,
        theirs=theirs,
        unit=unit,
        ratio=middle,
        low=low,
        high=high,
        floor=floor,
        note=note,
    )


def rate_row(
    section, name, peer, n, mine, other, floor=None, note="", unit="images/s"
) -> dict:
    """The row of two calls that each worked on `n` images, from their seconds."""
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return row(
        section,
        name,
        peer,
        n / np.median(mine),
        n / np.median(other),
        unit,
        ratios,
        floor,
        note,
    )


def own_cache() -> None:
    """The bench has a cache of its own: it empties it."""
    os.environ["TRANSFER_COURSE_CACHE"] = str(WORK / "cache")


def forget_features() -> None:
    """Forget the features of all images.

    What was measured of the engines stays, because that is paid once per machine and
    not once per run.
    """
    for file in (WORK / "cache").rglob("*.sqlite*"):
        file.unlink(missing_ok=True)


def jpegs(
    folder: Path, n: int, side: int, classes: int = 2, distinct: int = 256
) -> Path:
    """`n` JPEG files of `side` px in class folders.

    Their pictures repeat after `distinct`; their bytes never do.
    """
    import io

    from PIL import Image

    done = folder / f".{n}-{side}-{classes}"
    if done.exists():
        return folder
    rng, pictures = np.random.default_rng(0), []
    for _ in range(min(n, distinct)):
        rough = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(rough).resize((side, side), Image.BICUBIC).save(
            buffer, "JPEG", quality=90
        )
        pictures.append(buffer.getvalue())
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True, exist_ok=True)
    for i in range(n):
        # A COM segment right after the start of the image.
        comment = f"picture {i}".encode()
        data = pictures[i % len(pictures)]
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"class{i % classes}" / f"{i:06}.jpg").write_bytes(
            data[:2] + segment + data[2:]
        )
    done.touch()
    return folder


def noto_folder(
    seed: int, size: int = 96, valid: float = 0.3, most: int | None = None
) -> Path:
    """Noto's development pictures as PNG files in `train/CLASS` and `val/CLASS`.

    No identity is on both sides; the seed decides the split.
    """
    from PIL import Image

    from transfer_course.vision.data import styles

    folder = WORK / "noto" / f"{size}-{seed}-{valid}-{most or 'all'}"
    if (folder / ".done").exists():
        return folder
    train, held_out, _ = styles("noto", size=size).split(valid=valid, test=0, seed=seed)
    for part, data in (("train", train), ("val", held_out)):
        for c in data.classes:
            (folder / part / c).mkdir(parents=True, exist_ok=True)
        chosen = (
            first_of_each_class(data.labels, most) if most else np.arange(len(data))
        )
        for i in chosen:
            Image.fromarray(data.images[i]).save(
                folder / part / data.classes[data.labels[i]] / f"{i:03}.png"
            )
    (folder / ".done").touch()
    return folder


def first_of_each_class(labels, most: int) -> np.ndarray:
    """Rows of the first `most` images of every class."""
    return np.concatenate(
        [np.flatnonzero(labels == c)[:most] for c in np.unique(labels)]
    )


def conditions() -> dict:
    """What a peer's run has to have in common with ours beside it.

    The threads, the libraries, and the peers as they are written.
    """
    from importlib.metadata import PackageNotFoundError, version

    from transfer_course.practice.records import machine

    found = {}
    for name in (
        "torch",
        "torchvision",
        "tensorflow",
        "keras",
        "fastai",
        "timm",
        "numpy",
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    written = hashlib.sha256((HERE / "peers.py").read_bytes()).hexdigest()
    return {
        "machine": machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": found,
        "peers": written,
    }


def remembered(name: str, make):
    """What `make()` gave, kept in a work file.

    A broken bench goes on where it stopped. Under other conditions it is made anew.
    """
    file, now = WORK / "runs" / f"{name}.json", conditions()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["conditions"] == now:
            return kept["value"]
    value = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(".part")
    whole.write_text(json.dumps({"conditions": now, "value": value}), encoding="utf-8")
    whole.replace(file)
    return value


class Curve:
    """Accuracy on validation against seconds since the start."""

    def __init__(self):
        self.began, self.points = time.perf_counter(), []

    def note(self, accuracy: float) -> None:
        """One more point, now."""
        self.points.append([time.perf_counter() - self.began, float(accuracy)])
