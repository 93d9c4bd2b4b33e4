"""Copies that thumbnails alone miss, and what is made of them."""

import numpy as np
import pytest
from PIL import Image

from transfer_course.engine.errors import BadValue
from transfer_course.practice.near_copies import (
    confirmed,
    copies_listed,
    is_copy,
    joined,
    rejoined,
    with_and_without,
)
from transfer_course.vision.images import ImageDataset


def scene(i, side=64):
    """A smooth picture with fine structure."""
    rng = np.random.default_rng(i)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return (
        (large + rng.integers(-25, 26, (side, side, 1))).clip(0, 255).astype(np.uint8)
    )


def stamped(image):
    """With a black box in the corner, so large that thumbnails differ."""
    image = image.copy()
    image[2:10, 2:44] = 0
    return image


@pytest.fixture
def stage():
    """Twelve scenes and stamped copies of the first four, with features to match."""
    images = [scene(i) for i in range(12)]
    images += [stamped(images[i]) for i in range(4)]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 40))
    features = np.concatenate([features, features[:4] + 0.1 * rng.normal(size=(4, 40))])
    names = [f"{i}.jpg" for i in range(12)] + [f"{i} s.jpg" for i in range(4)]
    labels = np.arange(16) % 2
    return ImageDataset(np.stack(images), labels, ["a", "b"], names=names), features


def test_features_confirm_what_thumbnails_only_suspect(stage):
    data, features = stage
    found = confirmed(data, features)
    assert [pair[:2] for pair in found.pairs] == [(i, 12 + i) for i in range(4)]
    assert found.groups[12:].tolist() == [0, 1, 2, 3]
    assert sorted(set(found.groups.tolist())) == list(range(12))
    # features that do not agree take nothing away from what thumbnails are sure of
    other = np.random.default_rng(9).normal(size=features.shape)
    sure = [p[:2] for p in found.pairs if p[2] >= 0.95]
    assert [p[:2] for p in confirmed(data, other).pairs] == sure
    # and equal features join nothing that does not look alike
    same = np.tile(features[:1], (16, 1)) + 1e-3 * other
    pairs = confirmed(data, same).pairs
    assert {p[:2] for p in pairs} <= {(i, 12 + i) for i in range(4)}
    with pytest.raises(BadValue, match="16 images and 3 rows"):
        confirmed(data, features[:3])
    with pytest.raises(BadValue, match="expected finite numbers"):
        confirmed(data, np.full((16, 4), np.nan))


def test_the_rule():
    assert is_copy([0.96, 0.6, 0.6, 0.4], [0.0, 0.85, 0.7, 0.99]).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_copies_join_groups_and_come_back_from_a_run(stage):
    data, features = stage
    data.copies = np.array([f"c{i}" for i in range(16)])
    data.own_groups = np.array([f"patient {i % 12 // 2}" for i in range(16)])
    data.groups = data.own_groups
    new = joined(data, confirmed(data, features))
    assert len(set(new.groups)) == 6 and len(set(new.copies)) == 12
    assert (data.copies == [f"c{i}" for i in range(16)]).all()  # nothing else changed
    listing = copies_listed(new, most=2)
    assert (listing["images"], listing["count"], len(listing["groups"])) == (8, 4, 2)
    assert listing["groups"][0] == ["0.jpg", "0 s.jpg"]
    joint = [["c0", "c12"], ["c1", "c13"], ["c2", "c14"], ["c3", "c15"]]
    back = rejoined(data, {"joined": joint})
    for a, b in ((back.copies, new.copies), (back.groups, new.groups)):
        codes = [np.unique(x, return_inverse=True)[1] for x in (a, b)]
        assert len(set(zip(*codes, strict=True))) == len(set(codes[0]))
    assert rejoined(data, {}) is data and rejoined(data, None) is data
    assert copies_listed(data.subset([]))["count"] == 0


def test_ignored_copies_flatter_the_score():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)  # nothing to learn
    features = rng.normal(size=(40, 300))
    owner = np.tile(np.arange(40), 3)
    twice = np.concatenate(
        [features + 0.05 * rng.normal(size=(40, 300)) for _ in range(3)]
    )
    effect = with_and_without(twice, np.tile(labels, 3), None, owner, seeds=range(2))
    assert effect.difference.low > 0.2 and effect.ignored.mean > 0.9
    assert "ignoring copies changes it by +" in effect.told()
    none = with_and_without(features, labels, None, np.arange(40), seeds=[0])
    assert none.difference.mean == 0
