"""Scores against scikit-learn; intervals against brute force and simulated truth."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from transfer_course.engine.errors import BadValue
from transfer_course.practice.coverage import (
    DESIGNS,
    QUESTIONS,
    Design,
    coverage,
    load_coverage,
)
from transfer_course.vision.evaluate import (
    Interval,
    by_model,
    confusion_matrix,
    interval,
    majority,
    paired_interval,
    scores,
    unpaired_interval,
)

quick = settings(max_examples=40, deadline=None)
pairs = st.integers(1, 6).flatmap(
    lambda c: st.lists(
        st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=30
    )
)


@pytest.mark.filterwarnings("ignore:A single label")
@quick
@given(pairs, st.integers(0, 3))
def test_scores_are_scikit_learns(rows, unused):
    y, p = map(np.array, zip(*rows, strict=True))
    c = max(y.max(), p.max()) + 1 + unused  # classes that occur nowhere must not matter
    how = dict(average="macro", labels=np.unique(y), zero_division=0)
    want = dict(
        accuracy=metrics.accuracy_score(y, p),
        balanced_accuracy=metrics.recall_score(y, p, **how),
        precision=metrics.precision_score(y, p, **how),
        recall=metrics.recall_score(y, p, **how),
        f1=metrics.f1_score(y, p, **how),
    )
    got = scores(y, p, c)
    assert got == pytest.approx(want, abs=1e-12) and list(got) == list(want)
    assert scores(y, p) == pytest.approx(want, abs=1e-12)
    np.testing.assert_array_equal(
        confusion_matrix(y, p, c), metrics.confusion_matrix(y, p, labels=range(c))
    )


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    assert scores(y, p)["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(y, p)
    )


def test_one_class_and_lists():
    assert scores([0, 0], [0, 0]) == dict.fromkeys(
        ["accuracy", "balanced_accuracy", "precision", "recall", "f1"], 1.0
    )
    assert set(scores([1, 1], [0, 0]).values()) == {0.0}
    assert all(type(v) is float for v in scores([0, 1], [1, 1]).values())


@pytest.mark.parametrize(
    "y, p, n",
    [
        ([0, 1], [0], 2),
        ([0, 2], [0, 1], 2),
        ([0, -1], [0, 0], 2),
        ([0, 1], [0, -1], 2),
        ([0.0], [0], 2),
    ]
    + [([[0]], [[0]], 2), (["a"], ["a"], 2), ([0, np.nan], [0, 1], 2)],
)
def test_confusion_refuses(y, p, n):
    with pytest.raises(BadValue, match="expected"):
        confusion_matrix(y, p, n)


def test_scores_of_nothing():
    with pytest.raises(BadValue, match="no images"):
        scores(np.array([], int), np.array([], int))


def test_majority():
    assert majority([3, 1, 3, -1, -1, -1], 4).tolist() == [3, 3, 3, 3]
    assert majority([1, 0], 1).tolist() == [0]  # a tie goes to the first
    assert majority([1], 0).shape == (0,)
    with pytest.raises(BadValue):
        majority([-1], 2)


tables = st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(0, 10**6))


@quick
@given(tables)
@example((3, 3, 118))  # identities with one mean, whose cells differ
def test_interval_properties(shape):
    s, n, seed = shape
    rng = np.random.default_rng(seed)
    x, groups = rng.random((s, n)) < rng.random(), rng.integers(0, 4, n)
    wide, narrow = interval(x, groups), interval(x, groups, level=0.8)
    assert 0 <= wide.low <= narrow.low <= wide.mean <= narrow.high <= wide.high <= 1
    assert wide.mean == pytest.approx(x.mean())
    assert wide == interval(x, groups) and all(type(v) is float for v in wide)
    names = np.array(list("abcd"))[groups]
    assert interval(x, names) == pytest.approx(
        wide
    )  # only which items belong together matters
    mirrored = interval(~x, groups)
    assert mirrored == pytest.approx((1 - wide.mean, 1 - wide.high, 1 - wide.low))
    losses = interval(5 * x - 1.0, groups)
    assert (
        losses.mean == pytest.approx(5 * wide.mean - 1)
        and losses.low <= losses.mean <= losses.high
    )


def test_shape_and_text():
    x = np.random.default_rng(0).random(50) < 0.6
    assert interval(x) == interval(x[None])
    assert (
        isinstance(interval(x), Interval)
        and str(Interval(0.5, 0.25, 0.75)) == "0.50 (0.25 to 0.75)"
    )
    mean, low, high = interval(
        x.tolist(), groups=[None if i % 2 else f"{i // 4}" for i in range(50)]
    )
    assert low < mean < high


def test_one_model_is_the_textbooks():
    """Losses get Student's t over identities, right and wrong get Wilson's interval."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(2, 40)
    half = stats.t.ppf(0.975, 39) * losses.std(ddof=1) / 40**0.5
    assert interval(losses, level=0.95) == pytest.approx(
        (losses.mean(), losses.mean() - half, losses.mean() + half)
    )
    by_identity = np.repeat(losses, 3) + np.tile([-0.1, 0, 0.1], 40)
    assert interval(
        by_identity, np.repeat(np.arange(40), 3), level=0.95
    ) == pytest.approx(interval(losses, level=0.95))
    for right in (200, 388, 30):
        theirs = stats.binomtest(right, 400).proportion_ci(0.95, "wilson")
        ours = interval(np.arange(400) < right, level=0.95)
        assert ours == pytest.approx((right / 400, *theirs), abs=1e-3)


def test_unpaired():
    """0.97 and 0.92 on 400 images each: their intervals overlap, and they differ."""
    a, b = np.arange(400) < 388, np.arange(400) < 368
    d, back = unpaired_interval(a, b), unpaired_interval(b, a)
    assert interval(a).low < interval(b).high and d.low > 0
    assert d == pytest.approx(
        (0.05, 0.007, 0.095), abs=0.003
    ) and back == pytest.approx((-d.mean, -d.high, -d.low))
    assert unpaired_interval([1.0, 2, 3], [5.0, 7, 9, 8]).mean == pytest.approx(
        2 - 7.25
    )
    assert unpaired_interval([1, 0, 1], b, groups_a=list("aaa")).note
    with pytest.raises(BadValue, match="groups"):
        unpaired_interval(a, b, groups_b=[1])


def test_many_rows_are_variance_components():
    """With many models the prior no longer matters.

    The classical estimate comes out.
    """
    from transfer_course.practice.coverage import components

    rng, groups = np.random.default_rng(2), np.arange(80)
    x = (
        rng.standard_normal(80)
        + 0.3 * rng.standard_normal((60, 1))
        + rng.standard_normal((60, 80))
    )
    _, low, high = interval(x, groups, level=0.95)
    assert (low, high) == pytest.approx(components(x, groups, 0.95), abs=0.01)


def test_seed_spread_widens():
    """Resampling the items alone would not see that the seeds disagree."""
    rng = np.random.default_rng(0)
    x = rng.random((5, 400)) < np.array([[0.3], [0.4], [0.5], [0.6], [0.7]])
    calm = rng.random((5, 400)) < 0.5
    width = [i.high - i.low for i in (interval(x), interval(calm))]
    assert width[0] > 3 * width[1]


def test_unanimous_is_not_certain():
    few, many = interval(np.ones(10), level=0.95), interval(np.ones(1000), level=0.95)
    assert (
        few.low == pytest.approx(0.025 ** (1 / 10))
        and few.high == 1
        and many.low > 0.99
    )
    assert (
        interval(np.ones(100), groups=np.arange(100) // 10, level=0.95) == few
    )  # ten identities, not a hundred
    assert interval(np.zeros(10), level=0.95) == (0, 0, pytest.approx(1 - few.low))
    assert (
        paired_interval(np.ones(3), np.zeros(3)).low < 0.2
    )  # three identities, however clear, are three
    same = paired_interval(
        [1, 0, 1, 1], [1, 0, 1, 1], level=0.95
    )  # the same answers so far, not the same methods
    assert same.mean == 0 and same.low == -same.high == pytest.approx(0.025**0.25 - 1)
    assert interval([2.0, 2.0]) == (2, 2, 2)
    halves = interval(
        [[1, 0, 1, 0], [0, 1, 1, 0]], groups=list("aabb")
    )  # every identity has the mean 0.5
    assert halves.mean == 0.5 and halves.low < 0.1 and halves.high > 0.9


def test_what_supports_no_interval_says_so():
    lone = interval([1, 0, 1], groups=["a", "a", "a"])
    assert (
        lone == (pytest.approx(2 / 3), 0, 1)
        and "one identity" in lone.note
        and "no interval" in str(lone)
    )
    fold = np.arange(40) % 2
    two = np.where(fold == np.arange(2)[:, None], np.arange(40) % 3 > 0, np.nan)
    found = interval(two)
    assert (
        found[1:] == (0, 1)
        and "two folds" in found.note
        and "no interval" in str(found)
    )
    assert paired_interval(two, 1 - two).note and paired_interval(two, 1 - two)[1:] == (
        -1,
        1,
    )
    three = np.where(
        np.arange(40) % 3 == np.arange(3)[:, None], np.arange(40) % 5 > 0, np.nan
    )
    assert not interval(three).note and interval(three).low > 0.5
    alone = np.where(
        np.eye(40) > 0, np.arange(40) % 5 > 0, np.nan
    )  # leave one out: a model per item
    assert interval(alone) == interval(np.nanmax(alone, 0))


def test_rows_of_repeated_folds():
    table, folds = (
        np.array([[1, 0, 1, 1], [0, 0, 1, 1]]),
        np.array([[0, 0, 1, 1], [1, 0, 1, 0]]),
    )
    rows = by_model(table, folds)
    n = np.nan
    np.testing.assert_array_equal(
        rows, [[1, 0, n, n], [n, n, 1, 1], [n, 0, n, 1], [0, n, 1, n]]
    )
    with pytest.raises(BadValue, match="fold of every entry"):
        by_model(table, folds[:, :2])


def test_paired():
    rng = np.random.default_rng(1)
    easy, groups = np.repeat(rng.random(100), 3) * 0.9, np.repeat(np.arange(100), 3)
    a, b = rng.random((10, 300)) < easy + 0.08, rng.random((10, 300)) < easy
    d, back = paired_interval(a, b, groups), paired_interval(b, a, groups)
    assert (
        d.low > 0
        and d.mean == pytest.approx(a.mean() - b.mean())
        and back.mean == -d.mean
        and back.high < 0
    )
    apart = interval(a, groups)
    assert d.high - d.low < 0.7 * (apart.high - apart.low)
    assert paired_interval([2.5, 3.0, 1.0], [1.0, 1.0, 1.5]).mean == pytest.approx(1)


bad = [
    [],
    [[]],
    np.zeros((2, 2, 2)),
    [1, np.nan],
    [np.inf, 1],
    ["a"],
    [[1, 0], [1]],
    None,
    1.0,
]


@pytest.mark.parametrize("x", bad, ids=repr)
def test_interval_refuses(x):
    for call in (lambda: interval(x), lambda: paired_interval(x, x)):
        with pytest.raises(BadValue):
            call()


@pytest.mark.parametrize(
    "how",
    [
        dict(groups=[1]),
        dict(groups=[[1], [2]]),
        dict(level=95),
        dict(level=0),
        dict(level=1),
    ],
)
def test_interval_refuses_settings(how):
    with pytest.raises(BadValue, match="expected"):
        interval([1, 0], **how)
    with pytest.raises(BadValue, match="expected"):
        paired_interval([1, 0], [0, 1], **how)


def test_what_a_seed_did_not_test_is_left_out():
    rng = np.random.default_rng(0)
    x, groups = (rng.random((4, 90)) < 0.7).astype(float), np.arange(90) // 3
    x[rng.random((4, 30))[:, groups] < 0.5] = np.nan
    x, groups = x[:, (there := ~np.isnan(x).all(0))], groups[there]
    mean, low, high = interval(x, groups)
    assert mean == pytest.approx(np.nanmean(x)) and 0 <= low < mean < high <= 1
    assert paired_interval(x, x, groups).mean == 0
    with pytest.raises(BadValue, match="same items"):
        paired_interval(x, np.nan_to_num(x), groups)
    with pytest.raises(BadValue, match="nothing but NaN"):
        interval([[1, np.nan], [0, np.nan]])


def test_a_bootstrap_of_identities_gives_the_same_ends():
    """What lesson 08 has the learner compute by hand is what `paired_interval` says."""
    rng = np.random.default_rng(3)
    easy = np.repeat(rng.beta(0.9, 0.6, 300) * 0.9, 4)
    groups = np.repeat(np.arange(300), 4)
    a, b = rng.random(1200) < easy + 0.06, rng.random(1200) < easy
    each = (a * 1.0 - b).reshape(300, 4).mean(1)
    means = each[rng.integers(0, 300, (4000, 300))].mean(1)
    mean, low, high = paired_interval(a, b, groups, level=0.95)
    near = 0.05 * (high - low)
    assert np.percentile(means, [2.5, 97.5]) == pytest.approx((low, high), abs=near)


def test_paired_refuses_other_shapes():
    with pytest.raises(BadValue, match="same items"):
        paired_interval([1, 0], [1, 0, 1])


ROWS = [
    (("one", 1, 60), "score"),
    (("full", 2, 120), "score"),
    (("full", 5, 120), "difference"),
    (("folds", 5, 120), "no difference"),
    (("repeats", 5, 60), "independent"),
    (("splits", 5, 120), "difference"),
    (("full", 5, 60), "unpaired"),
]


@pytest.mark.parametrize("design, question", ROWS, ids=str)
def test_coverage(design, question):
    """The short form of `study_coverage`.

    400 worlds, so a share of 0.95 is found between 0.91 and 0.985.
    """
    rows = coverage(Design(*design), question, worlds=400, seed=1, rivals=0)
    assert [r["level"] for r in rows] == [0.95, 0.99]
    assert 0.91 <= rows[0]["ours"]["coverage"] <= 0.985
    assert rows[1]["ours"]["coverage"] >= 0.97


def test_coverage_finds_what_does_not_cover():
    """The check above can fail.

    An interval that forgets the models is found out, and so is one that counts things
    twice.
    """
    full = coverage(
        Design("full", 5, 120), "difference", worlds=200, seed=1, rivals=200
    )[0]
    assert full["identities only"]["coverage"] < 0.9
    folds = coverage(
        Design("folds", 5, 120), "difference", worlds=200, seed=1, rivals=200
    )[0]
    assert folds["pigeonhole"]["coverage"] > 0.985


def test_the_stored_table_is_complete_and_true():
    stored = load_coverage()
    wanted = {
        (*d, q, None, level)
        for d in DESIGNS
        for q in QUESTIONS
        for level in (0.95, 0.99)
    }
    keys = ("kind", "seeds", "identities", "question", "seed_sd", "level")
    assert wanted <= {tuple(r[k] for k in keys) for r in stored} and {
        r["worlds"] for r in stored
    } == {2000}
    again = coverage(DESIGNS[1], "score", rivals=0)
    assert (
        again[0]["ours"]
        == next(
            r
            for r in stored
            if tuple(r[k] for k in keys) == (*DESIGNS[1], "score", None, 0.95)
        )["ours"]
    )


def test_fast_and_small():
    rng = np.random.default_rng(0)
    x = rng.random((5, 400)) < 0.6
    interval(x)  # scipy.special is imported once
    start = time.perf_counter()
    interval(x, np.arange(400) // 2)
    assert time.perf_counter() - start < 1
    start = time.perf_counter()
    interval(rng.random((3, 50_000)) < 0.9)
    paired_interval(rng.random(50_000), rng.random(50_000))
    assert time.perf_counter() - start < 5
