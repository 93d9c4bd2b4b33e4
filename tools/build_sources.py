"""Train the small source networks that the course bundles.

    python tools/build_sources.py [NAME …]

Each is a `glyph_cnn` that learned to tell letters or digits of the bundled fonts, or a
changed version of them. All take the same number of steps, on images that are distorted
anew in every epoch. A tenth of the font families is held out, to say how accurate the
network is on its own task. The script writes one .safetensors file per source into
transfer_course/assets/sources/, in float16, and the table sources.json. A network takes
about a minute on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "transfer_course" / "assets" / "sources"
STEPS, BATCH = 1000, 64

# name -> (kind, what is changed, in a learner's words)
SOURCES = {
    "letters": ("letters", "39 letters in all fonts"),
    "letters_a": ("letters", "20 of the letters: A, C, E, … in our order"),
    "letters_b": ("letters", "the other 19 letters"),
    "letters_few": ("letters", "39 letters in 12 font families"),
    "letters_sans": ("letters", "39 letters in sans-serif fonts only"),
    "letters_rotated": ("letters", "39 letters, turned by a quarter"),
    "letters_inverted": ("letters", "39 letters, black on white"),
    "letters_blurred": ("letters", "39 letters, blurred"),
    "letters_edges": ("letters", "39 letters, only their outlines"),
    "letters_shuffled": ("letters", "39 letters, each image with a label drawn by lot"),
    "digits": ("digits", "10 digits in all fonts"),
}


def changed(name: str, images: np.ndarray) -> np.ndarray:
    """Images (N, 28, 28, 3) as the source `name` sees them."""
    from PIL import Image, ImageFilter

    if name == "letters_rotated":
        return np.ascontiguousarray(np.rot90(images, axes=(1, 2)))
    if name == "letters_inverted":
        return 255 - images
    kinds = {
        "letters_blurred": ImageFilter.GaussianBlur(2),
        "letters_edges": ImageFilter.FIND_EDGES,
    }
    if name not in kinds:
        return images
    filtered = [Image.fromarray(image).filter(kinds[name]) for image in images]
    return np.stack([np.asarray(image) for image in filtered])


def chosen(name: str, data):
    """The images of the source `name`: (data, labels, classes)."""
    from transfer_course.vision.glyphs import families

    labels = data.labels
    if name in ("letters_a", "letters_b"):
        rest = int(name == "letters_b")
        data = data.subset(labels % 2 == rest)
        return data, data.labels // 2, data.classes[rest::2]
    if name == "letters_sans":
        data = data.subset(np.array(data.domains) == "sans")
    if name == "letters_few":
        family = families(data)
        few = np.random.default_rng(3).permutation(np.unique(family))[:12]
        data = data.subset(np.isin(family, few))
    return data, data.labels, data.classes


def halves(data, seed: int = 7):
    """Rows to train on and rows of the held-out tenth of the families."""
    from transfer_course.vision.glyphs import families

    family = families(data)
    names = np.random.default_rng(seed).permutation(np.unique(family))
    held_out = np.isin(family, names[: -(-len(names) // 10)])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def trained(name: str):
    """The network, and what the table says of it."""
    from transfer_course.practice.letters import network, right, train_net, warped
    from transfer_course.vision.glyphs import glyphs

    kind, about = SOURCES[name]
    data, labels, classes = chosen(name, glyphs(kind))
    train, held_out = halves(data)
    rng = np.random.default_rng(11)
    if name == "letters_shuffled":
        labels = rng.permutation(labels)
    net = network(len(classes), seed=2000)
    done, epoch, lr = 0, 0, 1e-3
    while done < STEPS:
        rows = rng.permutation(train)[: BATCH * (STEPS - done)]
        images = changed(name, warped(data.images[rows], [17, epoch]))
        lr = 1e-3 if done < 0.7 * STEPS else 2e-4
        train_net(net, images, labels[rows], 1, lr, batch_size=BATCH, seed=epoch)
        done, epoch = done + -(-len(rows) // BATCH), epoch + 1
    test = data.subset(held_out)
    looked = type(test)(changed(name, test.images), labels[held_out], list(classes))
    row = {
        "source": name,
        "classes": len(classes),
        "images": len(train),
        "accuracy": round(float(right(net, looked).mean()), 3),
        "about": about,
    }
    return net, row


def store(name: str, net) -> None:
    """Write the network without its last layer, and that layer as `head`."""
    import torch
    from safetensors.torch import save_file

    state = {}
    for key, tensor in net.state_dict().items():
        key = key.replace("fc2.", "head.")
        state[key] = tensor.detach().contiguous().to(torch.float16)
    file = FOLDER / f"{name}.safetensors"
    save_file(state, file)
    file.chmod(0o644)


def main(names=()) -> None:
    """Train the named sources, or all, and write the table anew."""
    FOLDER.mkdir(exist_ok=True)
    table = FOLDER / "sources.json"
    rows = {}
    if table.exists():
        rows = {row["source"]: row for row in json.loads(table.read_text("utf-8"))}
    for name in names or SOURCES:
        net, rows[name] = trained(name)
        store(name, net)
        print(rows[name], flush=True)
        ordered = [rows[n] for n in SOURCES if n in rows]
        text = json.dumps(ordered, indent=1, ensure_ascii=False)
        table.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
