"""`transfer-course check` as a process, on folders with planted problems."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from running import run as run_command

from transfer_course import cli
from transfer_course.vision.photos import photos

CLASSES = ["mammal", "building", "coin"]


def run(*args, **how):
    return run_command("check", *args, **how)


def save(images, folder, classes=CLASSES):
    """A PNG per image, in a folder per class; the files of each class."""
    for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        place = folder / classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return {c: sorted((folder / c).iterdir()) for c in classes}


def some(per_class, size=64):
    images = photos(size=size).only(CLASSES)
    rows = []
    for c in range(3):
        mine = np.flatnonzero(images.labels == c)
        _, first = np.unique(images.groups[mine], return_index=True)
        rows += mine[np.sort(first)[:per_class]].tolist()
    return images.subset(rows)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder in which one thing of each kind is wrong."""
    folder = tmp_path_factory.mktemp("planted") / "my photos"
    files = save(some(12), folder)
    mammals, buildings, coins = (files[c] for c in CLASSES)
    (folder / "coin" / "copy.png").write_bytes(mammals[0].read_bytes())
    again = Image.open(buildings[0]).resize((60, 60)).resize((64, 64))
    again.save(folder / "building" / "again.jpg", quality=80)
    Image.open(mammals[1]).filter(ImageFilter.GaussianBlur(3)).save(mammals[1])
    Image.open(buildings[1]).point(lambda v: v / 6).save(buildings[1])
    coins[1].write_bytes(coins[1].read_bytes()[:500])
    mammals[2].rename(folder / "coin" / "flipped.png")
    wide = Image.open(buildings[2]).resize((160, 64))
    wide.save(folder / "building" / "wide.png")
    buildings[2].unlink()
    Image.open(coins[2]).resize((24, 24)).save(coins[2])
    (folder / "coin" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module", params=["torch", "keras"])
def checked(request, planted, tmp_path_factory):
    """What the command prints and writes, in each framework."""
    here = tmp_path_factory.mktemp(request.param)
    args = (planted, "--framework", request.param, "--size", 64, "--out", "seen")
    done = run(*args, "--json", cwd=here)
    return json.loads(done.stdout), done, here / "seen"


def found(summary):
    return {finding["kind"]: finding for finding in summary["findings"]}


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_leak_between_splits_is_said_first(framework, tmp_path):
    images = some(4)
    for part, rows in {"train": [0, 1, 2], "Test": [3]}.items():
        at = [4 * c + k for c in range(3) for k in rows]
        save(images.subset(at), tmp_path / "cut" / part)
    leaked = Image.open(tmp_path / "cut" / "train" / "coin" / "006.png")
    leaked.resize((80, 80)).save(tmp_path / "cut" / "Test" / "coin" / "new.png")
    out, pattern = tmp_path / "seen", r"((?<=/)coin(?=/)|[^/]+$)"
    args = ("--framework", framework, "--size", 64, "--out", out)
    done = run(tmp_path / "cut", *args, "--groups", pattern, cwd=tmp_path)
    first = done.stdout.splitlines()[0]
    assert first.startswith("1 of 4 images in the test set has a copy in the training")
    assert "Test/coin/new.png is a copy of train/coin/006.png" in first
    summary = json.loads((out / "check.json").read_text(encoding="utf-8"))
    assert [f["kind"] for f in summary["findings"]][:2] == [
        "copies_train_test",
        "groups",
    ]
    assert summary["splits"]["test"] == {"building": 1, "coin": 2, "mammal": 1}
    page = (out / "check.html").read_text(encoding="utf-8")
    assert page.index("Copies in the training") < page.index("Groups in several splits")


def test_a_table_is_looked_at_like_a_folder(tmp_path, capsys):
    files = save(some(3), tmp_path / "images")
    lines = [f"{f},{c}" for c in CLASSES for f in files[c]] + [
        f"{files['coin'][0]},fish"
    ]
    (tmp_path / "list.csv").write_text("\n".join(["file,kind", *lines, ""]))
    out = tmp_path / "seen"
    args = (tmp_path / "list.csv", "--label-column", "kind", "--out", out, "--json")
    summary = json.loads(here(*args, capsys=capsys))
    assert summary["classes"] == {"building": 3, "coin": 3, "fish": 1, "mammal": 3}
    assert names(found(summary)["copies_across_classes"]) == {files["coin"][0].name}
    assert "'fish'" in summary["not_checked"]["label_errors"]


def names(finding):
    items = [image for item in finding["items"] for image in item.get("images", [item])]
    return {Path(item["path"]).name for item in items}


def test_each_planted_problem_is_found_in_both_frameworks(checked):
    kinds = found(checked[0])
    assert names(kinds["copies_across_classes"]) == {"000.png", "copy.png"}
    assert kinds["copies_across_classes"]["items"][0]["exact"] is True
    assert "again.jpg" in names(kinds["copies"])
    assert names(kinds["blurred"]) == {"001.png"}
    assert names(kinds["dark"]) == {"013.png"}
    assert names(kinds["skipped"]) == {"025.png", "notes.txt"}
    reasons = {item["reason"] for item in kinds["skipped"]["items"]}
    assert reasons == {"truncated", "not an image (.txt)"}
    assert names(kinds["cropped"]) == {"wide.png"}
    assert names(kinds["smaller"]) == {"026.png"}
    first = kinds["label_errors"]["items"][:3]
    flipped = [e for e in first if Path(e["path"]).name == "flipped.png"]
    assert flipped and flipped[0]["class"] == "coin"
    assert flipped[0]["suggested"] == "mammal"


def test_json_is_one_line_and_the_same_as_the_file(checked):
    summary, done, out = checked
    assert done.stdout.count("\n") == 1
    assert json.loads((out / "check.json").read_text(encoding="utf-8")) == summary
    assert summary["images"] == 37 and summary["size"] == 64
    assert summary["classes"] == {"building": 13, "coin": 13, "mammal": 11}
    assert summary["files"]["formats"] == {"PNG": 36, "JPEG": 1}
    for finding in summary["findings"]:
        assert finding["sentence"] in done.stderr
        paths = [i["path"] for i in finding["items"] if "path" in i]
        assert all(Path(path).exists() for path in paths)


def test_the_page_holds_its_pictures_and_no_script(checked):
    page = (checked[2] / "check.html").read_text(encoding="utf-8")
    assert "<script" not in page and "src='data:image/jpeg" in page
    assert page.count("<img ") >= 2 + 2 + 5
    for finding in checked[0]["findings"]:
        assert finding["sentence"].split(",")[0].replace("'", "&#x27;") in page


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "photos"


def here(*args, code=0, capsys):
    """The command in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(["check", *map(str, args)])
    out, err = capsys.readouterr()
    assert (end.value.code or 0) == code, err
    return out if code == 0 else err


def test_by_default_the_report_is_never_inside_the_images(folder, monkeypatch, capsys):
    save(some(3), folder)
    monkeypatch.chdir(folder)
    out = here(".", capsys=capsys)
    assert sorted(p.name for p in folder.iterdir()) == sorted(CLASSES)
    assert (folder.parent / "runs" / "check-photos" / "check.html").exists()
    assert "next: transfer-course fine-tune . --size 64" in out
    here(".", capsys=capsys)
    assert (folder.parent / "runs" / "check-photos-2" / "check.json").exists()
    err = here(".", "--out", "report", code=2, capsys=capsys)
    assert "inside the images" in err and not Path("report").exists()


def test_a_folder_of_other_files_is_not_written_to(folder, tmp_path, capsys):
    save(some(2), folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    err = here(folder, "--out", mine, code=2, capsys=capsys)
    assert "holds other files" in err
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_odd_folders_get_one_clear_answer(folder, tmp_path, capsys):
    out = tmp_path / "seen"
    here(folder, "--out", out, code=2, capsys=capsys)  # no such folder
    folder.mkdir()
    err = here(folder, "--out", out, code=2, capsys=capsys)
    assert "no usable class" in err and not out.exists()
    files = save(some(1), folder)
    for c in CLASSES[1:]:
        files[c][0].rename(folder / CLASSES[0] / f"{c}.png")
        (folder / c).rmdir()
    err = here(folder, "--out", out, code=2, capsys=capsys)
    assert "one usable class" in err and err.count("\n") == 1


def test_three_images_are_too_few_and_that_is_said(folder, tmp_path, capsys):
    save(some(1), folder)
    said = here(folder, "--out", tmp_path / "seen", capsys=capsys)
    assert "3 images in 3 classes" in said
    assert "Wrong labels were not looked for" in said
    assert "Outliers were not looked for" in said
    assert "3 classes have fewer than 10 images" in said


def test_equal_images_everywhere(folder, tmp_path, capsys):
    same = some(1).images[0]
    for c in CLASSES:
        (folder / c).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(same).save(folder / c / f"{k}.png")
    said = here(folder, "--out", tmp_path / "seen", capsys=capsys)
    assert "6 images have a copy in another class" in said
    assert "Wrong labels were not looked for" in said


def test_two_hundred_classes_of_two(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for c in range(200):
        (folder / f"class {c}").mkdir(parents=True)
        base = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for k in range(2):
            noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            pixels = np.repeat(np.repeat(base // 2 + noise // 2, 4, 0), 4, 1)
            Image.fromarray(pixels).save(folder / f"class {c}" / f"{k}.png")
    said = here(folder, "--out", tmp_path / "seen", "--size", 32, capsys=capsys)
    assert "400 images in 200 classes" in said
    assert "200 classes have fewer than 10 images" in said
    page = (tmp_path / "seen" / "check.html").read_text(encoding="utf-8")
    assert len(page) < 3_000_000


@pytest.mark.stress
def test_a_thousand_images_take_less_than_half_a_minute(folder, tmp_path):
    """After the extraction, which is there when the command runs again.

    Processor time of all threads, which other programs on the machine don't change
    much; on a quiet machine the command takes no longer than that.
    """
    images = photos(size=160)
    rng = np.random.default_rng(0)
    for k in range(1000):
        i = int(rng.integers(len(images)))
        place = folder / images.classes[images.labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        box = rng.integers(0, 30, 2)
        crop = Image.fromarray(images.images[i]).crop((*box, *(box + 130)))
        crop.rotate(int(rng.integers(-20, 20))).save(place / f"{k:04}.jpg")
    run(folder, "--out", "first", cwd=tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(folder, "--out", "second", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
