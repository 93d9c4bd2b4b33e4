"""Lesson 20: distances between domains, against definitions and references."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import kendalltau

from transfer_course.engine.errors import BadValue
from transfer_course.engine.frameworks import load_keras, load_torch
from transfer_course.insight import discrepancy as d
from transfer_course.insight.domain_pairs import DropCurve
from transfer_course.practice import discrepancy_study as study


@pytest.fixture
def pair():
    """Two samples of unequal size, float32."""
    rng = np.random.default_rng(0)
    source = rng.normal(size=(14, 5)).astype("float32")
    return source, rng.normal(0.4, 1.5, (23, 5)).astype("float32")


def gaussians(x, y, width):
    """The kernel of two images, from its definition."""
    squared = float(np.square(np.asarray(x, float) - y).sum())
    return np.mean([np.exp(-squared / (w * width)) for w in d.WIDTHS])


def within(sample, width, diagonal):
    """Mean kernel of the pairs within a sample."""
    n = range(len(sample))
    return np.mean(
        [
            gaussians(sample[i], sample[j], width)
            for i in n
            for j in n
            if diagonal or i != j
        ]
    )


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_is_its_definition_for_unequal_sizes(pair, unbiased):
    source, target = pair
    across = np.mean([[gaussians(x, y, 7.0) for y in target] for x in source])
    expected = sum(within(s, 7.0, not unbiased) for s in pair) - 2 * across
    assert np.isclose(d.mmd(*pair, unbiased, 7.0), expected, atol=1e-9)
    assert np.isclose(d.mmd(target, source, unbiased, 7.0), expected, atol=1e-9)


def test_bandwidth_is_the_mean_squared_distance(pair):
    pooled = np.concatenate(pair).astype(float)
    squared = np.square(pooled[:, None] - pooled).sum(2)
    n = len(pooled)
    assert np.isclose(d.bandwidth(*pair), squared.sum() / (n * (n - 1)))


def test_equal_samples(pair):
    source, _ = pair
    assert abs(d.mmd(source, source, unbiased=False)) < 1e-12
    assert d.mmd(source, source) < 0  # half of Σk(s, s') is the diagonal
    assert d.coral(source, source) == 0
    assert abs(d.transport_cost(source, source)) < 1e-12


def test_the_u_statistic_is_unbiased_and_the_v_statistic_is_not():
    rng = np.random.default_rng(1)
    found = {True: [], False: []}
    for _ in range(400):
        samples = rng.normal(size=(10, 3)), rng.normal(size=(25, 3))
        for unbiased, values in found.items():
            values.append(d.mmd(*samples, unbiased, 6.0))
    error = np.std(found[True]) / 20
    assert abs(np.mean(found[True])) < 3 * error
    assert 0.3 < np.mean(np.array(found[True]) < 0) < 0.7
    assert np.min(found[False]) > 0 and np.mean(found[False]) > 10 * error


def test_the_witness_has_the_v_statistic_as_difference_of_means(pair):
    source, target = pair
    means = [d.witness(s, source, target, 5.0).mean() for s in pair]
    assert np.isclose(means[0] - means[1], d.mmd(*pair, False, 5.0))


def test_a_unit_changes_nothing(pair):
    source, target = pair
    assert np.isclose(d.mmd(1000 * source, 1000 * target), d.mmd(*pair), atol=1e-6)
    scaled = d.same_scale(source * [1, 9, 1, 1, 1], target * [1, 9, 1, 1, 1])
    for ours, plain in zip(scaled, d.same_scale(*pair), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6)


def test_coral_is_the_distance_of_the_covariances(pair):
    source, target = pair
    difference = np.cov(source.T) - np.cov(target.T)
    expected = np.linalg.norm(difference, "fro") ** 2 / (4 * 5**2)
    assert np.isclose(d.coral(*pair), expected, rtol=1e-6)
    assert np.isclose(d.coral(source + 9, target), expected, rtol=1e-4)


def v_statistic(source, target):
    """What is used as a loss."""
    return d.mmd(source, target, unbiased=False)


@pytest.mark.parametrize("loss", [d.mmd, v_statistic, d.coral])
def test_both_frameworks_have_the_value_and_the_gradient(pair, loss):
    """Against NumPy's value and against finite differences in float64."""
    source, target = pair
    found = study.loss_gradients(loss, source, target)
    assert set(found) == {"torch", "keras"}
    width = d.bandwidth(source, target)
    step, expected = 1e-5, np.zeros(source.shape)
    for at in np.ndindex(source.shape):
        ends = []
        for sign in (1, -1):
            moved = source.astype(float)
            moved[at] += sign * step
            held = loss is not d.coral
            ends.append(
                d.mmd(moved, target, loss is d.mmd, width)
                if held
                else d.coral(moved, target)
            )
        expected[at] = (ends[0] - ends[1]) / (2 * step)
    for value, gradient in found.values():
        assert np.isclose(value, loss(source, target), atol=1e-5)
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
    np.testing.assert_allclose(found["torch"][1], found["keras"][1], atol=1e-5)


def test_a_graph_with_unknown_batch_size(pair):
    tf = pytest.importorskip("tensorflow")
    assert load_keras().config.backend() == "tensorflow"
    for loss in (d.mmd, d.coral):
        shapes = [tf.TensorSpec([None, 5]), tf.TensorSpec([None, 5])]
        graph = tf.function(lambda a, b, f=loss: f(a, b), input_signature=shapes)
        assert np.isclose(float(graph(*pair)), loss(*pair), atol=1e-5)


def test_tensors_stay_on_the_tape():
    torch = load_torch()
    leaf = torch.zeros(4, 2, requires_grad=True)
    assert d.mmd(leaf, torch.ones(3, 2)).requires_grad
    assert not d.bandwidth(leaf, torch.ones(3, 2)).requires_grad


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 3)), np.zeros((1, 5)), np.zeros(5), np.zeros((2, 2, 5))]
)
def test_samples_that_do_not_fit(pair, wrong):
    for distance in (d.mmd, d.coral, d.transport_cost, d.a_distance, d.same_scale):
        with pytest.raises(BadValue, match="expected"):
            distance(pair[0], wrong)


def test_a_distance_of_near_and_far_domains():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 300, 4))
    assert abs(d.a_distance(one, other)) < 0.25
    assert d.a_distance(one, other + 9) == 2
    # Always predicting "target" is right for 90 % here, and is still a guess.
    assert abs(d.a_distance(one[:30], other)) < 0.35


def test_a_distance_is_cross_validated_also_with_many_features():
    """Trained and tested on the same images it would be 2 here."""
    rng = np.random.default_rng(0)
    values = [d.a_distance(*rng.normal(size=(2, 30, 200)), seed=s) for s in range(8)]
    assert abs(np.mean(values)) < 0.4


def test_a_distance_keeps_identities_together():
    """Each identity has a second image in the same domain that gives it away."""
    rng = np.random.default_rng(0)
    identities = rng.normal(0, 1, (2, 30, 60))
    source, target = (np.repeat(x, 2, axis=0) for x in identities)
    source, target = (x + rng.normal(0, 0.01, x.shape) for x in (source, target))
    groups = np.repeat(np.arange(30), 2), np.repeat(np.arange(30, 60), 2)
    assert d.a_distance(source, target) > 0.8
    assert d.a_distance(source, target, groups) < 0.5
    with pytest.raises(BadValue, match="at least 5"):
        d.a_distance(source, target, (groups[0] % 3, groups[1]))
    with pytest.raises(BadValue, match="one per image"):
        d.a_distance(source, target, (groups[0][1:], groups[1]))


def test_transport_equals_pot(tmp_path):
    """In a process of its own, because POT imports every framework that it finds."""
    code = """
import numpy as np, ot
from transfer_course.insight.discrepancy import transport_cost, transport_plan
rng = np.random.default_rng(0)
for n, m in ((12, 12), (12, 17), (30, 5)):
    a, b = rng.normal(size=(n, 3)), rng.normal(1, 2, (m, 3))
    cost = ot.dist(a, b)
    assert np.isclose(transport_cost(a, b), ot.emd2([], [], cost), rtol=1e-9)
    plan = transport_plan(cost)
    assert np.allclose(plan.sum(1), 1 / n) and np.allclose(plan.sum(0), 1 / m)
    assert plan.min() > -1e-12
"""
    off = {f"POT_BACKEND_DISABLE_{n}": "1" for n in ("PYTORCH", "TENSORFLOW", "JAX")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | off,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_transport_in_one_dimension_sorts():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 1))
    expected = np.mean((np.sort(a, axis=0) - np.sort(b, axis=0)) ** 2)
    assert np.isclose(d.transport_cost(a, b), expected)
    assert np.isclose(d.transport_cost(a, a + 3), 9)


def test_class_conditional_sees_exchanged_labels():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    source = rng.normal(size=(80, 3)) + 3 * labels[:, None]
    target = rng.normal(size=(80, 3)) + 3 * labels[:, None]
    right = d.class_conditional(d.mmd, source, target, labels, labels)
    exchanged = d.class_conditional(d.mmd, source, target, labels, 1 - labels)
    assert abs(right) < 0.05 and exchanged > 0.5
    # A class that a domain has only once is left out.
    few = np.where(np.arange(80) == 0, 2, labels)
    assert np.isfinite(d.class_conditional(d.mmd, source, target, few, few))
    with pytest.raises(BadValue, match="No class"):
        d.class_conditional(d.mmd, source, target, labels, labels + 5)


def test_agreement_ignores_the_diagonal():
    rng = np.random.default_rng(0)
    distance, drop = rng.normal(size=(2, 6, 6))
    off = ~np.eye(6, dtype=bool)
    expected = kendalltau(distance[off], drop[off]).statistic
    np.fill_diagonal(distance, np.nan)
    assert np.isclose(d.agreement(distance, drop), expected)
    assert np.isclose(d.agreement(distance, -drop), -expected)
    for wrong in (drop[:5], drop[:2, :2], drop[0]):
        with pytest.raises(BadValue, match="same three or more"):
            d.agreement(wrong, drop)


def test_the_interval_resamples_domains():
    distance, drop = study.world(8, 0.6, np.random.default_rng(0))
    domains = d.agreement_interval(distance, drop, level=0.95, draws=200)
    low, high = study.over_pairs(distance, drop, level=0.95, draws=200)
    assert domains.low <= domains.mean <= domains.high
    assert domains.mean == d.agreement(distance, drop)
    assert domains.high - domains.low > 1.2 * (high - low)
    assert domains == d.agreement_interval(distance, drop, level=0.95, draws=200)
    same = d.agreement_interval(distance, drop, minus=distance, draws=50)
    assert tuple(same) == (0, 0, 0)


def test_the_interval_covers():
    """Over domains at least as often as it says; over pairs far less often."""
    found = study.coverage(8, 0.6, worlds=40, draws=80)
    assert found["resampled"] > 0.88
    assert found["pairs"] < found["resampled"]


def test_a_curve_never_falls_and_says_where_it_ends():
    distance, drop = study.world(9, 0.6, np.random.default_rng(0))
    curve = d.drop_curve(distance, drop)
    assert isinstance(curve, DropCurve) and (np.diff(curve.drop) >= 0).all()
    middle = d.expected_drop(float(np.median(curve.distance)), curve)
    assert middle.low < middle.drop < middle.high and "90%" in middle.why
    for outside in (curve.distance[0] - 0.01, curve.distance[-1] + 0.01, np.nan):
        nothing = d.expected_drop(outside, curve)
        assert nothing[:3] == (None, None, None) and "outside" in nothing.why
    with pytest.raises(BadValue, match="five or more"):
        d.drop_curve(distance[:4, :4], drop[:4, :4])


def test_the_record_is_complete():
    record = study.load_record()
    ran = [(r.stage, r.seed) for r in record["runs"]]
    assert sorted(ran) == sorted((t, s) for t in study.STAGES for s in study.SEEDS)
    for stage in study.STAGES:
        names = list(study.domains(stage))
        assert record["domains"][stage] == names and len(names) == 12
        of = study.table(record, stage)
        assert np.allclose(of.drop.diagonal(), 0)
        assert set(of.distances) == {*study.DISTANCES, *study.PER_CLASS}
        for name in study.DISTANCES:
            assert np.allclose(of.distances[name], of.distances[name].T)
        assert (of.distances["a_distance"] <= 2).all()
    assert [r["domains"] for r in record["coverage"]] == list(study.SIZES)
    assert len(record["power"]) == 4 and set(record["new_pair"]["drop"])


def test_a_record_without_a_seed_is_refused(tmp_path):
    record = study.load_record()
    record["runs"] = record["runs"][1:]
    with pytest.raises(BadValue, match="make study"):
        study.table(record, study.STAGES and next(iter(study.STAGES)))
    assert study.load_record(tmp_path / "none.json") == {}


def test_the_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "record.json"
    record = study.load_record()
    study.store_record(record, path)
    again = study.load_record(path)
    assert json.dumps(again["domains"]) == json.dumps(record["domains"])
    for a, b in zip(record["runs"], again["runs"], strict=True):
        assert a[:3] == b[:3] and np.array_equal(a.accuracy, b.accuracy)
        assert np.array_equal(a.distances["mmd"], b.distances["mmd"])


@pytest.mark.parametrize("stage", study.STAGES)
def test_no_identity_is_trained_on_and_tested(stage):
    dealt = study.halves(stage, 3)
    groups = {n: np.asarray(data.groups) for n, data in study.domains(stage).items()}
    train = {g for n, rows in dealt.items() for g in groups[n][rows[0]]}
    test = {g for n, rows in dealt.items() for g in groups[n][rows[1]]}
    assert not train & test
    sizes = [len(r) for rows in dealt.values() for r in rows]
    assert 0.8 * study.STAGES[stage] < min(sizes) <= max(sizes) == study.STAGES[stage]


def test_turned_digits_are_near_and_all_wrong():
    both = study.turned_digits((6, 9))
    near = d.mmd(*d.same_scale(both["train"].Z, both["turned"].Z))
    assert abs(near) < 0.02
    assert not set(both["train"].groups) & set(both["turned"].groups)
