"""Ours beside theirs, turn by turn in one process, on the same images, weights, device and threads: `make bench`.

Rows: extraction of features (network alone, and from files), a step of fine-tuning, starting. Ratio above 1: ours is better.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from transfer_course.engine.runs import versions
from transfer_course.practice.records import machine
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import image_folder, styles

HERE = Path(__file__).resolve().parent


def turns(ours, theirs, rounds: int = 5) -> tuple[float, float, list[float]]:
    """Best seconds of each, and the ratio of every round; the two take turns, so a slow minute hits both."""
    ours(), theirs()
    mine, other = [], []
    for _ in range(rounds):
        for call, seconds in ((ours, mine), (theirs, other)):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    return min(mine), min(other), [b / a for a, b in zip(mine, other, strict=True)]


def row(name: str, peer: str, ours: float, theirs: float, ratios: list[float], unit: str) -> dict:
    """One line of the table."""
    low, high = np.quantile(ratios, [0, 1])
    return dict(name=name, peer=peer, ours=ours, theirs=theirs, unit=unit, ratio=float(np.median(ratios)), low=float(low), high=float(high))


def extraction(size: int, n: int = 64) -> dict:
    """The network alone: ours against an eager loop in the default memory layout, as tutorials write it."""
    import torch

    net = backbone("efficientnet_lite0", "torch")
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    plain = backbone("efficientnet_lite0", "torch").model.to(memory_format=torch.contiguous_format).eval()
    x = torch.from_numpy(np.ascontiguousarray(net.preprocess(images)))

    def eager():
        with torch.no_grad():
            return torch.cat([plain(part) for part in x.split(32)]).numpy()

    assert np.abs(eager() - net.features(images)).max() < 1e-4
    a, b, ratios = turns(lambda: net.features(images), eager)
    return row(f"features, {size} px", "torch eager", n / a, n / b, ratios, "images/s")


def from_files(size: int = 96, n: int = 96) -> dict:
    """From files to features: ours against one-by-one decoding and the same network."""
    import torch
    from PIL import Image

    net, data = backbone("efficientnet_lite0", "torch"), styles("noto", size=256)
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(n):
            folder = Path(tmp) / str(i % 2)
            folder.mkdir(exist_ok=True)
            Image.fromarray(data.images[i]).save(folder / f"{i}.jpg", quality=92)
        files = sorted(Path(tmp).rglob("*.jpg"))

        def theirs():
            images = np.stack([np.asarray(Image.open(f).convert("RGB").resize((size, size), Image.BICUBIC)) for f in files])
            x = torch.from_numpy(np.ascontiguousarray(net.preprocess(images)))
            with torch.no_grad():
                return torch.cat([net.model.eval()(part) for part in x.split(32)])

        a, b, ratios = turns(lambda: net.features(image_folder(tmp, size=size).images), theirs, rounds=3)
    return row(f"files to features, {size} px", "Pillow + torch eager", n / a, n / b, ratios, "images/s")


def starting() -> dict:
    """`import transfer_course` against importing what it stands for."""

    def python(code):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    a, b, ratios = turns(python("import transfer_course"), python("import torch, torchvision"), rounds=3)
    return row("start", "import torch, torchvision", a, b, ratios, "s")


def main() -> None:
    """Measure, print, store."""
    rows = [extraction(96), extraction(224), from_files(), starting()]
    for r in rows:
        print("{name:<28}ours {ours:8.2f}  {peer} {theirs:8.2f} {unit}   ratio {ratio:.2f} ({low:.2f} to {high:.2f})".format(**r))
    out = HERE / "results" / "cpu.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "versions": versions(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"stored in {out.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
