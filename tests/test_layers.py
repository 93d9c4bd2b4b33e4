"""Lesson 14: copying and freezing layers, the dial, forgetting, CKA, and the record."""

import copy

import numpy as np
import pytest

from transfer_course.engine.errors import BadValue
from transfer_course.insight.layers import (
    activations,
    copy_layers,
    l2_sp,
    linear_cka,
    open_only,
    shuffle_blocks,
    shuffle_labels,
    torch,
    transfer_gap,
    travelled,
    tune,
)
from transfer_course.practice import layers_study as study
from transfer_course.practice.letters import as_input
from transfer_course.vision.evaluate import paired_interval
from transfer_course.vision.freezing import assert_frozen, moved, snapshot
from transfer_course.vision.glyphs import families
from transfer_course.vision.networks import conv_classifier, copy_torch_to_keras


def small(framework="torch", seed=0, classes=4):
    """A tiny twin of the lesson's network, for images of 8 pixels."""
    return conv_classifier(framework, classes, 8, (3, 4), 5, seed=seed)


@pytest.fixture
def batch():
    """Twelve images (12, 3, 8, 8) and their labels."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 3, 8, 8)).astype(np.float32)
    return torch.from_numpy(images), torch.arange(12) % 4


def hsic_cka(X, Y):
    """CKA from its definition with centring matrices (Kornblith et al. 2019, eq. 3)."""
    H = np.eye(len(X)) - np.full((len(X), len(X)), 1 / len(X))

    def hsic(K, L):
        return np.trace(K @ H @ L @ H) / (len(X) - 1) ** 2

    K, L = X @ X.T, Y @ Y.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


@pytest.mark.parametrize(("n", "d", "e"), [(20, 3, 3), (15, 40, 7), (60, 2, 30)])
def test_cka_is_its_definition(n, d, e):
    rng = np.random.default_rng(n)
    X, Y = rng.normal(2, 1, (n, d)), rng.normal(-3, 2, (n, e))
    Y[:, 0] += X[:, 0]
    assert linear_cka(X, Y) == pytest.approx(hsic_cka(X, Y), rel=1e-6)
    assert linear_cka(X, Y) == pytest.approx(linear_cka(Y, X), rel=1e-9)
    assert 0 < linear_cka(X, Y) < 1
    assert linear_cka(X.astype(np.float32), Y) == pytest.approx(
        hsic_cka(X, Y), rel=1e-4
    )


def test_cka_ignores_rotation_scale_and_shift_and_nothing_more():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, 5)), rng.normal(size=(30, 4))
    Y[:, :2] += X[:, :2]
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert linear_cka(-2 * X @ turn + 7, Y) == pytest.approx(linear_cka(X, Y), rel=1e-9)
    assert linear_cka(X, X[:, ::-1]) == pytest.approx(1)
    assert linear_cka(X @ rng.normal(size=(5, 5)), Y) != pytest.approx(
        linear_cka(X, Y), rel=1e-3
    )
    shuffled = linear_cka(X, Y[rng.permutation(30)])
    assert shuffled < linear_cka(X, Y)


def test_cka_of_something_constant_is_nan():
    with np.errstate(invalid="ignore"):
        assert np.isnan(linear_cka(np.ones((5, 2)), np.eye(5)))


def test_distance_is_relative_to_the_norm():
    before = {"a.weight": np.array([[3.0]]), "a.bias": np.array([4.0])}
    before["b"] = np.ones(4, np.float32)
    after = {"a.weight": np.array([[6.0]]), "a.bias": np.array([8.0])}
    after["b"] = before["b"].copy()
    assert travelled(before, after, ["a", "b"]) == {"a": 1.0, "b": 0.0}


def test_only_the_named_layers_are_copied(batch):
    source, target = small(seed=1), small(seed=2)
    before = snapshot(target)
    names = copy_layers(source, target, ["stage1", "fc1"])
    assert names == ["stage1.conv.weight", "stage1.conv.bias", "fc1.weight", "fc1.bias"]
    assert moved(before, snapshot(target)) == [
        name
        for name in names
        if not np.array_equal(before[name], snapshot(source)[name])
    ]
    assert all(np.array_equal(snapshot(target)[n], snapshot(source)[n]) for n in names)
    kept = snapshot(target)
    with torch.no_grad():  # a copy, not another name for the same tensor
        source.fc1.weight.zero_()
    assert moved(kept, snapshot(target)) == []


def test_running_statistics_are_copied_too():
    source, target = (torch.nn.Sequential(torch.nn.BatchNorm1d(3)) for _ in range(2))
    source.train()(torch.randn(9, 3) + 5)
    assert len(copy_layers(source, target, ["0"])) == 5
    assert moved(snapshot(source), snapshot(target)) == []


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_what_can_not_be_copied_leaves_the_target_as_it_was(framework):
    source, target = small(framework), small(framework, seed=1, classes=7)
    before = snapshot(target)
    for layers in (["stage1", "stage9"], ["stage1", "fc2"]):
        with pytest.raises(BadValue, match="can't be copied"):
            copy_layers(source, target, layers)
    assert moved(before, snapshot(target)) == []


def test_both_frameworks_cut_freeze_and_train_alike(batch):
    from transfer_course.vision.finetune_keras import keras, train_plain

    def twin(network):
        model = small("keras")
        copy_torch_to_keras(network.state_dict(), model)
        return model

    source, ours = small(seed=1), small(seed=2)
    model = twin(ours)
    names = copy_layers(twin(source), model, ["stage1", "stage2"])
    assert len(names) == len(copy_layers(source, ours, ["stage1", "stage2"])) == 4
    open_only(model, ["fc"])
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == sum(
        p.numel() for p in open_only(ours, ["fc"]).parameters() if p.requires_grad
    )
    images, labels = batch
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(ours(images), labels).backward()
        optimizer.step()
    pixels = images.permute(0, 2, 3, 1).numpy()
    how = dict(epochs=5, batch_size=12, shuffle=False)
    train_plain(model, pixels, labels.numpy(), ["fc"], keras.optimizers.SGD(0.1), **how)
    for a, b in zip(twin(ours).get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert_frozen(snapshot(source), snapshot(ours), ["stage1", "stage2"])
    assert np.array_equal(model.get_weights()[0], twin(source).get_weights()[0])


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_no_layer_is_open_if_none_is_named(framework):
    network = open_only(small(framework), [])
    if framework == "torch":
        assert not any(p.requires_grad for p in network.parameters())
    else:
        assert not network.trainable_variables


def test_tuning_makes_the_steps_of_plain_adam(batch):
    network, plain = small(seed=3), small(seed=3)
    tune(network, *batch, steps=7, lr=0.01, seed=5, batch_size=5)
    optimizer, rng = (
        torch.optim.Adam(plain.parameters(), 0.01),
        np.random.default_rng(5),
    )
    steps = 0
    while steps < 7:
        for rows in torch.from_numpy(rng.permutation(12)).split(5):
            if steps == 7:
                break
            optimizer.zero_grad()
            logits = plain(batch[0][rows])
            torch.nn.functional.cross_entropy(logits, batch[1][rows]).backward()
            optimizer.step()
            steps += 1
    assert moved(snapshot(network), snapshot(plain)) == []
    assert not network.training


def test_l2_sp_is_the_squared_distance_without_the_head(batch):
    network = small(seed=1)
    penalty = l2_sp(network, 0.3)
    assert penalty(network).item() == 0
    start = snapshot(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    now = snapshot(network)
    body = [name for name in start if not name.startswith("fc2")]
    wanted = 0.3 * sum(((now[n] - start[n]) ** 2).sum() for n in body)
    value = penalty(network)
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    value.backward()
    gradient = network.fc1.weight.grad.numpy()
    difference = now["fc1.weight"] - start["fc1.weight"]
    np.testing.assert_allclose(gradient, 0.6 * difference, rtol=1e-4)
    assert network.fc2.weight.grad is None


def test_l2_sp_keeps_the_weights_near(batch):
    start, ends = small(seed=1), {}
    for strength in (0, 0.1, 10):
        network = copy.deepcopy(start)
        penalty = l2_sp(network, strength)
        tune(network, *batch, steps=60, lr=0.01, penalty=penalty)
        ends[strength] = travelled(snapshot(start), snapshot(network), ["fc1"])["fc1"]
    assert ends[0] > 2 * ends[0.1] > 2 * ends[10]


def test_the_gap_has_the_sign_of_transfer_minus_scratch():
    rng = np.random.default_rng(0)
    better, worse = rng.random((4, 60)) < 0.9, rng.random((4, 60)) < 0.4
    groups = np.arange(60) // 2
    gap = transfer_gap(better, worse, groups)
    assert tuple(gap) == tuple(paired_interval(better, worse, groups))
    assert gap.low > 0 > transfer_gap(worse, better, groups).high


def test_a_share_of_the_labels_is_permuted():
    labels = np.arange(400) % 10
    for share in (0, 0.25, 1):
        spoilt = shuffle_labels(labels, share, 0)
        assert sorted(spoilt) == sorted(labels)
        changed = (spoilt != labels).mean()  # a tenth of them get their own label back
        assert changed == pytest.approx(0.9 * share, abs=0.05) and changed <= share
    assert np.array_equal(labels, np.arange(400) % 10)
    assert np.array_equal(
        shuffle_labels(labels, 0.5, 3), shuffle_labels(labels, 0.5, 3)
    )
    with pytest.raises(BadValue, match="from 0 to 1"):
        shuffle_labels(labels, 50, 0)


def test_blocks_move_as_wholes_and_alike_in_all_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    for side in (1, 2):
        mixed = shuffle_blocks(images, side, seed=1)
        places = np.arange(24).reshape(1, 4, 6, 1)
        order = shuffle_blocks(places, side, seed=1)[0, ..., 0]
        assert np.array_equal(mixed, images.reshape(3, 24, 3)[:, order])
        assert sorted(order.ravel()) == list(range(24)) and mixed.dtype == np.uint8
    orders = {shuffle_blocks(places, 1, seed).tobytes() for seed in range(4)}
    assert len(orders) == 4, "the seed decides the order"
    block = order[:2, :2] - order[0, 0]
    assert block.tolist() == [[0, 1], [6, 7]]
    square = images[:, :, :4]
    assert np.array_equal(shuffle_blocks(square, 4, 0), square)
    for side in (0, 3):
        with pytest.raises(BadValue, match="divides 4 and 6"):
            shuffle_blocks(images, side, 0)


def test_activations_are_those_of_the_layers_in_both_frameworks(batch):
    network, model = small(seed=1), small("keras")
    copy_torch_to_keras(network.state_dict(), model)
    images = batch[0]
    ours = activations(network, ["stage1", "relu"], images)
    with torch.no_grad():
        by_hand = network.stage1(images).flatten(1).numpy()
    assert np.array_equal(ours["stage1"], by_hand)
    assert ours["relu"].shape == (12, 5) and (ours["relu"] >= 0).all()
    assert not any(m._forward_hooks for m in network.modules()), "hooks are left"
    pixels = images.permute(0, 2, 3, 1).numpy()
    theirs = activations(model, ["stage1_halve", "fc1"], pixels)
    np.testing.assert_allclose(ours["relu"], theirs["fc1"], rtol=1e-4, atol=1e-5)
    alike = linear_cka(ours["stage1"], theirs["stage1_halve"])
    assert alike == pytest.approx(1, abs=1e-5)


def test_halves_and_fonts_do_not_overlap():
    data, fonts = study.stage()
    family = families(data)[:: len(study.LETTERS)]
    sets = [set(family[numbers]) for numbers in fonts.values()]
    assert not (sets[0] | sets[2]) & (sets[1] | sets[3])
    assert len(sets[1]) == len(fonts["test"])
    for seed in study.SEEDS:
        first, second = study.letter_halves(seed)
        assert not set(first) & set(second) and len(first) == len(second) == study.HALF
        same = study.drawn_fonts(seed)[-study.SOURCE_FONTS :]
        assert not set(same) & set(study.drawn_fonts(seed)[: max(study.BUDGETS)])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_running_the_frozen_part_once_changes_nothing(n):
    letters = study.letter_halves(10)[0]
    train = study.tensors(*study.some_letters(letters, study.drawn_fonts(10)[:2]))
    slow, fast = (study.small_network(seed=1) for _ in range(2))
    open_only(slow, (*study.LAYERS, "fc2")[n:])
    tune(slow, *train, steps=30 if n == 4 else 3)
    study.tune_rest(fast, n, *train, 3)
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_frozen(
        snapshot(study.small_network(seed=1)), snapshot(fast), study.LAYERS[:n]
    )


def test_a_frozen_body_forgets_nothing():
    source, other = study.small_network(seed=1), study.small_network(seed=2)
    copy_layers(source, other, study.LAYERS)
    images = as_input(study.some_letters([0, 1], [0])[0])
    both = study.with_head(other, source)
    assert torch.equal(both.eval()(images), source.eval()(images))
    assert not torch.equal(other.eval()(images), source(images))


def test_a_shift_changes_what_it_says():
    images = np.full((4, 28, 28, 3), 100, np.uint8)
    labels = np.arange(4)
    for shift in study.SHIFTS:
        new, names = study.shifted(shift, 3)(images, labels)
        assert (shift in ("noise", "inverted")) == (not np.array_equal(new, images))
        assert (shift == "permuted") == (not np.array_equal(names, labels))
    assert len(set(names)) == 4


def test_the_pilot_chooses_the_rate_on_families_that_are_not_tested():
    def run(seed, lr, right):
        counts = [9 - right, right], [9, 9]
        return study.LayerRun("surgery", "noise fc1", 3, seed, 0, *counts, {"lr": lr})

    pilot = [run(101, 1, 5), run(101, 2, 6)]
    assert study.best_rates([*pilot, run(10, 1, 9)]) == {"noise fc1": 2}
    table = study.layer_table([run(10, 2, 6)], "surgery", "noise fc1", 3, seeds=(10,))
    assert table == pytest.approx(3 / 9)


def test_a_record_comes_back_as_it_was(tmp_path):
    run = study.LayerRun("cut", "A1B", 3, 10, 1.25, [3, 4], [5, 5], {"moved": {"a": 1}})
    study.store_layers(tmp_path / "layers.json", [run, run._replace(seed=11)])
    assert study.load_layers(tmp_path / "layers.json") == [run, run._replace(seed=11)]
    assert study.load_layers(tmp_path / "none.json") == []


def test_the_committed_record_is_complete():
    runs = study.load_layers()
    per_seed = {s: {r[:3] for r in runs if r.seed == s} for s in study.SEEDS}
    cuts = {f"{d}{n}B{p}" for d in "AB" for n in (1, 2, 3, 4) for p in ("", "+")}
    wanted = {("cut", w, b) for w in {"base"} | cuts for b in study.BUDGETS}
    wanted |= {
        ("dial", f"{s} {w}", 3)
        for s in study.SOURCES
        for w in study.DIAL
        if s != "letters"
    }
    wanted |= {("forget", "before", 0)}
    for budget in study.BUDGETS:
        wanted |= {("forget", w, budget) for w in ("tuned", *study.STRENGTHS)}
        wanted |= {("forget", f"{w} target", budget) for w in study.STRENGTHS}
    wanted |= {("probe", w, study.DIGIT_LABELS) for w in study.PROBE_WAYS}
    wanted |= {("surgery", f"{s} {w}", 3) for s in study.SHIFTS for w in study.SURGERY}
    assert all(found == wanted for found in per_seed.values())
    assert sum(r.seed in study.SEEDS for r in runs) == len(wanted) * len(study.SEEDS)
    assert all(
        0 <= a <= b for run in runs for a, b in zip(run.right, run.images, strict=True)
    )
