"""Heat maps: the arithmetic against captum, both frameworks, the report and its words.

The folders of the tests are made here; see `tests/test_abstain.py` for the runs.
"""

import numpy as np
import pytest
from tiny import CLASSES, colours

from transfer_course import Recipe, fine_tune
from transfer_course.engine.errors import BadValue
from transfer_course.practice.heat import add_heat, cell_scores, heat_map, overlay
from transfer_course.vision.backbones import backbone
from transfer_course.vision.networks import copy_torch_to_keras

LABELS = np.arange(12) % 3
SIDE = 64


def larger(data):
    """The coloured images at 64 pixels."""
    from transfer_course.engine.files import resize_square
    from transfer_course.vision.data import ImageDataset

    images = resize_square(data.images, SIDE)
    return ImageDataset(images=images, labels=data.labels, classes=CLASSES)


@pytest.fixture(scope="module")
def data():
    return larger(colours(LABELS))


@pytest.fixture(scope="module")
def probe(data):
    net = backbone("efficientnet_lite0", "torch")
    return fine_tune(net, data, None, Recipe("probe"), progress=False)


@pytest.fixture(scope="module")
def tuned(data):
    recipe = Recipe("fine_tune", epochs=1, batch_size=6)
    net = backbone("small_cnn", "torch", weights=None)
    return fine_tune(net, data, None, recipe, progress=False)


@pytest.fixture(scope="module")
def twins(tuned):
    """The tuned network and one in Keras with the same weights."""
    from transfer_course.engine.frameworks import load_keras
    from transfer_course.trainer.keras_state import KerasResult

    keras, net = load_keras(), backbone("small_cnn", "keras", weights=None)
    state = tuned.model.state_dict()
    body = {k.removeprefix("body."): v for k, v in state.items() if "body." in k}
    assert not copy_torch_to_keras(body, net.model)
    head = keras.layers.Dense(3, name="head")
    model = keras.Model(net.model.input, head(net.model.output))
    head.set_weights([state["head.weight"].numpy().T, state["head.bias"].numpy()])
    return tuned, KerasResult(net, model, CLASSES, tuned.recipe)


def by_captum(result, images, wanted, layer, method):
    """The same map by captum: attribution, ReLU, interpolation, division by the top."""
    import torch
    from captum.attr import LayerAttribution, LayerGradCam

    module = result.model.body.get_submodule(layer)
    x = torch.from_numpy(np.ascontiguousarray(result.backbone.preprocess(images)))
    target = torch.from_numpy(wanted)
    if method == "grad_cam":
        cam = LayerGradCam(result.model, module).attribute(x, target)
    else:
        from captum._utils.gradient import compute_layer_gradients_and_eval as both

        gradients, activations = both(result.model, module, x, target)
        cam = (gradients[0].relu() * activations[0]).sum(1, keepdim=True).relu()
    cam = cam.relu()
    heat = LayerAttribution.interpolate(cam, (SIDE, SIDE), "bilinear")[:, 0]
    heat = heat.detach().numpy()
    return heat / heat.max(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam"])
@pytest.mark.parametrize("which, layer", [("tuned", "stage4"), ("probe", "bn2")])
def test_the_map_is_that_of_captum(which, layer, method, request, data):
    result = request.getfixturevalue(which)
    wanted = result.predict(data).argmax(1)
    heat = heat_map(result, data, method=method)
    expected = by_captum(result, data.images, wanted, layer, method)
    assert heat.shape == (12, SIDE, SIDE) and heat.dtype == np.float32
    assert heat.std(axis=(1, 2)).min() > 0.01  # no map is empty
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam"])
@pytest.mark.parametrize("layer", [None, "stage3"])
def test_both_frameworks_agree(twins, data, layer, method):
    ours, theirs = (heat_map(r, data, 1, method, layer) for r in twins)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert ours.max() == 1


def test_the_pretrained_twins_agree(probe, data):
    """The bundled network with the same probe on top, in Keras."""
    net = backbone("efficientnet_lite0", "keras")
    theirs = fine_tune(net, data, None, Recipe("probe"), progress=False)
    maps = [heat_map(result, data, LABELS) for result in (probe, theirs)]
    np.testing.assert_allclose(*maps, atol=1e-3)


def test_a_probe_gives_the_class_activation_map(probe, data):
    """CAM (Zhou et al. 2016): the head's weights, applied to each cell."""
    import torch

    kept = []
    hook = probe.model.body.bn2.register_forward_hook(lambda m, i, o: kept.append(o))
    with torch.inference_mode():
        probe.model(torch.from_numpy(probe.backbone.preprocess(data.images).copy()))
    hook.remove()
    cells = kept[0].permute(0, 2, 3, 1).numpy()
    cam = np.maximum(cells @ probe.model.head.weight[2].detach().numpy(), 0)
    gradients = np.broadcast_to(
        probe.model.head.weight[2].detach().numpy(), cells.shape
    )
    assert np.allclose(cell_scores(cells, gradients), cam, atol=1e-5)
    heat = heat_map(probe, data, "blue")
    assert np.allclose(heat[:, 0, 0] * cam.max((1, 2)), cam[:, 0, 0], atol=1e-3)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_other_backbones_have_maps(framework, data):
    """A residual network, whose last part adds, in both frameworks."""
    net = backbone("resnet50", framework, weights=None)
    recipe = Recipe("probe")
    result = fine_tune(net, data.subset(range(6)), None, recipe, progress=False)
    heat = heat_map(result, data.images[:2])
    assert heat.shape == (2, SIDE, SIDE) and 0 <= heat.min() < heat.max() == 1


def test_the_network_is_left_as_it_was(probe, data):
    before = {k: v.clone() for k, v in probe.model.state_dict().items()}
    modes = [m.training for m in probe.model.modules()]
    first = heat_map(probe, data.images[:4])
    assert (heat_map(probe, data.images[:4]) == first).all()
    assert all((v == before[k]).all() for k, v in probe.model.state_dict().items())
    assert [m.training for m in probe.model.modules()] == modes
    assert not any(m._forward_hooks for m in probe.model.modules())
    assert all(p.grad is None for p in probe.model.parameters())


def test_a_transformer_has_none_and_says_so(data):
    from transfer_course.trainer.torch_state import TorchResult
    from transfer_course.vision.finetune_torch import Network, linear

    net = backbone("timm:test_vit", weights=None)
    head = linear(np.ones((net.feature_dim, 3), "float32"), np.zeros(3, "float32"))
    result = TorchResult(net, Network(net.model, head), CLASSES, Recipe("probe"))
    images = np.zeros((1, net.input_size, net.input_size, 3), np.uint8)
    with pytest.raises(BadValue, match="convolutional"):
        heat_map(result, images, classes=0)
    pictures = [dict(image=images[0], predicted="red")]
    assert "convolutional" in add_heat(result, pictures)["note"]


@pytest.mark.parametrize(
    "wrong, word",
    [
        (dict(method="gradcam"), "grad_cam"),
        (dict(layer="stage9"), "stage1"),
        (dict(classes=["red", "blue"]), "each of the 4 images"),
        (dict(classes="violet"), "red, green, blue"),
        (dict(classes=7), "red, green, blue"),
        (dict(classes=0.5), "by name or by number"),
    ],
)
def test_a_wrong_argument_is_one_sentence(probe, data, wrong, word):
    with pytest.raises(BadValue, match=word):
        heat_map(probe, data.images[:4], **wrong)


def test_names_and_numbers_mean_the_same(tuned, data):
    names = [CLASSES[i] for i in LABELS]
    assert (heat_map(tuned, data, names) == heat_map(tuned, data, LABELS)).all()
    assert (heat_map(tuned, data, batch_size=5) == heat_map(tuned, data)).all()
    assert heat_map(tuned, data.images[:0]).shape[0] == 0


def test_heat_is_seen_in_grey_print_too():
    grey = np.full((1, 101, 3), 128, np.uint8)
    shown = overlay(grey, np.linspace(0, 1, 101)[None])
    light = shown @ [0.299, 0.587, 0.114]
    assert (np.diff(light[0]) > -2).all() and light[0, -1] - light[0, 0] > 60
