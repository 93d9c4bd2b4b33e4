"""One image at a time: an exported model in its own runtime, beside the framework.

python benchmarks/latency.py [--rounds 5] [--quick] [--out FILE]

EfficientNet-Lite0 with a new head, 224 px, uint8 pixels in and probabilities out. The
peer is `predict` of the framework that the model comes from, on the same image and with
the same number of threads. All take turns; each time is a median over the round. The
result is stored in benchmarks/results/latency.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import bench
import common
import numpy as np

NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "tflite": "LiteRT"}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}
CLASSES = [f"class {i}" for i in range(10)]


def result_in(framework: str, size: int):
    """The bundled network with a random head, as a result of training."""
    from transfer_course import backbone
    from transfer_course.trainer.converting import as_keras
    from transfer_course.trainer.recipe import Recipe
    from transfer_course.trainer.torch_state import TorchResult, nn, torch
    from transfer_course.vision.finetune_torch import Network

    torch.manual_seed(0)
    net = backbone("efficientnet_lite0", "torch")
    model = Network(net.model, nn.Linear(net.feature_dim, len(CLASSES))).eval()
    result = TorchResult(net, model, CLASSES, Recipe(), info={"size": size})
    if framework == "torch":
        return result
    from transfer_course.trainer.keras_state import KerasResult

    twin = as_keras(result)
    about = dict(info={"size": size})
    return KerasResult(twin.backbone, twin.model, CLASSES, Recipe(), **about)


def exported(result, folder, threads: int, size: int) -> dict:
    """Name -> a function that runs the exported model on images."""
    from transfer_course.engine.runtimes import open_exported, quietly
    from transfer_course.practice.export_run import quantise
    from transfer_course.trainer.converting import convert
    from transfer_course.trainer.export_model import check_images

    runs = {}
    for to, name in NAMES.items():
        path = result.export(folder / f"model{SUFFIXES[to]}")["path"]
        runs[name] = open_exported(path, threads)
    if result.framework == "torch":
        path = folder / "int8.xml"
        convert(result, path, "openvino", size)
        with quietly():
            quantise(path, [image[None] for image in check_images(size, 50)])
        runs["OpenVINO, int8"] = open_exported(path, threads)
    return runs


def milliseconds(call, image, times: int) -> float:
    """The median time of a call."""
    return 1000 * float(np.median([common.seconds(lambda: call(image)) for _ in times]))


def rows_of(framework, size, rounds, calls, threads) -> list[dict]:
    """A row for each runtime, beside the framework's own `predict`."""
    from transfer_course.trainer.export_model import check_images

    result, image = result_in(framework, size), check_images(size, 1)
    peer = {"torch": "PyTorch", "keras": "Keras"}[framework]
    with tempfile.TemporaryDirectory() as folder:
        runs = exported(result, Path(folder), threads, size)
        runs = {peer: result.predict, **runs}
        took = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, call in runs.items():
                ms = milliseconds(call, image, range(calls))
                if turn:  # the first round only warms up
                    took[name].append(ms)
        del runs
    return [
        common.row(
            "h",
            f"one image, {size} px: {name}",
            f"{peer}, predict",
            np.median(took[name]),
            np.median(took[peer]),
            "ms",
            np.array(took[peer]) / np.array(took[name]),
        )
        for name in took
        if name != peer
    ]


def about() -> dict:
    """The machine, and the versions also of the runtimes."""
    import importlib.metadata

    found = bench.about()
    for name in ("onnxruntime", "openvino", "ai-edge-litert", "nncf"):
        found["versions"][name] = importlib.metadata.version(name)
    return found


def main(argv=None) -> int:
    """Read the arguments, measure, store."""
    import json

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="tiny, to see that it runs"
    )
    parser.add_argument("--out", type=Path, help="results file")
    args = parser.parse_args(argv)
    threads = common.same_threads()
    common.own_cache()
    from transfer_course.engine.frameworks import load_torch

    load_torch().set_num_threads(threads)
    size, rounds, calls = (64, 1, 3) if args.quick else (224, args.rounds, 50)
    rows = []
    for framework in ("torch", "keras"):
        rows += rows_of(framework, size, rounds, calls, threads)
    for r in rows:
        print(f"{r['name']:40} {r['ours']:6.1f} ms   {r['peer']} {r['theirs']:6.1f} ms")
    quick = common.WORK / "quick-latency.json"
    out = args.out or (quick if args.quick else bench.RESULTS / "latency.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about(), "rows": rows}, indent=1, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
