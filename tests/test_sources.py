"""The bundled source networks: one network in both frameworks, as good as its table."""

import build_sources
import numpy as np
import pytest

from transfer_course import glyphs, handwriting
from transfer_course.engine.errors import BadValue
from transfer_course.engine.files import assets_folder
from transfer_course.vision.images import ImageDataset
from transfer_course.vision.sources import glyph_source, source_head, source_table

TABLE = {row["source"]: row for row in source_table()}


def test_the_table_names_every_file_and_they_are_small():
    files = list((assets_folder() / "sources").glob("*.safetensors"))
    assert {file.stem for file in files} == set(TABLE) == set(build_sources.SOURCES)
    assert sum(file.stat().st_size for file in files) < 5e6


@pytest.mark.parametrize("name", ["letters", "digits"])
def test_both_frameworks_have_the_same_features(name):
    images = handwriting().images[:40]
    ours, theirs = (glyph_source(name, f) for f in ("torch", "keras"))
    features = ours.features(images)
    np.testing.assert_allclose(theirs.features(images), features, atol=1e-4)
    assert list(ours.stages) == list(theirs.stages)
    assert features.shape == (40, ours.feature_dim) and features.std() > 0.1


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_source_is_as_accurate_on_unseen_families_as_the_table_says(name):
    data, labels, classes = build_sources.chosen(
        name, glyphs(build_sources.SOURCES[name][0])
    )
    train, held_out = build_sources.halves(data)
    assert not set(data.groups[train]) & set(data.groups[held_out])
    test = ImageDataset(build_sources.changed(name, data.images[held_out]))
    weight, bias = source_head(name)
    logits = glyph_source(name).features(test.images) @ weight.T + bias
    assert weight.shape == (len(classes), 128) == (TABLE[name]["classes"], 128)
    accuracy = (logits.argmax(1) == labels[held_out]).mean()
    if name == "letters_shuffled":  # the table's labels were drawn by lot as well
        assert accuracy < 0.1 and TABLE[name]["accuracy"] < 0.1
    else:
        assert abs(accuracy - TABLE[name]["accuracy"]) <= 0.003


def test_an_unknown_source_is_named_with_what_there_is():
    with pytest.raises(BadValue, match="no source 'leters'.*'letters'"):
        glyph_source("leters")
    with pytest.raises(BadValue, match="no source"):
        source_head("")
