"""On the same batches the production loop makes the same updates as lesson 12's program
and as its plain loop, with speed-ups and without them."""

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transfer_course.engine.frameworks import load_torch
from transfer_course.trainer import recipe as recipes
from transfer_course.trainer.batches import Epoch
from transfer_course.trainer.recipe import Phase, Plan, Recipe
from transfer_course.trainer.run import fine_tune
from transfer_course.trainer.start import initial_head
from transfer_course.trainer.torch_frozen import Kept
from transfer_course.trainer.torch_phase import PhaseSetup
from transfer_course.trainer.torch_speed import Folded, Quick
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import styles
from transfer_course.vision.finetune_torch import (
    Network,
    accuracy,
    linear,
    open_stages,
    train_plain,
)
from transfer_course.vision.freezing import moved, snapshot

torch = load_torch()
LESSON = (
    Path(__file__).resolve().parent.parent
    / "nbs"
    / "2_vision"
    / "12_finetune_torch.ipynb"
)
PROGRAM = ("12a0c011", "12a0c013", "12a0c015")  # the cells of the plain program
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    optimizer="sgd",
    momentum=0.9,
    lr=0.002,
    head_lr=0.01,
    schedule="constant",
    warmup=0.0,
    train_from="stage6",
)
# A weight of the body moves by up to 0.02. Rounding differs between a convolution and
# one with a BatchNorm folded into it; it moved no weight by more than 3e-7 here.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def net():
    return backbone("efficientnet_lite0", "torch")


@pytest.fixture(scope="module")
def data():
    drawings = styles("noto", size=32)
    return drawings.subset(np.arange(0, len(drawings), 18))


@pytest.fixture(scope="module", autouse=True)
def head_first():
    """A strategy that trains the head for two epochs before it opens the stages."""

    def two_phases(recipe, stages):
        opened = stages[stages.index(recipe.train_from) :]
        head = Phase(2, (), recipe.lr, recipe.head_lr)
        return Plan((head, head._replace(epochs=recipe.epochs - 2, stages=opened)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes._STRATEGIES, "head_first", two_phases)
        yield


def new_head(net, data, recipe):
    return linear(*initial_head(net.feature_dim, len(data.classes), recipe.seed))


def tensors(net, batches):
    for batch in batches:
        images = torch.from_numpy(net.preprocess(batch["images"]))
        yield images, torch.from_numpy(batch["labels"])


def plainly(net, data, recipe):
    """(network, history) of the plain loop, on the batches of `recipe`."""
    network = Network(copy.deepcopy(net.model), new_head(net, data, recipe))
    names = list(net.stages)
    open_stages(network, net, names[names.index(recipe.train_from) :])
    phases = [(recipe.epochs, recipe.lr)]
    if recipe.strategy == "head_first":
        phases = [(2, 0.0), (recipe.epochs - 2, recipe.lr)]
    history = train_plain(
        network,
        lambda epoch: tensors(net, Epoch(data, recipe, epoch)),
        phases,
        head_lr=recipe.head_lr,
        momentum=recipe.momentum,
    )
    return network, history


@pytest.fixture(scope="module")
def plain(net, data):
    return plainly(net, data, RECIPE)


def apart(one, other) -> float:
    """The largest difference between two networks in any weight."""
    one, other = snapshot(one), snapshot(other)
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.mark.parametrize("fast", [True, False], ids=["speed-ups", "none"])
def test_the_same_updates(net, data, plain, fast, monkeypatch):
    used = []
    if fast:
        for kind, name in (
            (Kept, "batch"),
            (Folded, "__enter__"),
            (Quick, "__enter__"),
        ):
            note(monkeypatch, kind, name, used)
    else:
        monkeypatch.setattr(PhaseSetup, "keep", lambda *a, **k: None)
        for kind in (Folded, Quick):
            monkeypatch.setattr(kind, "fits", staticmethod(lambda *a: False))
    # without a validation set the last weights are kept, as in the plain loop
    result = fine_tune(net, data, None, RECIPE, progress=False)
    network, history = plain
    assert {kind.__name__ for kind in used} == (
        {"Kept", "Folded", "Quick"} if fast else set()
    )
    assert apart(result.model, network) < TOLERANCE
    start = copy.deepcopy(network)
    start.body.load_state_dict(net.model.state_dict())
    assert apart(start, network) > 1000 * TOLERANCE, "hardly anything was learned"
    steps = np.array(result.step_losses).reshape(RECIPE.epochs, -1)
    np.testing.assert_allclose(steps.mean(1), [row["loss"] for row in history], 1e-4)


def note(monkeypatch, kind, name, used):
    """Note in `used` that a speed-up was really taken."""
    method = getattr(kind, name)

    def noted(self, *args):
        used.append(kind)
        return method(self, *args)

    monkeypatch.setattr(kind, name, noted)


def test_the_same_updates_with_the_head_first(net, data):
    recipe = RECIPE.but(strategy="head_first", epochs=4)
    network, history = plainly(net, data, recipe)
    result = fine_tune(net, data, None, recipe, progress=False)
    assert apart(result.model, network) < TOLERANCE
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    only_head, _ = plainly(net, data, recipe.but(strategy="fine_tune"))
    assert apart(result.model, only_head) > 50 * TOLERANCE, "the phases do nothing"


def test_the_best_weights_and_the_same_validation_accuracy(net, data):
    """On the training images, whose accuracy changes with every epoch."""
    network = Network(copy.deepcopy(net.model), new_head(net, data, RECIPE))
    open_stages(network, net, list(net.stages)[-3:])
    images = list(tensors(net, Epoch(data, RECIPE, 0)))

    def batches(epoch):
        return tensors(net, Epoch(data, RECIPE, epoch))

    phases = [(RECIPE.epochs, RECIPE.lr)]
    history = train_plain(network, batches, phases, RECIPE.head_lr, valid=images)
    found = [row["valid_accuracy"] for row in history]
    recipe = RECIPE.but(train_from=list(net.stages)[-3])
    result = fine_tune(net, data, data, recipe, progress=False)
    assert [row["valid_accuracy"] for row in result.history] == found
    assert accuracy(network, images) == max(found) and len(set(found)) > 1


def test_only_the_head_may_be_trained(net, data):
    network = Network(copy.deepcopy(net.model), new_head(net, data, RECIPE))
    open_stages(network, net, ())
    before = snapshot(network)
    train_plain(network, lambda epoch: tensors(net, Epoch(data, RECIPE, 0)), [(1, 0.1)])
    assert moved(before, snapshot(network)) == ["head.weight", "head.bias"]


# --- the program at the start of the lesson -------------------------------------------


def program():
    """The source of its three cells."""
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for k in PROGRAM for c in cells if c["id"] == k]


def test_the_program_is_short_and_runs_as_one_file(tmp_path):
    """At 32 instead of 96 pixels, so that it takes seconds."""
    parts = program()
    assert len(parts) == 3
    lines = [line for line in "\n".join(parts).splitlines() if line.strip()]
    assert 30 <= len(lines) <= 40
    source = "\n\n\n".join(parts)
    assert source.count("size=96") == 1
    file = tmp_path / "program.py"
    file.write_text(source.replace("size=96", "size=32"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, file.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 6 and "with probability" in told[-1]
    assert (tmp_path / "best.pt").exists()


def test_the_program_makes_the_updates_of_fine_tune(net, data, tmp_path, monkeypatch):
    """Its second cell, on the batches of the library."""
    recipe = RECIPE.but(
        strategy="head_first", epochs=5, lr=0.0003, head_lr=0.003, train_from="stem"
    )
    body, epochs = copy.deepcopy(net.model).eval(), itertools.count()
    network = torch.nn.Sequential(body, new_head(net, data, recipe))

    def predict(images):
        with torch.no_grad():
            return network.eval()(torch.from_numpy(net.preprocess(images))).numpy()

    names = dict(
        torch=torch,
        nn=torch.nn,
        network=network,
        body=body,
        head=network[1],
        kernels=[weights for weights in body.parameters() if weights.dim() == 4],
        train=data,
        valid=data,
        batches=lambda data: tensors(net, Epoch(data, recipe, next(epochs))),
        predict=predict,
    )
    monkeypatch.chdir(tmp_path)
    exec(program()[1], names)
    result = fine_tune(net, data, None, recipe, progress=False)
    assert next(epochs) == recipe.epochs
    assert apart(result.model.body, body) < TOLERANCE
    assert apart(result.model.head, network[1]) < TOLERANCE
    assert apart(net.model, body) > 50 * TOLERANCE, "hardly anything was learned"


@pytest.mark.parametrize("wrong", ["lr", "head_lr", "momentum"])
def test_a_rate_that_is_one_percent_wrong_is_noticed(net, data, plain, wrong):
    changed = RECIPE.but(**{wrong: 1.01 * getattr(RECIPE, wrong)})
    result = fine_tune(net, data, None, changed, progress=False)
    assert apart(result.model, plain[0]) > 50 * TOLERANCE
