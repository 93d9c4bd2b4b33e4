"""Explanations: maps against captum and finite differences, and the record."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.insight import explain as ex
from transfer_course.insight.gradients import (
    agreement,
    enlarged,
    gradients_at,
    keras_gradients,
    scaled_input,
    to_one,
    torch_gradients,
)
from transfer_course.trainer.recipe import Recipe
from transfer_course.vision.backbones import backbone
from transfer_course.vision.networks import copy_torch_to_keras

SIDE, CLASSES = 64, ["a", "b", "c"]
WANTED = np.array([0, 2, 1, 1])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)


def torch_result(net, seed=0):
    """A backbone with a random head, as `fine_tune` returns it."""
    from transfer_course.trainer.torch_state import TorchResult
    from transfer_course.vision.finetune_torch import Network, linear

    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(net.feature_dim, 3)).astype("float32")
    model = Network(net.model, linear(weights, np.zeros(3, "float32")))
    return TorchResult(net, model.eval(), CLASSES, Recipe("probe"))


@pytest.fixture(scope="module")
def ours():
    return torch_result(backbone("small_cnn", "torch", weights=None, seed=3))


@pytest.fixture(scope="module")
def twin(ours):
    """The same weights in Keras."""
    from transfer_course.trainer.keras_state import KerasResult
    from transfer_course.vision.finetune_keras import network

    net = backbone("small_cnn", "keras", weights=None)
    assert not copy_torch_to_keras(ours.model.body.state_dict(), net.model)
    head = [p.detach().numpy() for p in ours.model.head.parameters()]
    _, model = network(net.model, head[0].T, head[1])
    return KerasResult(net, model, CLASSES, ours.recipe)


def pixels(result, images):
    """What captum gets."""
    return load_torch().from_numpy(
        np.ascontiguousarray(result.backbone.preprocess(images))
    )


def last_first(attributions):
    """Captum's (N, C, H, W) as (N, H, W, C)."""
    return attributions.detach().numpy().transpose(0, 2, 3, 1)


def test_occlusion_is_that_of_captum(ours, images):
    from captum.attr import Occlusion

    torch, x = load_torch(), pixels(ours, images)
    grey = pixels(ours, np.full((1, SIDE, SIDE, 3), 127, np.uint8))
    theirs = Occlusion(ours.model).attribute(
        x,
        strides=(3, 16, 16),
        target=torch.from_numpy(WANTED),
        sliding_window_shapes=(3, 32, 32),
        baselines=grey.expand_as(x),
    )
    each = np.arange(4), WANTED
    found = ex.occlusion(lambda x: ours.logits(x)[each], images, 32, 16)
    np.testing.assert_allclose(found, last_first(theirs)[..., 0], rtol=1e-3, atol=1e-4)


def test_occlusion_reaches_the_border_and_leaves_the_images(images):
    before = images.copy()
    mean = lambda x: x.mean(axis=(1, 2, 3))  # noqa: E731
    found = ex.occlusion(mean, images, size=30, step=20, fill=0)
    assert found.shape == (4, SIDE, SIDE) and (found > 0).all()
    assert (images == before).all()
    whole = ex.occlusion(mean, images, size=SIDE, step=5, fill=0)
    np.testing.assert_allclose(
        whole, np.broadcast_to(mean(images)[:, None, None], whole.shape)
    )


def test_integrated_gradients_and_gradient_times_input_are_those_of_captum(
    ours, images
):
    from captum.attr import InputXGradient, IntegratedGradients

    torch, x = load_torch(), pixels(ours, images)
    target = torch.from_numpy(WANTED)
    how = dict(n_steps=9, method="riemann_middle")
    theirs = last_first(
        IntegratedGradients(ours.model).attribute(x, target=target, **how)
    )
    at = scaled_input(ours, images)
    found = ex.integrated_gradients(
        lambda z: gradients_at(ours, z, WANTED)[2], at, steps=9
    )
    scale = abs(theirs).max()
    np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-5 * scale)
    theirs = last_first(InputXGradient(ours.model).attribute(x, target=target))
    _, values, gradients = gradients_at(ours, at, WANTED)
    np.testing.assert_allclose(
        values * gradients, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max()
    )
    maps = ex.explain(ours, images, WANTED, "gradient_times_input")
    expected = np.maximum(theirs.sum(-1), 0)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_grad_cam_is_that_of_captum(ours, images):
    from captum.attr import LayerGradCam

    module = ours.model.body.get_submodule("stage3")
    target = load_torch().from_numpy(WANTED)
    theirs = LayerGradCam(ours.model, module).attribute(
        pixels(ours, images), target, relu_attributions=True
    )
    found = ex.explain(ours, images, WANTED, "grad_cam", layer="stage3")
    expected = enlarged(theirs.detach().numpy()[:, 0], SIDE, SIDE)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_guided_backprop_is_that_of_captum_and_leaves_the_network():
    from captum.attr import GuidedBackprop

    from transfer_course.vision.finetune_torch import Network

    torch = load_torch()
    torch.manual_seed(0)
    nn = torch.nn
    body = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model = Network(body, nn.Linear(4, 3))
    images = np.random.default_rng(0).random((4, 12, 12, 3), np.float32)
    net = SimpleNamespace(preprocess=lambda x: x.transpose(0, 3, 1, 2))
    result = SimpleNamespace(backbone=net, framework="torch", model=model)
    found = ex.guided_backprop(result, images, WANTED)
    assert body[1].inplace and not body[3].inplace
    assert not any(m._backward_hooks for m in model.modules())
    plain = nn.Sequential(body[0], nn.ReLU(), *body[2:], model.head)
    x = torch.from_numpy(net.preprocess(images).copy())
    theirs = GuidedBackprop(plain).attribute(x, target=torch.from_numpy(WANTED))
    np.testing.assert_allclose(
        found, abs(last_first(theirs)).max(-1), rtol=1e-4, atol=1e-6
    )
    gradient = gradients_at(result, scaled_input(result, images), WANTED)[2]
    assert not np.allclose(abs(gradient).max(-1), found)


@pytest.mark.parametrize("method", ex.METHODS)
def test_both_frameworks_agree(ours, twin, images, method):
    both = []
    for result in (ours, twin):
        grids = [n for n, p in result.backbone.stages.items() if n == "stage3"]
        layer = None
        if method == "grad_cam":
            layer = "stage3" if result is ours else _last_of(result, grids[0])
        both.append(ex.explain(result, images, WANTED, method, layer, steps=4))
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5 * both[0].max())


def _last_of(result, stage):
    """The last Keras layer of a stage."""
    prefixes = tuple(result.backbone.stages[stage])
    names = [layer.name for layer in result.model.layers]
    return [name for name in names if name.startswith(prefixes)][-1]


def test_the_gradients_agree_in_float64_and_with_finite_differences():
    torch, keras = load_torch(), load_keras()
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(6, 5)), rng.normal(size=(5, 3))
    x = rng.normal(size=(4, 6))
    inputs = keras.Input((6,), dtype="float64")
    layers = [
        keras.layers.Dense(5, "tanh", use_bias=False, dtype="float64"),
        keras.layers.Dense(3, use_bias=False, dtype="float64"),
    ]
    model = keras.Model(inputs, layers[1](layers[0](inputs)))
    model.set_weights([first, second])
    hidden = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.Tanh())
    net = torch.nn.Sequential(hidden, torch.nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        hidden[0].weight.copy_(torch.from_numpy(first.T))
        net[1].weight.copy_(torch.from_numpy(second.T))
    score = lambda z: (np.tanh(z @ first) @ second)[np.arange(4), WANTED]  # noqa: E731
    steps = 1e-6 * np.eye(6)
    slopes = np.stack([(score(x + h) - score(x - h)) / 2e-6 for h in steps], 1)
    for module, layer in ((None, None), (hidden, layers[0])):
        found = torch_gradients(net, torch.from_numpy(x), WANTED, module)
        other = keras_gradients(model, x, WANTED, layer)
        for a, b in zip(found, other, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-6, atol=1e-12)
        if module is None:
            np.testing.assert_allclose(found[2].numpy(), slopes, rtol=1e-6, atol=1e-8)
    parts = ex.integrated_gradients(
        lambda z: torch_gradients(net, torch.from_numpy(z), WANTED)[2].numpy(),
        x,
        baseline=0.3,
        steps=2000,
    )
    rise = score(x) - score(np.full_like(x, 0.3))
    np.testing.assert_allclose(parts.sum(1), rise, rtol=1e-6, atol=1e-7)
    assert all(p.grad is None for p in net.parameters())


ON_TORCH = """
import numpy as np
from transfer_course.engine.frameworks import keras_backend, load_keras
from transfer_course.insight.gradients import keras_gradients
keras = load_keras()
assert keras_backend() == "torch"
inputs = keras.Input((6,))
first, second = keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)
model = keras.Model(inputs, second(first(inputs)))
x = np.ones((2, 6), "float32")
scores, values, gradients = keras_gradients(model, x, [2, 0], first)
expected = second.get_weights()[0].T[[2, 0]]
np.testing.assert_allclose(gradients, expected, rtol=1e-5)
_, same, slopes = keras_gradients(model, x, [2, 0])
chain = (expected * (1 - values**2)) @ first.get_weights()[0].T
np.testing.assert_allclose(slopes, chain, rtol=1e-4, atol=1e-6)
"""


def test_keras_on_torch_gives_gradients_too():
    env = os.environ | {"KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, "-c", ON_TORCH], env=env, check=True)


def test_the_network_is_left_as_it_was(ours, images):
    before = {k: v.clone() for k, v in ours.model.state_dict().items()}
    for method in ("integrated_gradients", "grad_cam"):
        ex.explain(ours, images, WANTED, method, "stage3", steps=2)
    assert all((v == before[k]).all() for k, v in ours.model.state_dict().items())
    assert not any(m._forward_hooks for m in ours.model.modules())


def test_an_unknown_method_is_refused(ours, images):
    with pytest.raises(BadValue, match="grad_cam"):
        ex.explain(ours, images, WANTED, "gradcam")


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_only_the_named_stages_become_random(framework):
    net = backbone("small_cnn", framework, weights=None, seed=1)
    fresh = ex.randomised(net, ("stage3", "stage4"), seed=2)
    if framework == "torch":
        pairs = [
            (name, value, fresh.model.state_dict()[name])
            for name, value in net.model.state_dict().items()
            if value.dim() > 1
        ]
    else:
        pairs = [
            (
                layer.name,
                layer.get_weights()[0],
                fresh.model.get_layer(layer.name).get_weights()[0],
            )
            for layer in net.model.layers
            if layer.weights and layer.get_weights()[0].ndim > 1
        ]
    changed = {
        name[:6] for name, a, b in pairs if (np.asarray(a) != np.asarray(b)).any()
    }
    kept = {name[:6] for name, a, b in pairs if (np.asarray(a) == np.asarray(b)).all()}
    assert changed == {"stage3", "stage4"} and kept == {"stage1", "stage2"}


def test_the_share_on_a_mask():
    heat = np.zeros((3, 2, 2))
    heat[0, 0, 0], heat[1] = 5, 1
    masks = np.zeros((3, 2, 2))
    masks[:, 0, 0] = 1
    assert ex.on_mask(heat, masks).tolist() == [1, 0.25, 0.25]


def test_agreement_is_spearmans():
    maps, others = np.random.default_rng(0).integers(0, 5, (2, 6, 4, 5))
    expected = [
        spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(maps, others, strict=True)
    ]
    np.testing.assert_allclose(agreement(maps, others), expected, rtol=1e-9)
    assert agreement(maps, np.ones_like(maps)).tolist() == [0] * 6
    assert to_one(np.zeros((1, 2, 2))).max() == 0


def test_a_neighbour_is_of_another_identity():
    features = np.array([[1, 0], [1, 0.01], [1, 0.1], [0, 1.0]])
    labels, groups = np.array([0, 0, 1, 1]), np.array(["p", "p", "q", "r"])
    # 0 and 1 look at 2; 2 at 1; 3 at 2
    found = ex.neighbour_is_right(features, labels, groups)
    assert found.tolist() == [False, False, False, True]
    alone = ex.neighbour_is_right(features, labels, np.arange(4))
    assert alone.tolist() == [True, True, False, True]


def test_the_record_says_what_the_lesson_claims():
    from transfer_course.practice import explain_study as study

    record = study.load_explain()
    planned = {(x, m) for x in study.LEVELS for m in study.LOOKS}
    assert {(run.level, run.method) for run in record["maps"]} == planned
    assert len(record["maps"]) == len(planned)
    assert [run.seed for run in record["neighbours"]] == list(study.SEEDS)
    for run in record["maps"]:
        assert len(run.scenes) == len(run.asked) == len(run.other)
        assert min(run.asked) >= 0 and max(run.asked) <= 1
        if run.method == "contrast":
            assert set(run.agreement) == {1.0}
