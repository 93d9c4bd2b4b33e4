"""Extraction engines.

They give what the plain one gives and the same bits anywhere in a batch; they are
chosen once and never in the way.
"""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from transfer_course.engine import engines
from transfer_course.engine.engines import (
    ENGINES,
    Engine,
    EngineFailed,
    LazyEngine,
    build,
    candidates,
    choose,
    measure,
    off_by,
    same_bits,
)
from transfer_course.engine.errors import BadValue
from transfer_course.vision.images import ImageDataset

torch = pytest.importorskip("torch")
TESTS = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache and a memory of one's own."""
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "_measured", {})
    return tmp_path / "cache"


class Tiny(SimpleNamespace):
    """A small network that looks like a backbone."""

    __hash__ = object.__hash__

    def features(self, images, batch_size=32):
        x = images[..., ::-1] if self.channels == "BGR" else images
        x = (np.float32(x) - np.float32(self.mean)) / np.float32(self.std)
        with torch.inference_mode():
            return self.model(
                torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
            ).numpy()


def tiny(seed=0, channels="RGB", last=()):
    torch.manual_seed(seed)
    nn = torch.nn
    layers = [
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        *last,
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for m in model:
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.5, 0.5), m.running_var.uniform_(0.5, 2)
    about = {
        "name": "tiny",
        "framework": "torch",
        "mean": [120, 110, 100],
        "std": [60, 61, 62],
        "feature_dim": 16,
        "preprocessing": {},
    }
    return Tiny(model=model, channels=channels, **about)


def pictures(n=40, size=24, seed=0):
    return np.random.default_rng(seed).integers(
        0, 256, (n, size, size, 3), dtype=np.uint8
    )


HERE = candidates(tiny())


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", HERE)
def test_an_engine_is_the_plain_one_and_its_bits_are_an_images_own(kind, channels):
    net, x = tiny(channels=channels), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = build(net, 24, 24, kind)
        rows = engine(x)
    assert (
        rows.dtype == np.float32
        and rows.shape == (40, 16)
        and off_by(rows, net.features(x)) < 1e-5
    )
    assert same_bits(engine, x, rows)
    rng = np.random.default_rng(1)
    for n in (1, 5, 16, 23, 40):
        order = rng.permutation(40)[:n]
        assert (engine(x[order]) == rows[order]).all()


@pytest.mark.skipif("openvino" not in HERE, reason="needs the extra fast")
def test_openvino_converts_an_architecture_once_and_fills_in_any_weights(
    folder, monkeypatch
):
    monkeypatch.setattr(
        engines, "_convert", lambda *a, f=engines._convert: made.append(1) or f(*a)
    )
    made, x = [], pictures()
    for seed in range(3):
        net = tiny(seed)
        assert off_by(build(net, 24, 24, "openvino")(x), net.features(x)) < 1e-5
    assert len(made) == 1
    file = next(folder.glob("engine-*.json"))
    for damage in (
        b"\xff",
        file.read_bytes().replace(b'"weights": "', b'"weights": "AAAA'),
    ):
        file.write_bytes(damage)
        net = tiny(7)
        assert off_by(build(net, 24, 24, "openvino")(x), net.features(x)) < 1e-5
    assert len(made) == 3
    # Its numbers are merged into others: no gaps for them.
    other = tiny(last=[torch.nn.BatchNorm2d(16)])
    assert off_by(build(other, 24, 24, "openvino")(x), other.features(x)) < 1e-5


def test_only_a_clear_gain_displaces_an_earlier_engine():
    assert (
        engines._fastest(
            {"plain": 1.0, "folded": 0.81, "frozen": 0.5, "openvino": 0.41}
        )
        == "frozen"
    )
    assert (
        engines._fastest({"plain": 1.0, "folded": 0.79, "frozen": 0.7, "openvino": 0.6})
        == "openvino"
    )


def wrong(rows):
    return lambda net, shape: Engine(
        "wrong", lambda images: rows(net, images), shape[0]
    )


BAD = {
    "off by a little": wrong(lambda net, x: net.features(x) + 3e-4),
    "not a number": wrong(lambda net, x: net.features(x) * np.nan),
    "depends on the others": wrong(lambda net, x: net.features(x) + x.mean() * 1e-7),
    "fails": wrong(lambda net, x: 1 / 0),
    "can't be built": lambda net, shape: torch.no_such_thing,
}


@pytest.mark.parametrize("why", BAD)
def test_an_engine_that_is_not_right_is_not_chosen(why, monkeypatch):
    monkeypatch.setitem(ENGINES, "folded", BAD[why])
    monkeypatch.setattr(
        engines, "candidates", lambda net, bf16=False: ["plain", "folded"]
    )
    monkeypatch.setattr(
        engines,
        "_seconds",
        lambda engine, images: 1.0 if engine.kind == "plain" else 0.01,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(tiny(), 24, 24)["kind"] == "plain"
    monkeypatch.setitem(ENGINES, "folded", engines._folded)
    assert measure(tiny(), 24, 24)["kind"] == "folded"


def test_extraction_falls_back_to_the_plain_engine(monkeypatch, folder):
    from transfer_course.vision.features import extract

    monkeypatch.setitem(ENGINES, "folded", BAD["off by a little"])
    net, data = tiny(), ImageDataset(pictures())
    with pytest.raises(EngineFailed, match="off by 3"):
        build(net, 24, 24, "folded")
    assert (
        np.abs(
            extract(net, data, progress=False, engine="folded")
            - net.features(data.images)
        ).max()
        < 1e-6
    )
    kept = sorted(
        sqlite3.connect(f).execute("SELECT count(*) FROM features").fetchone()[0]
        for f in folder.glob("*.sqlite")
    )
    assert kept == [0, 40]  # nothing stands under the name of the engine that failed


def test_features_of_two_engines_are_kept_apart():
    from transfer_course.vision.features import extract

    net, data = tiny(), ImageDataset(pictures())
    plain, folded = (
        extract(net, data, progress=False, engine=k) for k in ("plain", "folded")
    )
    assert (plain != folded).any() and (
        extract(net, data, progress=False, engine="plain") == plain
    ).all()


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_same_weights_in_another_graph_have_features_of_their_own(framework):
    from dataclasses import replace

    from transfer_course import backbone, extract
    from transfer_course.engine.frameworks import load_keras

    net = backbone("small_cnn", framework, weights=None)
    data = ImageDataset(pictures()[:8].repeat(2, 1).repeat(2, 2))
    mean = extract(net, data, progress=False)
    if framework == "torch":
        net.model.pool[0] = torch.nn.AdaptiveMaxPool2d(1)
    else:
        layers = load_keras().layers
        most = layers.GlobalMaxPooling2D()(net.model.layers[-1].input)
        net = replace(net, model=load_keras().Model(net.model.input, most))
    most = extract(net, data, progress=False)
    assert (most >= mean).all() and (most > mean).any()
    assert np.abs(most - net.features(data.images)).max() < 1e-4


def test_what_a_hook_changes_is_neither_kept_nor_hurried(folder):
    from transfer_course import extract

    net, data = tiny(), ImageDataset(pictures())
    whole = extract(net, data, progress=False)
    hook = next(
        m for m in net.model.modules() if isinstance(m, torch.nn.Conv2d)
    ).register_forward_hook(lambda m, x, out: 0 * out)
    without = extract(net, data, progress=False)
    assert (without != whole).any() and np.abs(
        without - net.features(data.images)
    ).max() < 1e-6
    hook.remove()
    assert (extract(net, data, progress=False) == whole).all()


def test_a_keras_layer_that_is_set_otherwise_is_traced_anew():
    from transfer_course import backbone, extract
    from transfer_course.engine.frameworks import load_keras

    net, data = backbone("small_cnn", "keras", weights=None), ImageDataset(pictures())
    before = extract(net, data, progress=False)
    if (
        layer := next(
            (x for x in net.model.layers if getattr(x, "activation", None) is not None),
            None,
        )
    ) is not None:
        layer.activation = load_keras().activations.tanh
    else:
        next(
            x for x in net.model.layers if isinstance(x, load_keras().layers.ReLU)
        ).negative_slope = 0.5
    after = extract(net, data, progress=False)
    fresh = load_keras().models.clone_model(net.model)
    fresh.set_weights(net.model.get_weights())
    assert np.abs(after - before).max() > 1e-3
    assert np.abs(after - np.asarray(fresh(net.preprocess(data.images)))).max() < 1e-4


def test_bf16_that_the_processor_has_not_leaves_the_choice_as_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(
        engines,
        "measure",
        lambda net, h, w, kinds=None: (
            asked.append(kinds) or {"kind": kinds[-1], "report": {}}
        ),
    )
    if len(HERE) == 1:
        pytest.skip("one engine only")
    for has, last in ((False, HERE[-1]), (True, "torch-bf16")):
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has
        )
        asked.clear()
        assert choose(tiny(), 24, 24, bf16=True) == last
        assert all(set(kinds[1:-1]) <= {*HERE, "openvino-bf16"} for kinds in asked)
    assert asked == [
        [
            "plain",
            HERE[-1],
            *(["openvino-bf16"] if "openvino" in HERE else []),
            "torch-bf16",
        ]
    ], "the other engines are not measured again"


def test_the_choice_is_remembered_and_a_broken_memory_is_measured_again(
    folder, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        engines,
        "measure",
        lambda *a: asked.append(1) or {"kind": "folded", "report": {}},
    )
    if len(HERE) == 1:
        pytest.skip("one engine only")
    for _ in range(3):
        engines._measured.clear()
        assert choose(tiny(), 24, 24) == "folded" and len(asked) == 1
    file = next(folder.glob("engine-*.json"))
    text = file.read_text()
    for damage in (
        b"",
        b"\xff",
        b"[]",
        b'{"about": 1}',
        text.replace("folded", "frozen").encode(),
        text.replace("folded", "gone").encode(),
    ):
        file.write_bytes(damage)
        engines._measured.clear()
        assert choose(tiny(), 24, 24) == "folded"
        assert json.loads(file.read_text())["value"]["kind"] == "folded"
    assert len(asked) == 7
    # Another size is another question.
    assert choose(tiny(), 24, 25) == "folded" and len(asked) == 8
    monkeypatch.setenv("TRANSFER_COURSE_CACHE", "/proc/nowhere")
    engines._measured.clear()
    assert [choose(tiny(), 24, 24) for _ in range(3)] == ["folded"] * 3 and len(
        asked
    ) == 9


def test_engines_that_are_asked_for():
    assert choose(tiny(), 24, 24, "folded") == "folded"
    for name, words in (
        ("fast", "expected 'auto' or one of"),
        ("torch-bf16", "needs bf16=True"),
        ("cuda", "can't run this backbone here"),
    ):
        if name in HERE:
            continue
        with pytest.raises(BadValue, match=words):
            choose(tiny(), 24, 24, name)


def test_bf16_only_where_it_is_allowed():
    assert not any("bf16" in k for k in candidates(tiny())) and any(
        "bf16" in k for k in candidates(tiny(), True)
    )
    rows, x = build(tiny(), 24, 24, "torch-bf16")(pictures()), pictures()
    assert 1e-5 < off_by(rows, tiny().features(x)) < 0.05


def test_the_gpus_path_on_the_cpu(monkeypatch):
    net, x = tiny(), pictures()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert candidates(net, True) == ["plain", "cuda", "cuda-bf16"]
    engine = engines._on_gpu(net, (16, 24, 24, 3), device="cpu")
    assert (
        engine.batch == 64
        and off_by(engine(x), net.features(x)) < 1e-5
        and same_bits(engine, x, engine(x))
    )
    assert (
        off_by(
            engines._on_gpu(net, (16, 24, 24, 3), bf16=True, device="cpu")(x),
            net.features(x),
        )
        < 0.05
    )


def test_other_weights_build_anew_and_nothing_is_kept_alive():
    import gc
    import weakref

    net, x = tiny(), pictures()
    old = build(net, 24, 24, "folded", "a")
    assert build(net, 24, 24, "folded", "a") is old
    net.model[0].weight.data.mul_(3)
    assert off_by(build(net, 24, 24, "folded", "b")(x), net.features(x)) < 1e-5
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_lazy_engine_is_built_at_the_first_image(monkeypatch):
    built = []
    monkeypatch.setitem(
        ENGINES, "folded", lambda *a, f=engines._folded: built.append(1) or f(*a)
    )
    lazy, x = LazyEngine(tiny(), 24, 24, "folded"), pictures()
    assert not built and lazy.batch == 16
    assert (
        off_by(lazy(x), tiny().features(x)) < 1e-5
        and len(lazy(x)) == 40
        and len(built) == 1
    )


WRITER = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from test_engines import tiny, pictures
from transfer_course.vision.features import extract
from transfer_course.vision.images import ImageDataset
print("ready", flush=True)
net = tiny(); net_features = net.features
extract(net, ImageDataset(pictures(4000)), progress=False, engine="folded")
print("done", flush=True)
"""


def kill_and_compare(times, tests):
    """Kill `times` extractions at random moments.

    Every row must be that of a fresh computation.
    """
    from transfer_course.vision.features import extract

    rng = random.Random(times)
    for _ in range(times):
        p = subprocess.Popen(
            [sys.executable, "-c", WRITER, tests], stdout=subprocess.PIPE, text=True
        )
        with p.stdout:
            assert p.stdout.readline() == "ready\n"
            time.sleep(rng.random())
            p.send_signal(signal.SIGKILL)
            p.wait()
    data = ImageDataset(pictures(4000))
    kept = extract(tiny(), data, progress=False, engine="folded")
    assert (
        kept == extract(tiny(), data, cache=False, progress=False, engine="folded")
    ).all()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_killed_writers_leave_no_wrong_features():
    kill_and_compare(1, TESTS)


@pytest.mark.stress
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_writers_killed_many_times_leave_no_wrong_features():
    kill_and_compare(30, TESTS)
