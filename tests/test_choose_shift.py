"""`transfer-course choose` and `transfer-course shift` as processes on made folders."""

import json

import numpy as np
import pytest
from PIL import Image
from running import run

from transfer_course import cli
from transfer_course.engine.errors import BadValue, NotFound
from transfer_course.insight.transferability import SCORES
from transfer_course.practice import choose, shift
from transfer_course.vision.photos import photos
from transfer_course.vision.wheels import has_wheel

CLASSES = ["mammal", "building", "coin"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty photographs of three classes."""
    place, images = tmp_path_factory.mktemp("three") / "my photos", photos(size=64)
    images = images.only(CLASSES)
    for c, name in enumerate(CLASSES):
        (place / name).mkdir(parents=True)
        for i in np.flatnonzero(images.labels == c)[:20:2]:
            Image.fromarray(images.images[i]).save(place / name / f"{i}.png")
    return place


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_backbones_are_ranked_without_training(framework, folder, tmp_path):
    given = ("--framework", framework, "--out", "here", "--json", "--size", 64)
    only = ("--backbones", "efficientnet_lite0")
    done = run("choose", folder, *given, *only, cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "here/choose.json").read_text())
    first, second = found["rows"]
    assert (first["backbone"], first["rank"]) == ("efficientnet_lite0", 1)
    assert second["backbone"] == choose.RANDOM and second["framework"] == framework
    assert set(SCORES) < set(first["scores"])
    assert first["scores"]["logme"] > second["scores"]["logme"]
    assert second["scores"]["leep"] is None, "random weights have no source classes"
    assert 0 < found["trust"]["stays_first"] <= 1
    page = (tmp_path / "here/choose.html").read_text()
    assert "1. efficientnet_lite0" in page and "ranks first by logme" in page
    assert "next: transfer-course fine-tune" in done.stderr


def test_the_usual_candidates_are_those_at_hand():
    names, missing = choose.usual_backbones()
    assert names[0] == "efficientnet_lite0" and len(names) + len(missing) == 3
    assert all(has_wheel(name) for name in names[1:])
    assert not any(has_wheel(name) for name in missing)


def test_an_unstable_order_and_useless_pretraining_are_told():
    def said(first, stays):
        rows = [{"backbone": first}, {"backbone": "other"}]
        found = {"rows": rows, "trust": {"stays_first": stays}}
        return " ".join(choose._advice(found, "logme"))

    assert "not stable" in said("lite", 0.6) and "not stable" not in said("lite", 0.9)
    assert "can be expected to help" in said(choose.RANDOM, 1.0)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_distance_of_two_folders_is_measured(framework, folder, tmp_path):
    for name, change in (("same", 0), ("inverted", 255)):
        for path in folder.rglob("*.png"):
            (tmp_path / name).mkdir(exist_ok=True)
            image = np.asarray(Image.open(path))[:, ::-1]
            Image.fromarray(np.abs(change - image)).save(tmp_path / name / path.name)
    (tmp_path / "inverted" / "broken.png").write_bytes(b"no image")
    given = ("--framework", framework, "--size", 64, "--json")
    found = {}
    for name in ("same", "inverted"):
        done = run("shift", folder, name, *given, "--out", f"o_{name}", cwd=tmp_path)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        stored = json.loads((tmp_path / f"o_{name}/shift.json").read_text())
        assert found[name] == stored
    for key in ("mmd", "coral", "ot"):
        assert found["same"][key] < found["inverted"][key], key
    for result in found.values():
        known = result["expected_drop"] is not None
        assert known == (result["why"] is None)
        if known:
            assert result["low"] <= result["expected_drop"] <= result["high"]
    far = found["inverted"]["farthest"]
    assert len(far) == shift.FARTHEST and "inverted" in far[0]["path"]
    values = [row["witness"] for row in far]
    assert values == sorted(values)
    assert "broken.png" in found["inverted"]["skipped"][0]["path"]
    assert "<img" in (tmp_path / "o_same/shift.html").read_text()


def test_no_drop_is_predicted_where_nothing_was_recorded():
    assert shift.expected_from(0.05, "efficientnet_lite0")["why"] is None
    for mmd, backbone in ((9.0, "efficientnet_lite0"), (0.05, "resnet50")):
        found = shift.expected_from(mmd, backbone)
        assert found["expected_drop"] is None and found["why"]


@pytest.mark.parametrize(
    "command, given, told",
    [
        ("choose", ("{folder}", "--by", "logm"), "expected one of logme"),
        ("choose", ("{folder}", "--backbones", "lite9"), "no backbone 'lite9'"),
        ("choose", ("nowhere",), "no folder 'nowhere'"),
        ("shift", ("{folder}", "nowhere"), "no folder 'nowhere'"),
        ("shift", ("{folder}", "few"), "need 10 or more"),
        ("shift", ("{folder}", "{folder}", "--size", "3"), "size is 3"),
    ],
)
def test_a_mistake_gets_one_sentence(
    command, given, told, folder, tmp_path, capsys, monkeypatch
):
    (tmp_path / "few").mkdir()
    monkeypatch.chdir(tmp_path)
    words = [str(word).format(folder=folder) for word in given]
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, *words])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_a_folder_of_few_images_is_refused(tmp_path):
    with pytest.raises(NotFound):
        shift.read_domain(tmp_path / "nowhere", 32)
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    with pytest.raises(BadValue, match="has 1 images"):
        shift.read_domain(tmp_path, 32)
