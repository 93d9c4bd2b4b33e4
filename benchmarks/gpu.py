"""Fine-tuning on a GPU: images/s, share of the device's peak, and waiting for data.

python benchmarks/gpu.py [--images 8192] [--batch 256] [--out FILE]
    ResNet-50 and EfficientNet-B0 at 224 px, generated JPEG files
python benchmarks/gpu.py --quick
    the same paths on a CPU with tiny pictures; the figures mean nothing

Compared are the tutorial's loop, timm's training script and ours. All read the same
folder with the same batch size, take the same number of steps in this one process and
have random weights. The tutorial's loop is as its documentation has it: float32,
default memory layout. timm's is `train.py --amp --amp-dtype bfloat16 --channels-last`
with its prefetcher. Ours is `fine_tune`. Timed is the second epoch. The results go to
benchmarks/results/DEVICE.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import common
import numpy as np
from bench import about, as_line
from growth import environment

# Dense bfloat16 FLOP/s by the makers' data sheets; a device that is not here is
# measured with a matrix product.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
NETWORKS = ("resnet50", "efficientnet_b0")
SMALL = dict(images=8, batch=4, side=32, picture=48)


class Watch:
    """When each batch was asked for and when it came, for every epoch."""

    def __init__(self):
        self.epochs = []

    def over(self, batches):
        """The batches, noted; `len` stays."""
        log, n = [], len(batches) if hasattr(batches, "__len__") else None
        self.epochs.append(log)

        def noted():
            it = iter(batches)
            while True:
                asked = time.perf_counter()
                try:
                    batch = next(it)
                except StopIteration:
                    log.append((asked, time.perf_counter()))
                    return
                log.append((asked, time.perf_counter()))
                yield batch

        return _Sized(noted(), n)

    def share(self) -> float:
        """Waiting as a share of the last epoch, from its first batch on.

        The first batch is left out, because it fills the pipeline.
        """
        log = self.epochs[-1]
        if len(log) < 3:
            return float("nan")
        waited = sum(b - a for a, b in log[1:-1])
        return waited / (log[-1][0] - log[0][1])

    def steps(self, most: int = 12) -> list:
        """(asked, came, done) of the first steps of the last epoch, in seconds."""
        log = self.epochs[-1][: most + 1]
        zero = log[0][0] if log else 0
        return [
            [a - zero, b - zero, c - zero]
            for (a, b), (c, _) in zip(log, log[1:], strict=False)
        ]


class _Sized:
    """An iterator that knows its length."""

    def __init__(self, it, n):
        self.it, self.n = it, n

    def __iter__(self):
        return self.it

    def __next__(self):
        return next(self.it)

    def __len__(self):
        return self.n


def device():
    """Where all of them train."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle() -> None:
    """Wait until the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def epochs_of(loader, step, watch: Watch, epochs: int = 2) -> float:
    """Seconds of the last epoch."""
    for _ in range(epochs):
        settle()
        began = time.perf_counter()
        for batch in watch.over(loader):
            step(batch)
        settle()
    return time.perf_counter() - began


def tutorial(name: str, folder: Path, o, watch: Watch) -> float:
    """The tutorial's loop, in float32 and the default memory layout.

    torchvision's model, ImageFolder, DataLoader, SGD.
    """
    import torch
    from torch import nn
    from torchvision import datasets, models, transforms

    norm = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crop = [
        transforms.RandomResizedCrop(o.side),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        norm,
    ]
    data = datasets.ImageFolder(folder, transforms.Compose(crop))
    loader = torch.utils.data.DataLoader(
        data, batch_size=o.batch, shuffle=True, num_workers=o.workers
    )
    model = models.get_model(name, weights=None)
    dev = device()
    criterion = nn.CrossEntropyLoss()
    if hasattr(model, "fc"):
        model.fc = nn.Linear(model.fc.in_features, len(data.classes))
    else:
        model.classifier[-1] = nn.Linear(
            model.classifier[-1].in_features, len(data.classes)
        )
    model = model.to(dev).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(batch):
        inputs, labels = batch[0].to(dev), batch[1].to(dev)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        return loss.item() * inputs.size(0), torch.sum(
            outputs.argmax(1) == labels
        ).item()

    return epochs_of(loader, step, watch)


def timm_script(name: str, folder: Path, o, watch: Watch) -> float:
    """timm's `train.py`, with bfloat16 autocast and channels_last.

    create_dataset, create_loader with its prefetcher.
    """
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    dev = device()
    data = create_dataset("", root=str(folder), split="train", is_training=True)
    how = dict(
        is_training=True,
        num_workers=o.workers,
        pin_memory=dev.type == "cuda",
        use_prefetcher=True,
        device=dev,
    )
    loader = create_loader(data, (3, o.side, o.side), o.batch, **how)
    model = (
        timm.create_model(name, pretrained=False, num_classes=2)
        .to(dev, memory_format=torch.channels_last)
        .train()
    )
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-3, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss().to(dev)

    def step(batch):
        inputs = batch[0].contiguous(memory_format=torch.channels_last)
        with torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"):
            loss = criterion(model(inputs), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        settle()

    return epochs_of(loader, step, watch)


@contextlib.contextmanager
def watched(watch: Watch):
    """Our loop's own batches, noted on their way.

    `ahead` builds them in the background.
    """
    from transfer_course.trainer import torch_phase

    real = torch_phase.ahead
    torch_phase.ahead = lambda *a, **k: watch.over(real(*a, **k))
    try:
        yield
    finally:
        torch_phase.ahead = real


def ours(name: str, folder: Path, o, watch: Watch, framework: str = "torch") -> float:
    """`fine_tune` on the same folder, BatchNorm training like the peers'."""
    from transfer_course import Recipe, backbone, fine_tune, image_folder

    data = image_folder(folder, size=o.side, progress=False)
    recipe = Recipe(
        epochs=2,
        batch_size=o.batch,
        optimizer="sgd",
        lr=1e-3,
        head_lr=1e-3,
        batch_norm="train",
        augment=0.5,
    )
    with watched(watch) if framework == "torch" else contextlib.nullcontext():
        result = fine_tune(
            backbone(name, framework, weights=None),
            data,
            None,
            recipe,
            progress=False,
            workers=o.workers,
        )
    return result.history[-1]["seconds"]


def ours_compiled(name: str, folder: Path, o, watch: Watch) -> float:
    """The same, compiled although the run is short.

    What the limit in `torch_speed` has to be weighed with: the first epoch pays for it.
    """
    from transfer_course.trainer import torch_speed

    real, torch_speed.COMPILE_STEPS = torch_speed.COMPILE_STEPS, 0
    try:
        return ours(name, folder, o, watch)
    finally:
        torch_speed.COMPILE_STEPS = real


def keras_on_torch(name: str, folder: Path, o) -> float:
    """Our Keras loop on the torch backend.

    In a process of its own, because a process has one backend.
    """
    command = [
        sys.executable,
        __file__,
        "--keras-child",
        name,
        "--folder",
        folder,
        "--batch",
        o.batch,
        "--side",
        o.side,
        "--workers",
        o.workers,
    ]
    env = {**environment(), "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.strip().splitlines()[-1])


def flops_per_image(name: str, side: int) -> float:
    """FLOPs of a forward and a backward pass, counted without computing anything.

    A multiplication with its addition counts as two.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision import models

    with torch.device("meta"):
        model, x = models.get_model(name, weights=None), torch.empty(2, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops() / 2


def peak() -> tuple[float, str]:
    """FLOP/s of the device in bfloat16, and where that figure is from."""
    import torch

    dev = device()
    name = torch.cuda.get_device_name() if dev.type == "cuda" else ""
    for known, flops in PEAKS.items():
        if known in name.upper().replace("-", " ").split():
            return flops, "data sheet, dense bfloat16"
    n, kind = (8192, torch.bfloat16) if dev.type == "cuda" else (512, torch.float32)
    a, took = torch.randn(n, n, device=dev, dtype=kind), []
    for _ in range(5):
        settle()
        began = time.perf_counter()
        a @ a
        settle()
        took.append(time.perf_counter() - began)
    return 2 * n**3 / min(
        took
    ), f"measured: a product of {n} × {n} matrices, {str(kind)[6:]}"


def timeline(watches: dict[str, Watch]):
    """The first steps of each loop's second epoch, as a matplotlib Figure.

    White is waiting for data, grey is work.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 0.9 + 0.5 * len(watches)))
    ax = fig.subplots()
    for i, watch in enumerate(watches.values()):
        for asked, came, done in watch.steps():
            ax.broken_barh(
                [(1e3 * asked, 1e3 * (came - asked))],
                (i - 0.3, 0.6),
                facecolor="white",
                edgecolor="black",
                hatch="///",
                lw=0.5,
            )
            ax.broken_barh(
                [(1e3 * came, 1e3 * (done - came))],
                (i - 0.3, 0.6),
                facecolor="#767676",
                edgecolor="black",
                lw=0.5,
            )
    ax.set_yticks(range(len(watches)), list(watches))
    ax.set(
        xlabel="ms; hatched: waiting for data, grey: working",
        ylim=(len(watches) - 0.5, -0.5),
    )
    fig.set_layout_engine("tight")
    return fig


def rows_of(name: str, folder: Path, o, rounds: int) -> tuple[list[dict], dict]:
    """All rows of one network, and the watches of the last round."""
    loops = {"tutorial's loop": tutorial, "timm train.py": timm_script, "ours": ours}
    if device().type == "cuda":
        loops["ours, compiled"] = ours_compiled
    took, shares, watches = {k: [] for k in loops}, {k: [] for k in loops}, {}
    for _ in range(rounds):
        for key, loop in loops.items():
            watches[key] = Watch()
            took[key].append(loop(name, folder, o, watches[key]))
            if watches[key].epochs:
                shares[key].append(watches[key].share())
    flops, (top, whence) = flops_per_image(name, o.side), peak()
    speed = {k: o.images / np.array(v) for k, v in took.items()}
    rows, title = [], f"{name}, {o.side} px, batch {o.batch}"
    for key, floor in (("tutorial's loop", 1.5), ("timm train.py", None)):
        mine, other = speed["ours"], speed[key]
        rows.append(
            common.row(
                "gpu",
                title,
                key,
                np.median(mine),
                np.median(other),
                "images/s",
                mine / other,
                floor,
            )
        )
    for key in loops:
        part = speed[key] * flops / top
        note = (
            f"{flops / 1e9:.1f} GFLOP an image; peak {top / 1e12:.0f} TFLOP/s, {whence}"
        )
        rows.append(
            common.row(
                "gpu",
                f"{title}: share of peak",
                key,
                np.median(part),
                None,
                "of peak",
                (),
                None,
                note,
            )
        )
    for key, found in shares.items():
        if found:
            ratios, floor = (
                ([0.05 / max(s, 1e-6) for s in found], 1.0)
                if key == "ours"
                else ((), None)
            )
            rows.append(
                common.row(
                    "gpu",
                    f"{title}: waiting for data",
                    key,
                    np.median(found),
                    0.05,
                    "of a step",
                    ratios,
                    floor,
                )
            )
    return rows, {k: w for k, w in watches.items() if w.epochs}


def keras_row(name: str, folder: Path, o, rounds: int, beside: float) -> dict:
    """Ours in Keras on its torch backend, beside the tutorial's loop."""
    speed = o.images / np.array(
        [keras_on_torch(name, folder, o) for _ in range(rounds)]
    )
    title = f"{name}, {o.side} px, batch {o.batch}: Keras on torch"
    return common.row(
        "gpu",
        title,
        "tutorial's loop",
        np.median(speed),
        beside,
        "images/s",
        speed / beside,
    )


def store(results: dict, rows: list[dict], out: Path) -> None:
    """Add the rows to the results, write them and print them."""
    results["rows"] += rows
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=True)
    out.write_text(text + "\n", encoding="utf-8")
    print("\n".join(map(as_line, rows)), flush=True)


def measure(o, rounds: int, out: Path) -> dict:
    """Everything; stored after each network."""
    import torch

    folder = common.jpegs(
        common.WORK / f"jpeg-{o.images}-{o.picture}", o.images, o.picture
    )
    results = {**about(), "rows": []}
    results["machine"]["device"] = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "no GPU: quick run on the CPU"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = {}
    for name in NETWORKS:
        rows, watches = rows_of(name, folder, o, rounds)
        beside[name] = rows[0]["theirs"]
        steps = {key: watch.steps() for key, watch in watches.items()}
        results.setdefault("timeline", {})[name] = steps
        timeline(watches).savefig(out.with_name(f"{out.stem}-{name}.png"), dpi=120)
        store(results, rows, out)
    name = NETWORKS[0]
    store(results, [keras_row(name, folder, o, 1, beside[name])], out)
    return results


def main(argv=None) -> int:
    """0, or 2 where there is no GPU and nobody asked for the quick form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    for name, value in dict(
        images=8192, batch=256, side=224, picture=320, workers=common.cores()
    ).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keras-child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args(argv)
    common.same_threads()
    common.own_cache()
    if o.keras_child:
        print(ours(o.keras_child, o.folder, o, Watch(), "keras"))
        return 0
    from transfer_course.engine.frameworks import load_torch

    cuda = load_torch().cuda
    if o.quick:
        vars(o).update(SMALL, rounds=1, workers=min(2, o.workers))
    elif not cuda.is_available():
        print(
            "There is no GPU here, so nothing was measured. --quick runs every path "
            "on the CPU with tiny pictures.",
            file=sys.stderr,
        )
        return 2
    name = (
        cuda.get_device_name().lower().replace(" ", "-")
        if cuda.is_available()
        else "no-gpu"
    )
    folder = common.WORK if o.quick else common.HERE / "results"
    measure(o, o.rounds, o.out or folder / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
