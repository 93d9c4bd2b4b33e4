"""engine.frameworks: every order of importing PyTorch, TensorFlow and triton's users.

Each order runs in a process of its own.
"""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from transfer_course.engine import frameworks
from transfer_course.engine.errors import BadValue, MissingExtra, UserMistake
from transfer_course.engine.frameworks import (
    ImportOrder,
    check_framework,
    installed,
    keras_backend,
    load_torch,
    seeded,
)

# The last line that a script prints is JSON for the test.
SHARED = """
import json, sys
import transfer_course
# The package's own import hook would hide a mistake in load_torch or load_keras.
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "_TritonFirst"]
import numpy as np
from transfer_course.engine.frameworks import load_keras, load_torch
images = np.random.default_rng(0).integers(0, 256, (3, 97, 97, 3), np.uint8)
def done(**what):
    print(json.dumps(what))
def has(*names):
    return [n for n in names if sys.modules.get(n) is not None]
def use_torch():
    torch = load_torch()
    import torchvision, timm
    box, score = torch.tensor([[0., 0, 1, 1]]), torch.tensor([1.])
    return float(torchvision.ops.nms(box, score, .5).numel() + torch.ones(2).sum())
def use_keras():
    keras = load_keras()
    return float(keras.ops.sum(keras.ops.ones(2)))
"""
SCRIPTS = {
    "keras_first": """
loaded = dict(keras=use_keras(), torch=use_torch())
done(**loaded, has=has('tensorflow', 'torch', 'triton'))""",
    "torch_first": """
loaded = dict(torch=use_torch(), keras=use_keras(), again=use_torch())
done(**loaded, has=has('tensorflow', 'torch', 'triton'))""",
    "their_tensorflow_first": """
try:
    load_torch()
except ImportError as e:
    refused, kind, loaded = str(e), type(e).__name__, has('torch', 'triton')
done(refused=refused, kind=kind, loaded=loaded, keras=use_keras())""",
    "keras_on_torch": """
from transfer_course.vision.backbones import backbone
b = backbone("efficientnet_lite0", "keras")
features = b.features(images)
done(
    backend=load_keras().config.backend(),
    features=features.tolist(),
    grad=[p.path for p in b.model.weights if p.value.grad is not None],
    has=has('tensorflow', 'torch'),
)""",
    "torch_is_missing": """
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'triton'):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Gone())
from transfer_course.vision.backbones import available_backbones, backbone
b = backbone("efficientnet_lite0", "keras")
words = []
for name in ("efficientnet_lite0", "resnet50", "small_cnn", "timm:resnet18"):
    try:
        backbone(name, "torch", weights=None)
    except ImportError as e:
        words.append(str(e))
done(
    features=b.features(images).tolist(),
    words=words,
    n=len(available_backbones()),
    has=has('torch', 'triton'),
)""",
    "nothing_heavy": """
import transfer_course.engine.frameworks
import transfer_course.vision.networks
import transfer_course.vision.backbones as b
rows = b.available_backbones()
frameworks = has('torch', 'tensorflow', 'keras', 'jax')
others = has('triton', 'torchvision', 'timm', 'matplotlib')
done(has=frameworks + others, rows=len(rows))""",
}
FIRST = {"their_tensorflow_first": "import tensorflow\n"}
ENV = {"keras_on_torch": {"KERAS_BACKEND": "torch"}}


def run(name):
    """A script's last line, and what it wrote to stderr."""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    }
    env |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | ENV.get(name, {})
    command = [sys.executable, "-c", FIRST.get(name, "") + SHARED + SCRIPTS[name]]
    p = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, f"{name} ended with {p.returncode}:\n{p.stderr[-3000:]}"
    return json.loads(p.stdout.strip().splitlines()[-1]), p.stderr


@pytest.fixture(scope="module")
def outcome():
    """`outcome(name)` waits for that script; two run at a time."""
    pool = ThreadPoolExecutor(2)
    futures = {name: pool.submit(run, name) for name in SCRIPTS}
    yield lambda name: futures[name].result()
    pool.shutdown(cancel_futures=True)


needs_both = pytest.mark.skipif(
    not (installed("torch") and installed("tensorflow")), reason="needs both frameworks"
)


@pytest.mark.slow
@needs_both
@pytest.mark.parametrize("name", ["keras_first", "torch_first"])
def test_both_frameworks_live_in_either_order(outcome, name):
    got, stderr = outcome(name)
    assert got["torch"] == 3 and got["keras"] == 2 and got.get("again", 3) == 3
    assert {"tensorflow", "torch"} <= set(got["has"])
    assert "triton" in got["has"] or not installed("triton")
    assert stderr == ""  # TensorFlow's greeting is dropped, and nothing else was said


@needs_both
@pytest.mark.skipif(
    not installed("triton"), reason="without triton nothing can go wrong"
)
def test_torch_is_refused_where_it_could_kill_the_process(outcome):
    got, _ = outcome("their_tensorflow_first")
    assert (
        got["kind"] == "ImportOrder"
        and "Restart the kernel" in got["refused"]
        and "import transfer_course first" in got["refused"]
    )
    assert got["loaded"] == [] and got["keras"] == 2  # the Keras side goes on


@needs_both
def test_keras_on_torch_needs_no_tensorflow_and_gives_the_same_features(outcome):
    got, _ = outcome("keras_on_torch")
    assert got["backend"] == "torch" and got["has"] == ["torch"] and got["grad"] == []
    other, _ = outcome("torch_is_missing")
    a, b = np.array(got["features"]), np.array(other["features"])
    assert a.shape == (3, 1280) and a.std() > 0.01
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


@needs_both
def test_keras_works_where_torch_is_missing(outcome):
    got, _ = outcome("torch_is_missing")
    assert got["has"] == [] and got["n"] >= 8
    assert len(got["words"]) == 4 and all(
        "PyTorch is not installed" in w and "transfer_course[torch]" in w
        for w in got["words"]
    )


def test_importing_backbones_loads_no_framework(outcome):
    got, _ = outcome("nothing_heavy")
    assert got["has"] == [] and got["rows"] >= 8


# --- in this process: nothing below loads TensorFlow ----------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As if Keras had not been imported.

    There is no KERAS_BACKEND, and the folder for keras.json is empty.
    """
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def only(monkeypatch, *names):
    """As if of the backends only these were installed."""
    monkeypatch.setattr(frameworks, "installed", lambda n: n in names)


@pytest.mark.parametrize(
    ("there", "json_says", "asked", "expected"),
    [
        (("tensorflow", "torch"), None, None, "tensorflow"),
        (("torch",), None, None, "torch"),
        (("jax",), None, None, "jax"),
        (("tensorflow", "torch"), "torch", None, "torch"),
        (("torch",), "tensorflow", None, "torch"),  # Keras wrote that file itself
        (("tensorflow", "torch"), "theano", None, "tensorflow"),
        (("tensorflow", "torch"), "torch", "tensorflow", "tensorflow"),
        # What is asked for is not second-guessed here.
        (("tensorflow",), None, "jax", "jax"),
    ],
)
def test_which_backend(fresh, monkeypatch, there, json_says, asked, expected):
    only(monkeypatch, *there)
    if json_says:
        (fresh / "keras.json").write_text(json.dumps({"backend": json_says}))
    if asked:
        monkeypatch.setenv("KERAS_BACKEND", asked)
    assert keras_backend() == expected


@pytest.mark.parametrize("content", ["", "{", "[]", '{"backend": 3}'])
def test_a_strange_keras_json_does_no_harm(fresh, monkeypatch, content):
    only(monkeypatch, "tensorflow")
    (fresh / "keras.json").write_text(content)
    assert keras_backend() == "tensorflow"


@pytest.mark.parametrize(
    ("there", "asked", "kind", "words"),
    [
        ((), None, MissingExtra, "transfer_course[keras]"),
        (("keras",), "tensorflow", MissingExtra, "transfer_course[keras]"),
        (("keras",), "torch", MissingExtra, "transfer_course[torch]"),
        (("keras",), "jax", MissingExtra, "pip install jax"),
        (("keras", "tensorflow"), "tensorfow", BadValue, "Did you mean 'tensorflow'?"),
    ],
)
def test_a_backend_that_is_not_there_is_one_sentence(
    fresh, monkeypatch, there, asked, kind, words
):
    only(monkeypatch, *there)
    if asked:
        monkeypatch.setenv("KERAS_BACKEND", asked)
    with pytest.raises(kind, match=words.replace("[", r"\[").replace("?", r"\?")):
        frameworks.load_keras()


def test_installed_sees_blocked_and_missing_modules(monkeypatch):
    assert (
        installed("json")
        and installed("numpy")
        and not installed("no_such_module_at_all")
    )
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert not installed("numpy")


def test_refusal_needs_all_three_signs(monkeypatch):
    """TensorFlow loaded, triton not loaded, triton installed: only then."""
    torch = load_torch()
    for tf, triton, there, refused in [
        (1, 0, 1, True),
        (0, 0, 1, False),
        (1, 1, 1, False),
        (1, 0, 0, False),
    ]:
        with monkeypatch.context() as m:
            m.delitem(sys.modules, "triton", raising=False)
            m.delitem(sys.modules, "tensorflow", raising=False)
            if tf:
                m.setitem(sys.modules, "tensorflow", json)
            if triton:
                m.setitem(sys.modules, "triton", json)
            m.setattr(frameworks, "installed", lambda n, there=there: bool(there))
            m.setattr(
                frameworks.importlib,
                "import_module",
                lambda name, *a: json if name == "triton" else torch,
            )
            if refused:
                with pytest.raises(ImportOrder) as e:
                    load_torch()
                assert isinstance(e.value, UserMistake)
            else:
                assert load_torch() is torch


def test_load_torch_brings_triton(monkeypatch):
    """So that a TensorFlow imported later by the user does no harm."""
    loaded = []
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(frameworks, "installed", lambda n: True)
    monkeypatch.setattr(frameworks.importlib, "import_module", loaded.append)
    load_torch()
    assert "triton" in loaded


def test_a_broken_triton_does_no_harm(monkeypatch):
    def broken(name, *args):
        raise RuntimeError("no driver")

    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(frameworks.importlib, "import_module", broken)
    frameworks._triton_first()


def test_only_the_greeting_is_dropped(capfd):
    with frameworks._without_greeting():
        os.write(
            2,
            b"WARNING: All log messages before absl::InitializeLog() is called are "
            b"written to STDERR\n",
        )
        os.write(
            2,
            b"I0000 00:00:1795259073.104365 7250 cudart_stub.cc:31] Could not find "
            b"cuda drivers\n",
        )
        os.write(
            2,
            b"E0000 00:00:1 1 cuda_platform.cc:51] failed call to cuInit: UNKNOWN "
            b"ERROR (303)\n",
        )
        os.write(2, b"this matters\n")
    assert capfd.readouterr().err == "this matters\n"
    with pytest.raises(KeyError), frameworks._without_greeting():
        os.write(2, b"before the error\n")
        raise KeyError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before the error\nafter\n"


@pytest.mark.parametrize(
    "name", ["", "Torch", "pytorch", "tensorflow", None, 3, ["torch"]]
)
def test_unknown_frameworks(name):
    with pytest.raises(BadValue, match="expected 'torch' or 'keras'"):
        check_framework(name)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True, 2**32])
def test_bad_seeds(seed):
    with pytest.raises(BadValue, match="seed is"), seeded(seed, "torch"):
        pass


def test_seeded_leaves_the_callers_numbers_alone():
    torch = load_torch()

    def draw():
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    def start():
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)

    start()
    expected = draw()
    start()
    with seeded(3, "torch"):
        first = torch.rand(3).tolist()
    assert draw() == expected
    start()
    with pytest.raises(KeyError), seeded(3, "torch"):
        assert torch.rand(3).tolist() == first
        raise KeyError
    assert draw() == expected


def threads_wait(**env):
    """What the C library's OpenMP is told in a fresh process with these variables."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    code = "import os, transfer_course; print(os.environ.get('GOMP_SPINCOUNT'))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_threads_do_not_spin_long_unless_the_user_says_so():
    """Beside another program, OpenMP's default made networks several times slower."""
    assert threads_wait() == "3000"
    assert threads_wait(GOMP_SPINCOUNT="7") == "7"
    assert threads_wait(OMP_WAIT_POLICY="active") == "None"
