"""Runs and files of weights that are damaged, of another run, or made to do harm.

They are refused with one sentence, and nothing in them is run.
"""

import functools
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from transfer_course import cli
from transfer_course.engine.checkpoints import NAME, Checkpoint
from transfer_course.engine.errors import Damaged, NotFound, UserMistake
from transfer_course.engine.files import sha256_file
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune, load_result
from transfer_course.vision.backbones import backbone
from transfer_course.vision.images import ImageDataset

FILE = {"torch": "model.safetensors", "keras": "model.keras"}
BOTH = ("torch", "keras")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """`originals("torch")`: the folder of a run of the small network and three classes.

    It is made when it is asked for.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    data = ImageDataset(pixels, np.arange(9) % 3, ["a", "b", "c"])

    @functools.cache
    def original(framework):
        folder = tmp_path_factory.mktemp("runs") / framework
        return fine_tune(
            backbone("small_cnn", framework),
            data,
            None,
            Recipe("probe"),
            progress=False,
        ).save(folder, size=32)

    return original


@pytest.fixture
def copy(originals, tmp_path):
    """`copy("torch")` is a fresh copy of that run."""
    return lambda framework: Path(
        shutil.copytree(
            originals(framework),
            tmp_path / f"{framework}{len(list(tmp_path.iterdir()))}",
        )
    )


def info_of(run):
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def seal(run, **changes):
    """Make run.json agree with the model file, as somebody would who means harm.

    `changes` go into it.
    """
    info = info_of(run) | changes
    model = run / FILE[info["framework"]] if info.get("framework") in FILE else None
    if model is not None and model.is_file():
        info["model_sha256"] = sha256_file(model)
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    return run


def sentence(error):
    """The message of a mistake, which is one line of bearable length and in UTF-8."""
    text = str(error)
    assert text and "\n" not in text and len(text.encode()) < 900, text[:2000]
    return text


def refused(action, words=""):
    """The sentence with which `action` is refused."""
    with pytest.raises(UserMistake) as e:
        action()
    text = sentence(e.value)
    assert words in text, text
    return text


def taken_or_refused(action):
    """What `action` gives, or None if it is refused with a sentence.

    Anything else is a fault.
    """
    try:
        return action()
    except UserMistake as e:
        sentence(e)


def predict(run, capsys, code=2):
    """`transfer-course predict` on a run and an image; the JSON that it prints."""
    image = Path(run).parent / "image.png"
    if not image.exists():
        from PIL import Image

        Image.new("RGB", (40, 40), "teal").save(image)
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", str(run), str(image), "--json"])
    said = capsys.readouterr()
    assert stop.value.code == code and "Traceback" not in said.err, said.err
    return json.loads(said.out.splitlines()[-1])


# --- altered bytes --------------------------------------------------------------------


def places(data, framework, n, seed):
    """`n` pairs (place, other byte).

    A third lies in the first 64 bytes, a third in what describes the arrays, a third
    anywhere.
    """
    rng = random.Random(seed)
    head = 8 + struct.unpack("<Q", data[:8])[0] if framework == "torch" else 4096
    for i in range(n):
        at = rng.randrange((64, head, len(data))[i % 3])
        yield at, data[at] ^ rng.randrange(1, 256)


def flips(copy, framework, n, seed):
    run = copy(framework)
    model, expected = run / FILE[framework], load_result(run)
    data, images = model.read_bytes(), np.zeros((2, 32, 32, 3), np.uint8)
    ends = {"refused": 0, "loaded": 0}
    original = shutil.copy(run / "run.json", run.parent / "run.json")
    for at, byte in places(data, framework, n, seed):
        model.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
        refused(lambda: load_result(run), "checksum")
        result = taken_or_refused(lambda: load_result(seal(run)))
        ends["loaded" if result else "refused"] += 1
        if result:
            assert (
                np.isfinite(result.predict(images)).all()
                and result.classes == expected.classes
            )
            assert [
                k
                for k, v in vars(result.recipe).items()
                if v != vars(expected.recipe)[k]
            ] == []
        if sum(ends.values()) % 5 == 0:
            taken_or_refused(lambda: backbone("small_cnn", framework, weights=model))
        shutil.copy(original, run / "run.json")
    return ends


@pytest.mark.parametrize("framework", BOTH)
def test_a_changed_byte_is_refused_and_sealed_anew_does_no_harm(copy, framework):
    ends = flips(copy, framework, {"torch": 14, "keras": 8}[framework], 1)
    assert ends["refused"] >= 2


@pytest.mark.stress
@pytest.mark.parametrize("framework", BOTH)
def test_two_hundred_changed_bytes(copy, framework):
    assert sum(flips(copy, framework, 240, 2).values()) == 240


@pytest.mark.parametrize("framework", BOTH)
def test_a_run_cut_anywhere_is_refused(copy, framework):
    run = copy(framework)
    model = run / FILE[framework]
    data = model.read_bytes()
    for n in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        model.write_bytes(data[:n])
        refused(lambda: load_result(run), "checksum")
        refused(lambda: load_result(seal(run)), "can't be read")
        refused(
            lambda: backbone("small_cnn", framework, weights=model), "can't be read"
        )


# --- another network, other numbers ---------------------------------------------------


def tensors_of(run):
    from safetensors.numpy import load_file

    return load_file(run / FILE["torch"])


def _torch_changes():
    """name -> (change of the tensors, words of the refusal)."""
    yield (
        "missing",
        lambda t: {k: v for k, v in t.items() if k != "body.stage3.conv.bias"},
        "lacks 1 of",
    )
    yield (
        "no head",
        lambda t: {k: v for k, v in t.items() if not k.startswith("head")},
        "don't fit",
    )
    yield "extra", lambda t: t | {"evil\nname": np.zeros(3, np.float32)}, "too many"
    yield "extra head", lambda t: t | {"head.more": np.zeros(3, np.float32)}, "too many"
    yield (
        "other shape",
        lambda t: t | {"body.stage2.conv.weight": np.zeros((64, 32, 1, 1), np.float32)},
        "expected",
    )
    yield (
        "turned",
        lambda t: (
            t
            | {
                "body.stage4.conv.weight": t["body.stage4.conv.weight"]
                .swapaxes(0, 1)
                .copy()
            }
        ),
        "expected",
    )
    yield (
        "whole numbers",
        lambda t: t | {"body.stage1.conv.bias": np.zeros(32, np.int64)},
        "int64",
    )
    yield (
        "NaN",
        lambda t: t | {"body.stage1.conv.bias": np.full(32, np.nan, np.float32)},
        "NaN",
    )
    yield (
        "one infinity",
        lambda t: t | {"head.bias": np.array([0, 0, np.inf], np.float32)},
        "NaN or infinity",
    )
    yield (
        "scalar head",
        lambda t: t | {"head.bias": np.array(1, np.float32)},
        "don't fit",
    )
    yield "nothing", lambda t: {}, "don't fit"


TORCH_CHANGES = {name: (change, words) for name, change, words in _torch_changes()}


@pytest.mark.parametrize("name", TORCH_CHANGES)
def test_other_tensors_are_refused(copy, name, capsys):
    from safetensors.numpy import save_file

    change, words = TORCH_CHANGES[name]
    run = copy("torch")
    save_file(change(tensors_of(run)), run / FILE["torch"])
    refused(lambda: load_result(seal(run)), words)
    assert words in predict(run, capsys)["error"]
    # What a run holds beside the backbone does not count here.
    if "head" not in name and name not in ("extra", "one infinity"):
        for framework in BOTH:
            refused(
                lambda framework=framework: backbone(
                    "small_cnn", framework, weights=run / FILE["torch"]
                )
            )


def archive(path, weights=None, config=None, **more):
    """A `.keras` file: `weights` (bytes of HDF5), config.json, and more members."""
    with zipfile.ZipFile(path, "w", more.pop("how", zipfile.ZIP_STORED)) as z:
        z.writestr(
            "metadata.json", '{"keras_version": "3.8.0", "date_saved": "2026-01-01"}'
        )
        z.writestr(
            "config.json",
            json.dumps(
                config
                or {
                    "module": "keras",
                    "class_name": "Sequential",
                    "config": {"layers": []},
                }
            ),
        )
        for name, data in (
            [("model.weights.h5", weights)] if weights is not None else []
        ) + list(more.items()):
            z.writestr(name, data)


def hdf5(change):
    """Apply `change(file, path of the head's arrays)` to the weights in `data`."""
    import h5py

    def changed(data):
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            out = io.BytesIO(z.read("model.weights.h5"))
        with h5py.File(out, "r+") as f:
            heads = []
            f.visititems(
                lambda path, g: (
                    heads.append(path) if g.attrs.get("name") == "head" else None
                )
            )
            change(f, heads[0])
        return out.getvalue()

    return changed


def _set(f, path, **how):
    del f[path]
    return f.create_dataset(path, **how)


def _external(f, head):
    import h5py

    _set(f, head + "/1", data=np.zeros(3, "f4"))
    del f[head + "/1"]
    f[head + "/1"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft(f, head):
    import h5py

    f["elsewhere"] = np.zeros(3, "f4")
    del f[head + "/1"]
    f[head + "/1"] = h5py.SoftLink("/elsewhere")


def _virtual(f, head):
    import h5py

    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape=(3,))
    del f[head + "/1"]
    f.create_virtual_dataset(head + "/1", layout)


def _hdf5_changes():
    """name -> (change of the HDF5 file, words of the refusal)."""
    yield "missing", lambda f, h: f.__delitem__(h + "/1"), "don't fit"
    yield "no head", lambda f, h: f.__delitem__(h), "don't fit"
    yield (
        "other shape",
        lambda f, h: _set(f, h + "/1", data=np.zeros(4, "f4")),
        "don't fit",
    )
    yield (
        "another class count",
        lambda f, h: (
            _set(f, h + "/1", data=np.zeros(4, "f4")),
            _set(f, h + "/0", data=np.zeros((256, 4), "f4")),
        ),
        "don't fit",
    )
    yield (
        "whole numbers",
        lambda f, h: _set(f, h + "/1", data=np.zeros(3, "i8")),
        "type",
    )
    yield "text", lambda f, h: _set(f, h + "/1", data=["a", "b", "c"]), "no numbers"
    yield "NaN", lambda f, h: f[h + "/1"].__setitem__(0, np.nan), "NaN"
    yield (
        "a group for an array",
        lambda f, h: (f.__delitem__(h + "/1"), f.create_group(h + "/1")),
        "lies elsewhere",
    )
    yield "external link", _external, "lies elsewhere"
    yield "soft link", _soft, "lies elsewhere"
    yield (
        "external storage",
        lambda f, h: _set(
            f, h + "/1", shape=(3,), dtype="f4", external=[("/etc/passwd", 0, 12)]
        ),
        "lies elsewhere",
    )
    yield "virtual", _virtual, "lies elsewhere"
    yield (
        "shape bomb",
        lambda f, h: _set(
            f, h + "/1", shape=(10**13,), dtype="f4", chunks=(1024,), compression="gzip"
        ),
        "larger than",
    )
    yield "a circle", lambda f, h: f[h].__setitem__("round", f["/"]), "lies elsewhere"


HDF5_CHANGES = {name: (change, words) for name, change, words in _hdf5_changes()}


@pytest.mark.parametrize("name", HDF5_CHANGES)
def test_other_arrays_in_a_keras_file_are_refused(copy, name, capsys):
    change, words = HDF5_CHANGES[name]
    run = copy("keras")
    model = run / FILE["keras"]
    archive(model, hdf5(change)(model.read_bytes()))
    refused(lambda: load_result(seal(run)), words)
    assert words in predict(run, capsys)["error"]


@pytest.mark.parametrize("framework", BOTH)
def test_another_class_count_or_another_run(copy, originals, framework):
    run = copy(framework)
    for classes in (["a", "b"], [*"abcd"], [], ["c"] * 20_000):
        refused(
            lambda classes=classes: load_result(seal(run, classes=classes)), "don't fit"
        )
    for classes in ([1, 2, 3], ["a", None, "c"], [["a"], "b", "c"]):
        refused(
            lambda classes=classes: load_result(seal(run, classes=classes)), "no text"
        )
    other = "keras" if framework == "torch" else "torch"
    shutil.copy(originals(other) / "run.json", run)
    refused(lambda: load_result(run), "is missing")
    seal(copy(framework))
    lite0 = {
        "name": "efficientnet_lite0",
        "config": {
            "name": "efficientnet_lite0",
            "framework": framework,
            "weights": None,
            "seed": 0,
        },
    }
    run = copy(framework)
    refused(lambda: load_result(seal(run, backbone=lite0)), "don't fit")


# --- run.json -------------------------------------------------------------------------

ODD = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "x",
    "../../../etc/passwd",
    "a\nb\u2028\x1b[0m",
    "x" * 100_000,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    ["../x"],
]


def paths_in(value, at=()):
    """The path of every value in nested dicts."""
    for key, v in value.items():
        yield (*at, key)
        if isinstance(v, dict):
            yield from paths_in(v, (*at, key))


def odd_values(run, every):
    """Each value of run.json is replaced by odd ones, and left out.

    Every `every`-th of these cases is tried. It is refused in a sentence, or it has no
    effect.
    """
    whole = info_of(run)
    where = [
        p
        for p in paths_in(whole)
        if p[0]
        in (
            "format",
            "framework",
            "backbone",
            "classes",
            "recipe",
            "model_sha256",
            "size",
            "history",
        )
    ]
    cases, refusals = [(path, value) for path in where for value in [*ODD, KeyError]], 0
    for path, value in cases[::every]:
        info = json.loads(json.dumps(whole))
        place = info
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
        refusals += taken_or_refused(lambda: load_result(run)) is None
    return len(cases[::every]), refusals


def test_odd_values_in_run_json(copy):
    cases, refusals = odd_values(copy("torch"), every=5)
    assert cases > 100 and refusals > 40


@pytest.mark.stress
@pytest.mark.parametrize("framework", BOTH)
def test_any_odd_value_anywhere_in_run_json(copy, framework):
    cases, refusals = odd_values(copy(framework), every=1)
    assert cases > 500 and refusals > 200


def test_a_size_that_is_none(copy, capsys):
    run = copy("torch")
    for size in (None, "96", 0, -3, 10**9, 9.5, True, [32]):
        assert "image size" in predict(seal(run, size=size), capsys)["error"]
    assert predict(seal(run, size=48), capsys, code=0)["class"] in "abc"


def test_huge_and_deep_run_json(copy):
    run = copy("torch")
    for text in (
        "[" * 10**6,
        '{"format":' * 50_000,
        '{"format": 1' + "0" * 10_000 + "}",
        "\0" * 100,
        '{"format": 1, "a": "' + "x" * 10**7 + '"}',
    ):
        (run / "run.json").write_text(text)
        refused(lambda: load_result(run))
    with open(run / "run.json", "wb") as f:
        f.truncate(10**11)  # a hundred gigabytes of holes
    refused(lambda: load_result(run), "expected at most")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "timm:../../etc/passwd",
        "timm:/etc/passwd",
        "file:///etc/passwd",
        "\0",
        "..",
        "timm:",
    ],
)
def test_a_network_called_like_a_path(copy, name):
    run = copy("torch")
    config = {"name": name, "framework": "torch", "weights": "/etc/passwd", "seed": 0}
    refused(
        lambda: load_result(seal(run, backbone={"name": name, "config": config})), "no "
    )
    refused(lambda: backbone(name), "no ")


@pytest.mark.skipif(os.name != "posix", reason="POSIX files")
def test_what_is_no_plain_file_is_not_waited_for(copy):
    for framework in BOTH:
        for name in ("run.json", FILE[framework]):
            run = copy(framework)
            for make in (
                os.mkdir,
                os.mkfifo,
                lambda p: os.symlink("/dev/zero", p),
                lambda p: os.symlink(p, p),
            ):
                for old in run.glob(name):
                    old.rmdir() if old.is_dir() else old.unlink()
                if (run / name).is_symlink():
                    (run / name).unlink()
                make(run / name)
                refused(lambda run=run: load_result(run))


# --- files that would run something ---------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def lambda_file(path, marker):
    """A `.keras` file whose layer makes a file when it is loaded or called."""
    from transfer_course.engine.frameworks import load_keras

    keras = load_keras()
    here = str(marker)
    layer = keras.layers.Lambda(
        lambda x: (__import__("os").makedirs(here, exist_ok=True), x)[1],
        output_shape=(3,),
        name="head",
    )
    keras.Sequential([keras.Input((3,)), layer]).save(path)
    if marker.exists():
        marker.rmdir()


def _configs(marker):
    """Descriptions of a network that have been ways to run code or to reach files."""
    code = f"__import__('os').mkdir({str(marker)!r})"

    def layer(**what):
        return {
            "module": "keras",
            "class_name": "Sequential",
            "config": {"name": "s", "layers": [what]},
        }

    yield layer(module="builtins", class_name="eval", config=code, registered_name=None)
    yield layer(
        module="builtins",
        class_name="exec",
        config={"name": "x", "arguments": [code]},
        registered_name=None,
    )
    yield layer(
        module="os",
        class_name="mkdir",
        config={"path": str(marker)},
        registered_name="mkdir",
    )
    yield layer(
        module="os", class_name="function", config="system", registered_name="system"
    )
    yield layer(
        module="subprocess",
        class_name="Popen",
        config={"args": ["mkdir", str(marker)]},
        registered_name="Popen",
    )
    yield layer(
        module="keras.utils",
        class_name="get_file",
        config={"fname": str(marker), "origin": "file:///etc/passwd"},
        registered_name=None,
    )
    yield layer(
        module="keras.config",
        class_name="enable_unsafe_deserialization",
        config={},
        registered_name=None,
    )
    yield layer(
        module="keras.layers",
        class_name="StringLookup",
        config={"vocabulary": "/etc/passwd"},
        registered_name=None,
    )
    pickled = {
        "class_name": "__bytes__",
        "config": {"value": pickle.dumps(Evil(marker)).hex()},
    }
    yield layer(
        module="keras.layers",
        class_name="TorchModuleWrapper",
        config={"module": pickled},
        registered_name=None,
    )
    yield {"module": "keras", "class_name": "Sequential", "config": "[" * 5000}


def test_the_payloads_would_run(tmp_path):
    """Without this, the tests below could pass because their payloads are harmless."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "pickled")))
    assert (tmp_path / "pickled").exists()
    lambda_file(tmp_path / "evil.keras", tmp_path / "ran")
    from transfer_course.engine.frameworks import load_keras

    load_keras().saving.load_model(tmp_path / "evil.keras", safe_mode=False)(
        np.zeros((1, 3), "f4")
    )
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("framework", BOTH)
def test_a_pickle_under_another_name_is_never_opened(copy, framework, tmp_path, capsys):
    marker, run = tmp_path / "marker", copy(framework)
    for data in (
        pickle.dumps(Evil(marker)),
        pickle.dumps(Evil(marker), 0),
        b"\x80\x02" + pickle.dumps(Evil(marker), 2),
    ):
        (run / FILE[framework]).write_bytes(data)
        refused(lambda: load_result(seal(run)), "can't be read")
        assert "can't be read" in predict(run, capsys)["error"]
        for name in (
            "w.safetensors",
            "w.keras",
            "w.weights.h5",
            "w.pth",
            "w.bin",
            "w.npz",
        ):
            (tmp_path / name).write_bytes(data)
            refused(
                lambda name=name: backbone(
                    "small_cnn", framework, weights=tmp_path / name
                )
            )
    assert not marker.exists()


def test_a_pickle_where_torch_looks_for_one(copy, tmp_path):
    """torch's own files are archives with a pickle within."""
    import torch

    marker, run = tmp_path / "marker", copy("torch")
    torch.save(Evil(marker), run / FILE["torch"])
    refused(lambda: load_result(seal(run)), "can't be read")
    shutil.copy(run / FILE["torch"], tmp_path / "w.safetensors")
    refused(
        lambda: backbone("small_cnn", "torch", weights=tmp_path / "w.safetensors"),
        "can't be read",
    )
    assert not marker.exists()


def test_a_description_that_would_run_code_is_not_looked_at(copy, tmp_path, capsys):
    marker, run = tmp_path / "marker", copy("keras")
    model = run / FILE["keras"]
    with zipfile.ZipFile(model) as z:
        weights = z.read("model.weights.h5")
    for config in _configs(marker):
        archive(model, weights, config)
        # The weights are whole, and nothing else counts.
        assert load_result(seal(run)).classes == ["a", "b", "c"]
        backbone("small_cnn", "keras", weights=model)
        archive(model, None, config)
        refused(lambda: load_result(seal(run)), "can't be read")
        refused(lambda: backbone("small_cnn", "keras", weights=model), "can't be read")
    archive(model, weights, config)
    assert predict(seal(run), capsys, code=0)["class"] in "abc"
    lambda_file(model, marker)
    refused(lambda: load_result(seal(run)))
    refused(lambda: backbone("small_cnn", "keras", weights=model))
    assert not marker.exists()


def test_archives_that_unpack_to_more_or_elsewhere(copy, tmp_path):
    run = copy("keras")
    model = run / FILE["keras"]
    with zipfile.ZipFile(model) as z:
        weights = z.read("model.weights.h5")
    before = set(tmp_path.rglob("*"))
    archive(
        model,
        weights,
        **{"../../evil": b"x", "/tmp/evil": b"x", "assets/../../../evil": b"x"},
    )
    assert (
        load_result(seal(run)).classes == ["a", "b", "c"]
        and set(tmp_path.rglob("*")) == before
    )
    archive(model, bytes(200_000_000), how=zipfile.ZIP_DEFLATED)
    refused(lambda: load_result(seal(run)), "larger than it can be")
    refused(
        lambda: backbone("small_cnn", "keras", weights=model), "larger than it can be"
    )
    archive(model, weights + bytes(10), how=zipfile.ZIP_LZMA)
    taken_or_refused(lambda: load_result(seal(run)))


def headers(whole):
    """Files whose safetensors header lies."""
    n = struct.unpack("<Q", whole[:8])[0]
    head, body = json.loads(whole[8 : 8 + n]), whole[8 + n :]

    def again(changed, body=body):
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    name = next(k for k in head if k != "__metadata__")
    one = head[name]
    for claim in (2**63 - 1, 2**64 - 1, 100_000_001, len(whole), n + 1, n - 1, 0):
        yield struct.pack("<Q", claim) + whole[8:]
    yield again(b"[" * 100_000)
    yield again(b'{"a":' * 20_000)
    yield again(b"\xff" * 50)
    yield again(head | {name: one | {"shape": [2**40, 2**40]}})
    yield again(head | {name: one | {"shape": [-1]}})
    yield again(head | {name: one | {"data_offsets": [0, 2**50]}})
    yield again(head | {name: one | {"data_offsets": [100, 0]}})
    yield again(head | {name: one | {"dtype": "PICKLE"}})
    yield again(head | {name: "x"})
    yield again(head, body[:-1])
    yield again(head, body + b"more")
    yield again(
        {
            k: v | {"data_offsets": one["data_offsets"]} if k != "__metadata__" else v
            for k, v in head.items()
        }
    )


def test_headers_that_lie(copy, tmp_path):
    run = copy("torch")
    model = run / FILE["torch"]
    for data in headers(model.read_bytes()):
        model.write_bytes(data)
        refused(lambda: load_result(seal(run)))
        for framework in BOTH:
            refused(
                lambda framework=framework: backbone(
                    "small_cnn", framework, weights=model
                )
            )


def test_keras_weights_as_hdf5(copy, tmp_path):
    """`.weights.h5` is another door into the Keras network."""
    import h5py

    net = backbone("small_cnn", "keras")
    path = tmp_path / "w.weights.h5"
    net.model.save_weights(path)
    with h5py.File(path, "r+") as f:
        arrays = []
        f.visititems(
            lambda name, g: arrays.append(name) if isinstance(g, h5py.Dataset) else None
        )
        f[arrays[0]][...] = np.nan
    refused(lambda: backbone("small_cnn", "keras", weights=path), "NaN")
    path.write_bytes(path.read_bytes()[:5000])
    refused(lambda: backbone("small_cnn", "keras", weights=path))


# --- checkpoints ----------------------------------------------------------------------


def checkpoint(folder, **about):
    return Checkpoint(folder, {"recipe": {"lr": 0.1}, "classes": ["a"]} | about)


def checkpoint_flips(folder, n, seed):
    kept = checkpoint(folder)
    kept.save(
        {"w": np.arange(60, dtype=np.float32), "step": np.array(3)},
        {"epoch": 2, "history": [{"loss": 0.1}]},
    )
    data = (folder / NAME).read_bytes()
    for at, byte in places(data, "torch", n, seed):
        (folder / NAME).write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
        refused(lambda: checkpoint(folder).load())
    for n in range(0, len(data), 50):
        (folder / NAME).write_bytes(data[:n])
        refused(lambda: checkpoint(folder).load(), "no whole checkpoint")
    (folder / NAME).write_bytes(data)
    assert checkpoint(folder).load()[1]["epoch"] == 2


def test_a_checkpoint_with_a_changed_byte_is_refused(tmp_path):
    checkpoint_flips(tmp_path, 40, 3)


@pytest.mark.stress
def test_checkpoints_with_many_changed_bytes(tmp_path):
    checkpoint_flips(tmp_path, 2000, 4)


def test_a_checkpoint_that_is_something_else(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / NAME).write_bytes(pickle.dumps(Evil(marker)))
    refused(lambda: checkpoint(tmp_path).load(), "no whole checkpoint")
    (tmp_path / NAME).unlink()
    checkpoint(tmp_path, classes=["b"]).save({}, {})
    assert "different classes" in refused(lambda: checkpoint(tmp_path).load())
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    refused(lambda: checkpoint(tmp_path).load(), "no whole checkpoint")
    (tmp_path / NAME).rmdir()
    if os.name == "posix":
        os.mkfifo(tmp_path / NAME)
        refused(lambda: checkpoint(tmp_path).load(), "no whole checkpoint")
    assert not marker.exists()


def interrupted(folder, framework="torch"):
    """Leave the checkpoint of a run of three epochs that was stopped in its second.

    Gives what goes on with it.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    data = ImageDataset(pixels, np.arange(8) % 2, ["a", "b"])
    net = backbone("small_cnn", framework)

    def stop(end):
        if end.epoch == 2:
            raise KeyboardInterrupt

    def go(*callbacks):
        return fine_tune(
            net,
            data,
            data,
            Recipe("fine_tune", epochs=3),
            callbacks=callbacks,
            progress=False,
            checkpoint=folder,
        )

    with pytest.raises(KeyboardInterrupt):
        go(stop)
    return go


def reseal(path, change=lambda tensors, state: None, **texts):
    """Change (tensors, state) of a checkpoint, or the texts beside them.

    Its sum is made to agree, as somebody would who means harm.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from transfer_course.engine import checkpoints

    with safe_open(path, framework="np") as f:
        about = f.metadata()
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    state = json.loads(about["state"])
    change(tensors, state)
    about |= {"state": json.dumps(state)} | texts
    about["sum"] = checkpoints._sum(tensors, about["about"] + about["state"])
    save_file(tensors, path, about)


def test_a_checkpoint_made_to_do_harm_is_refused(tmp_path):
    go = interrupted(tmp_path)
    data = (tmp_path / NAME).read_bytes()
    changes = {
        "no state": lambda t, s: s.clear(),
        "no place": lambda t, s: s.pop("at"),
        "another place": lambda t, s: s.update(at={"phase": "x"}),
        "unknown place": lambda t, s: s.update(at=s["at"] | {"evil": 1}),
        "no tensors": lambda t, s: t.clear(),
        "other shapes": lambda t, s: t.update({k: np.zeros(3, np.float32) for k in t}),
        "text for a list": lambda t, s: s.update(best="x"),
        "no part": lambda t, s: s.update(parts=0),
        "a part of text": lambda t, s: s.update(parts="x"),
        "a history of numbers": lambda t, s: s.update(history=5),
        "losses by name": lambda t, s: s.update(losses={}),
        "a phase before the first": lambda t, s: s["at"].update(phase=-9),
        "a step too far": lambda t, s: s["at"].update(step=10**9),
        "a score of letters": lambda t, s: s["best"].update(score=["a", "b"]),
        "moments of another shape": lambda t, s: t.update(
            {"optimizer/0/exp_avg": np.zeros(1, np.float32)}
        ),
        "moments of nobody": lambda t, s: t.update(
            {"optimizer/999/exp_avg": np.zeros(1, np.float32)}
        ),
        "half of the moments": lambda t, s: t.pop("optimizer/0/exp_avg_sq"),
        "best weights of another shape": lambda t, s: t.update(
            {k: np.zeros(3, np.float32) for k in t if k.startswith("best ")}
        ),
        "what moves is a number": lambda t, s: s.update(moving=3),
    }
    for name, change in changes.items():
        (tmp_path / NAME).write_bytes(data)
        reseal(tmp_path / NAME, change)
        assert "does not fit" in refused(go), name
    for text, why in {
        "[]": "no whole checkpoint",
        "null": "no whole checkpoint",
        json.dumps({"\x1b[2J": 1, "x" * 10**6: 2}): "different",
    }.items():
        (tmp_path / NAME).write_bytes(data)
        reseal(tmp_path / NAME, about=text)
        assert why in (said := refused(go)) and "\x1b" not in said and len(said) < 500
    (tmp_path / NAME).write_bytes(data)
    reseal(tmp_path / NAME)
    assert len(go().history) == 3


def test_a_keras_checkpoint_made_to_do_harm_is_refused(tmp_path):
    go = interrupted(tmp_path, "keras")
    data = (tmp_path / NAME).read_bytes()
    changes = {
        "no state": lambda t, s: s.clear(),
        "no epoch": lambda t, s: s.update(epoch="x"),
        "an epoch before the first": lambda t, s: s.update(epoch=-1),
        "no piece": lambda t, s: s.update(pieces=0),
        "held by a number": lambda t, s: s.update(held=3),
        "a history of numbers": lambda t, s: s.update(history=5),
        "a score of letters": lambda t, s: s["best"].update(score=["a", "b"]),
        "no tensors": lambda t, s: t.clear(),
        "best weights of another shape": lambda t, s: t.update(
            {k: np.zeros(3, np.float32) for k in t if k.startswith("state/")}
        ),
        "moments of another shape": lambda t, s: t.update(
            {k: np.zeros(3, np.float32) for k in t if k.startswith("optimizer/")}
        ),
    }
    for name, change in changes.items():
        (tmp_path / NAME).write_bytes(data)
        reseal(tmp_path / NAME, change)
        assert "does not fit" in refused(go), name
    (tmp_path / NAME).write_bytes(data)
    reseal(tmp_path / NAME)
    assert len(go().history) == 3


def test_resume_refuses_another_run_or_a_damaged_checkpoint(copy, tmp_path, capsys):
    from PIL import Image

    for c in "ab":
        (tmp_path / "photos" / c).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40), (i * 60, 0, ord(c))).save(
                tmp_path / "photos" / c / f"{i}.png"
            )
    ask = [
        "fine-tune",
        str(tmp_path / "photos"),
        "--backbone",
        "small_cnn",
        "--strategy",
        "lp_ft",
        "--epochs",
        "1",
        "--size",
        "32",
        "--resume",
        "--json",
        "--out",
    ]

    def resumed(out):
        with pytest.raises(SystemExit) as stop:
            cli.main([*ask, str(out)])
        said = capsys.readouterr()
        assert stop.value.code == 2 and "Traceback" not in said.err, said.err
        return json.loads(said.out.splitlines()[-1])["error"]

    assert "not that of a run of this command" in resumed(copy("torch")), (
        "saved by the library, without scores"
    )
    for data in (b"", b"x" * 100, pickle.dumps(Evil(tmp_path / "marker"))):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / NAME).write_bytes(data)
        assert "no whole checkpoint" in resumed(tmp_path / "run")
    assert not (tmp_path / "marker").exists() and (tmp_path / "run" / NAME).exists()


# --- as a process ---------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("framework", BOTH)
def test_predict_as_a_process_refuses_with_exit_code_two(copy, framework, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    run, marker = copy(framework), tmp_path / "marker"
    (run / FILE[framework]).write_bytes(pickle.dumps(Evil(marker)))
    seal(run)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "transfer_course.cli",
            "predict",
            run,
            tmp_path / "a.png",
            "--json",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and "can't be read" in json.loads(done.stdout)["error"]
        and "Traceback" not in done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1 and not marker.exists()


def test_kinds_of_mistakes(copy):
    """What is not there is NotFound and what is not whole Damaged.

    Callers may tell them apart.
    """
    run = copy("torch")
    (run / FILE["torch"]).write_bytes(b"x")
    with pytest.raises(Damaged):
        load_result(run)
    with pytest.raises(NotFound):
        load_result(run / "none")
