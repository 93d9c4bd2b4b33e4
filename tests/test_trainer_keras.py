"""Keras: on the same batches, the production loop makes the same updates as the plain
loop of lesson 13."""

import numpy as np
import pytest
from tiny import PLAIN, colours, keras_backbone

from transfer_course.engine.frameworks import load_keras
from transfer_course.trainer.batches import Data
from transfer_course.trainer.recipe import Recipe, plan
from transfer_course.trainer.run import fine_tune
from transfer_course.trainer.start import initial_head
from transfer_course.vision.finetune_keras import network, train_plain
from transfer_course.vision.freezing import moved, snapshot

keras = load_keras()
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's way"
)
TOLERANCE = dict(rtol=1e-4, atol=1e-6)  # float32; the sums have another order
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    lr=0.05,
    head_lr=0.2,
    **PLAIN,
)


@pytest.fixture(scope="module")
def data():
    return colours(np.arange(24) % 3)


@pytest.fixture(scope="module")
def net():
    return keras_backbone()


class TwoRates(keras.optimizers.SGD):
    """As in lesson 13: the head has a rate of its own."""

    def __init__(self, rate, head_rate):
        super().__init__(rate)
        self.factor = head_rate / rate

    def build(self, variables):
        self.in_head = [v.path.startswith("head") for v in variables]
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        factor = self.factor if self.in_head[self._get_variable_index(variable)] else 1
        return super().update_step(gradient, variable, factor * learning_rate)


def plainly(net, data, recipe, rate=None, order=None):
    """The model after the plain loop has gone through the batches of the recipe.

    `fit` reads the batches of a phase one after the other, in the given order, because
    they all have the same size. `rate` and `order`, a seed, replace the recipe's.
    """
    read = recipe if order is None else recipe.but(seed=order)
    head = initial_head(net.feature_dim, len(data.classes), recipe.seed)
    _, model = network(net.model, *head)
    first = 0
    for phase in plan(recipe, net.stages).phases:
        numbers = range(first, first + phase.epochs)
        epochs = [Data(data).epoch(read, number) for number in numbers]
        batches = [batch for epoch in epochs for batch in epoch]
        assert {len(batch["labels"]) for batch in batches} == {recipe.batch_size}
        train_plain(
            model,
            net.preprocess(np.concatenate([b["images"] for b in batches])),
            np.concatenate([b["labels"] for b in batches]),
            ["head", *(p for stage in phase.stages for p in net.stages[stage])],
            TwoRates(rate or phase.lr, phase.head_lr),
            batch_size=recipe.batch_size,
            shuffle=False,
        )
        first += phase.epochs
    return model


def equal(a, b):
    pairs = zip(a.get_weights(), b.get_weights(), strict=True)
    return all(np.allclose(x, y, **TOLERANCE) for x, y in pairs)


CASES = {
    "all stages": {},
    "the head": dict(strategy="head"),
    "the last stage": dict(train_from="late"),
    "in phases": dict(strategy="gradual"),
    "augmented": dict(augment=0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_the_production_loop_makes_the_updates_of_the_plain_loop(case, net, data):
    recipe = RECIPE.but(**CASES[case])
    result = fine_tune(net, data, None, recipe, progress=False)
    plain = plainly(net, data, recipe)
    changed = moved(snapshot(net.model), snapshot(result.backbone.model))
    assert bool(changed) == (case != "the head")
    assert equal(result.model, plain)


@pytest.fixture(scope="module")
def trained(net, data):
    return fine_tune(net, data, None, RECIPE, progress=False)


def test_another_rate_is_found(trained, net, data):
    plain = plainly(net, data, RECIPE, rate=RECIPE.lr * 1.01)
    assert not equal(trained.model, plain)


def test_another_order_of_the_batches_is_found(trained, net, data):
    assert not equal(trained.model, plainly(net, data, RECIPE, order=1))
