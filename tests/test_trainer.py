"""On the same batches the production loop makes the same updates as the plain loop of
lesson 12, with its speed-ups and without them."""

import copy

import numpy as np
import pytest

from transfer_course.engine.frameworks import load_torch
from transfer_course.trainer.batches import Epoch
from transfer_course.trainer.recipe import Recipe
from transfer_course.trainer.run import fine_tune
from transfer_course.trainer.start import initial_head
from transfer_course.trainer.torch_frozen import Kept
from transfer_course.trainer.torch_phase import PhaseSetup
from transfer_course.trainer.torch_speed import Folded, Quick
from transfer_course.vision.backbones import backbone
from transfer_course.vision.data import styles
from transfer_course.vision.finetune_torch import (
    Network,
    linear,
    open_stages,
    train_plain,
)
from transfer_course.vision.freezing import snapshot

torch = load_torch()
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


def plainly(net, data, recipe):
    """(network, history) of the plain loop, on the batches of `recipe`."""
    head = linear(*initial_head(net.feature_dim, len(data.classes), recipe.seed))
    network = Network(copy.deepcopy(net.model), head)
    names = list(net.stages)
    open_stages(network, net, names[names.index(recipe.train_from) :])

    def tensors(batches):
        for batch in batches:
            images = torch.from_numpy(net.preprocess(batch["images"]))
            yield images, torch.from_numpy(batch["labels"])

    history = train_plain(
        network,
        lambda epoch: tensors(Epoch(data, recipe, epoch)),
        epochs=recipe.epochs,
        lr=recipe.lr,
        head_lr=recipe.head_lr,
        momentum=recipe.momentum,
        valid=list(tensors(Epoch(data, recipe, 0))),
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


def test_the_same_validation_accuracy(net, data, plain):
    """On the training images, whose accuracy changes with every epoch."""
    result = fine_tune(net, data, data, RECIPE, progress=False)
    expected = [row["valid_accuracy"] for row in plain[1]]
    assert [row["valid_accuracy"] for row in result.history] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("wrong", ["lr", "head_lr", "momentum"])
def test_a_rate_that_is_one_percent_wrong_is_noticed(net, data, plain, wrong):
    changed = RECIPE.but(**{wrong: 1.01 * getattr(RECIPE, wrong)})
    result = fine_tune(net, data, None, changed, progress=False)
    assert apart(result.model, plain[0]) > 50 * TOLERANCE
