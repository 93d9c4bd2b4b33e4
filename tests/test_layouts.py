"""Folders and tables as people have them: splits, wrappers, litter, groups, names."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from transfer_course import image_folder, image_table
from transfer_course.engine.errors import BadValue, NotFound
from transfer_course.engine.files import list_images
from transfer_course.practice.finished import images_sum
from transfer_course.practice.reading import Reading, check_reading, read_source
from transfer_course.vision import datasets
from transfer_course.vision.images import ImageDataset


def picture(i, side=24):
    """A picture with fine structure, never the same twice."""
    rng = np.random.default_rng(i)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def tree(root, *paths):
    """A picture of its own at each path below `root`."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(root / path)
    return root


def listed(*folders, n=3):
    """`n` paths in each folder."""
    return [f"{folder}/{i}.png" for folder in folders for i in range(n)]


def read(root, **how):
    return image_folder(root, size=16, progress=False, **how)


# ---------------------------------------------------------------- splits as given


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "VALIDATION", "hold-out"),
        ("train_set", "dev", "testing"),
        ("ds-train", "ds-valid", "ds-test"),
    ],
)
def test_splits_are_used_as_given(tmp_path, names):
    train, valid, test = names
    folders = [f"{part}/{c}" for part in names for c in ("cat", "dog")]
    data = read(tree(tmp_path, *listed(*folders), "loose.png"))
    assert data.classes == ["cat", "dog"] and len(data) == 18
    of = {train: "train", valid: "valid", test: "test"}
    assert [of[name.split("/")[0]] for name in data.names] == data.splits.tolist()
    for seed in range(2):
        parts = data.split(valid=0.5, test=0.1, seed=seed)
        for part, name in zip(parts, names, strict=True):
            assert {n.split("/")[0] for n in part.names} == {name} and len(part) == 6
    assert [s.reason for s in data.skipped] == ["not in a class folder"]
    assert "splits given: train 6, valid 6, test 6" in repr(data)


def test_a_missing_validation_set_is_drawn_by_groups_from_training(tmp_path):
    paths = [f"train/{c}/{g}{i}.png" for c in "ab" for g in "wxyz" for i in range(2)]
    data = read(tree(tmp_path, *paths, *listed("test/a", "test/b")), groups="([ab]/.)")
    parts = data.split(valid=0.25, test=0.3)
    assert len(parts.test) == 6 and len(parts.valid) == 4
    assert not set(parts.train.groups) & set(parts.valid.groups)
    assert set(parts.valid.labels) == set(parts.test.labels) == {0, 1}
    # what was drawn can be cut again, and so can a set that was given as a whole
    assert len(parts.test.split(valid=0.34, test=0).valid) == 2
    both = parts.train.concat(parts.test)
    assert both.splits.tolist() == ["train"] * 12 + ["test"] * 6


def test_other_shapes_of_split_folders(tmp_path):
    for k, (paths, names) in enumerate(
        [
            (listed("seg_train/seg_train/a", "seg_train/seg_train/b"), ["a", "b"]),
            (listed("train/images/a", "train/images/b"), ["a", "b"]),
            (listed("train/a/deep", "train/b"), ["a", "b"]),
            (listed("a/train", "b/train"), ["a", "b"]),
        ]
    ):
        more = [p.replace("train", "test") for p in paths]
        data = read(tree(tmp_path / str(k), *paths, *more))
        assert data.classes == names
        assert (data.splits == "test").sum() == len(data) / 2 == len(more)


def test_unlabelled_images_beside_splits_are_left_out(tmp_path):
    root = tree(tmp_path, *listed("train/a", "train/b"), "test/1.png", "pred/2.png")
    data = read(root)
    assert len(data) == 6 and data.splits is None
    assert data.warnings == [
        "test holds no class folders, so it is left out (images: 1)."
    ]
    assert {s.reason for s in data.skipped} == {
        "not in a class folder",
        "in a folder of unlabelled images",
    }


TRAIN = listed("train/cat", "train/dog")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([*TRAIN, *listed("val/cat", "valid/cat")], "val and valid, and each of these"),
        (listed("train1/cat", "train2/cat"), "train1 and train2, and each"),
        (listed("fold1/cat", "fold2/cat"), "folds of cross-validation"),
        ([*TRAIN, *listed("test/cat", "birds")], "beside them birds/"),
        ([*TRAIN, *listed("test/cat", "test/fox")], "test has images of 'fox'"),
        ([*TRAIN, *listed("test/Dog")], "Did you mean 'dog'"),
        (listed("val/cat", "test/cat"), "no folder with images to train on"),
        (listed("train", "test"), "into one folder per class"),
        (listed("cat", "dog", "test/cat"), "with folders of the same names"),
    ],
)
def test_what_can_be_meant_in_two_ways_is_refused(tmp_path, monkeypatch, paths, words):
    root = tree(tmp_path, *paths)
    monkeypatch.setattr(
        datasets, "_open_all", lambda *a: pytest.fail("it read the images first")
    )
    with pytest.raises(BadValue) as e:
        read(root)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_a_class_whose_training_images_are_all_broken(tmp_path):
    root = tree(tmp_path, *TRAIN, *listed("test/cat", "test/dog"))
    for path in (root / "train/dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadValue, match="'dog' has no image in the training set"):
        read(root)


def test_copies_across_given_splits_stay_and_are_said(tmp_path):
    root = tree(tmp_path, *TRAIN, *listed("val/dog", "test/cat"))
    picture(1).save(root / "test/cat/same.bmp")  # other bytes, same pixels
    shutil.copy(root / "train/dog/0.png", root / "val/dog/same.png")
    data = read(root)
    assert (data.splits == "test").sum() == 4 and (data.splits == "valid").sum() == 4
    valid, test = [w for w in data.warnings if "look like copies of training" in w]
    assert "1 of the 4 images of the given validation set" in valid
    assert "test/cat/same.bmp and train/cat/1.png" in test
    grouped = read(root, groups=r"(\d|same)")
    assert any("share a group with training images" in w for w in grouped.warnings)


# ---------------------------------------------------------------- wrappers, names


def test_a_wrapper_with_the_name_of_its_folder_is_looked_through(tmp_path):
    root = tree(tmp_path / "flowers", *listed("Flowers/rose", "Flowers/tulip"))
    data = read(root)
    assert (
        data.classes == ["rose", "tulip"] and "its folder Flowers" in data.warnings[0]
    )
    root = tree(tmp_path / "x", *[f"v2/{p}" for p in TRAIN], *listed("v2/test/cat"))
    data = read(root)
    assert data.classes == ["cat", "dog"] and (data.splits == "test").sum() == 3
    # another name, or images beside it: the folder to give is named
    root = tree(tmp_path / "y", *listed("z/rose", "z/tulip"))
    with pytest.raises(BadValue, match=f"Give {root}/z"):
        read(root)
    root = tree(tmp_path / "w", *listed("w/rose", "w/tulip"), "loose.png")
    with pytest.raises(BadValue, match=f"Give {root}/w"):
        read(root)


def test_class_names_of_any_kind(tmp_path):
    names = ["7 up", "a.b.c", "Ünï cödé", "猫", "-x", "'q'", "007"]
    data = read(tree(tmp_path, *listed(*names, n=2)))
    assert data.classes == sorted(names) and data.warnings == []


def test_names_that_only_look_different_are_said(tmp_path):
    names = ["Cat", "cat", "caf\u00e9", "cafe\u0301", "dog"]
    data = read(tree(tmp_path, *listed(*names, n=2)))
    assert len(data.classes) == 5  # they stay two classes
    first, second = data.warnings
    assert "'Cat' and 'cat' differ only in upper and lower case" in first
    assert "cafe\\u0301" in second and "caf\\xe9" in second and "Unicode form" in second


# ---------------------------------------------------------------- litter, own output


def test_litter_and_own_runs_are_no_classes(tmp_path):
    root = tree(tmp_path, *listed("cat", "dog"))
    tree(
        root, *listed("@eaDir/x.jpg", "cat/@eaDir/y", "$RECYCLE.BIN/S-1", "__MACOSX/a")
    )
    tree(root, *listed("runs/one", "runs/demo", "features", "cat/_thumbs"))
    for name in ("lost+found", "System Volume Information", ".ipynb_checkpoints"):
        (root / name).mkdir()
    (root / "runs/one/run.json").touch()
    (root / "runs/one/report.html").touch()
    (root / "features/extract.json").touch()
    (root / "features/features.npy").touch()
    data = read(root)
    assert data.counts() == {"cat": 3, "dog": 3} and data.warnings == []
    why = {os.path.relpath(s.path, root): s.reason for s in data.skipped}
    assert why["runs"] == "written by this program: its runs"
    assert why["features"] == "written by this program: a run or its features"
    assert why["@eaDir"] == why["cat/@eaDir"] == "thumbnails of a network disk"
    assert not any("empty" in reason for reason in why.values())
    # a folder that is asked for by its own name is read
    assert len(list_images(root / "runs/one")[0]) == 3
    # a class may be called like these if we did not write it
    assert "runs" in read(tree(tmp_path / "b", *listed("runs", "walks"))).classes


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


def test_images_in_a_format_that_cannot_be_read(tmp_path):
    root = tree(tmp_path, *listed("cat", "dog"))
    (root / "fox").mkdir()
    for i in range(4):
        (root / f"fox/{i}.HEIC").write_bytes(HEIC)
    data = read(root)
    assert data.classes == ["cat", "dog"]
    assert "'fox' is left out" in data.warnings[0] and "4 files" in data.warnings[0]
    assert "convert it to JPEG" in data.warnings[0]
    why = {os.path.basename(s.path): s.reason for s in data.skipped}
    assert why["fox"] == "no readable image in it"
    for name in ("cat", "dog"):
        shutil.rmtree(root / name)
    with pytest.raises(BadValue, match="4 files are HEIC, .* convert it to JPEG first"):
        read(root)


# ---------------------------------------------------------------- groups


def test_groups_by_name_are_joined_with_near_copies(tmp_path):
    paths = [f"{c}/p{k}_{i}.png" for c in "ab" for k in range(4) for i in range(2)]
    root = tree(tmp_path, *paths)
    picture(0).save(root / "a/p9_0.bmp")  # a copy of a/p0_0.png, of another patient
    data = read(root, groups=r"(p\d)_")
    group = dict(zip(data.names, data.groups, strict=True))
    assert group["a/p9_0.bmp"] == group["a/p0_0.png"] == group["b/p0_1.png"]
    assert len(set(data.groups)) == 4 and len(set(data.own_groups)) == 5
    assert (data.copies == data.copies[0]).sum() == 2
    for seed in range(3):
        train, valid, _ = data.split(0.3, 0, seed)
        assert not set(train.groups) & set(valid.groups) and len(valid)
    with pytest.raises(BadValue, match="1 of 17 images do not match it, such as a/p9"):
        read(root, groups=r"p[0-8]_")
    with pytest.raises(BadValue, match="no regular expression"):
        read(root, groups="(p")


def test_given_splits_are_checked_and_travel():
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(BadValue, match="'holdout'; expected one of train, valid, test"):
        ImageDataset(pixels, splits=["train", "holdout", "test", "test"])
    data = ImageDataset(pixels, [0, 1, 0, 1], splits=["train", "train", "test", "test"])
    assert data.subset([2, 0]).splits.tolist() == ["test", "train"]
    assert data.concat(data).split(0, 0).test.splits.tolist() == ["test"] * 4


# ---------------------------------------------------------------- tables


@pytest.fixture
def table(tmp_path):
    """A folder of pictures in no order, and the rows of a table about them."""
    rows = []
    for i in range(16):
        picture(i).save(tmp_path / f"{i}.png")
        part = "Training" if i < 12 else "hold-out"
        rows.append([f"{i}.png", ("no", "sí")[i % 2], part, f"p{i // 4}"])
    return tmp_path, rows


def write(place, rows, header="file,label,split,patient", mark=",", encoding="utf-8"):
    with open(place / "list.csv", "w", encoding=encoding, newline="") as f:
        csv.writer(f, delimiter=mark).writerows([header.split(","), *rows])
    return place / "list.csv"


@pytest.mark.parametrize(
    ("mark", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")]
)
def test_a_csv_of_any_dialect(table, mark, encoding):
    place, rows = table
    data = image_table(write(place, rows, mark=mark, encoding=encoding), size=16)
    assert data.classes == ["no", "sí"] and len(data) == 16
    assert data.names.tolist() == [row[0] for row in rows]
    parts = data.split(valid=0.25)
    assert len(parts.test) == 4 and len(parts.valid) == 3
    assert np.array_equal(data.images[3], np.asarray(read_one(place / "3.png")))


def read_one(path):
    from transfer_course.engine.files import read_image

    return read_image(path, 16)


def test_a_data_frame_with_absolute_paths_and_groups(table):
    pandas = pytest.importorskip("pandas")
    place, rows = table
    frame = pandas.DataFrame(rows, columns=["where", "what", "cut", "patient"])
    frame["where"] = [place / name for name in frame["where"]]
    frame["code"] = [1.0, None] * 8
    how = dict(path_column="where", size=16, group_column="patient")
    data = image_table(frame, label_column="what", split_column="cut", **how)
    assert len(set(data.own_groups)) == 4 and (data.splits == "test").sum() == 4
    with pytest.raises(BadValue, match="fewer than two classes"):
        image_table(frame, label_column="code", **how)
    assert (
        image_table(frame, label_column="what", groups=r"(\d)\.png", **how) is not None
    )


def test_rows_that_are_left_out_are_listed(table):
    place, rows = table
    (place / "bad.png").write_bytes(b"")
    rows += [["bad.png", "no", "train", "p0"], ["1.png", "", "train", "p0"], rows[0]]
    data = image_table(write(place, rows), size=16)
    assert len(data) == 16
    assert {(s.path, s.reason) for s in data.skipped} == {
        ("bad.png", "empty file"),
        ("1.png", "no label in the table"),
        ("0.png", "listed twice in the table"),
    }


def test_what_a_table_may_not_be(table):
    place, rows = table
    for change, how, words in (
        (lambda r: [["x.png", *r[0][1:]], *r[1:]], {}, "1 of the 16 files .* x.png"),
        (lambda r: r, dict(label_column="labels"), "Did you mean 'label'"),
        (lambda r: r, dict(group_column="Patient"), "Did you mean 'patient'"),
        (lambda r: r, dict(groups="patients"), "no column either.*Did you mean"),
        (lambda r: r, dict(split_column="patient"), "holds p0, which is no name"),
        (lambda r: [row[:3] for row in r], {}, "line 2 has 3 cells; expected 4"),
        (
            lambda r: [[*row[:3], ""] for row in r],
            dict(groups="patient"),
            "empty in 16",
        ),
        (lambda r: [[*row[:2], "test", "p"] for row in r[:8]] + r[12:], {}, None),
        (lambda r: [*r, ["0.png", "new", "test", "p"]], {}, "test has images of 'new'"),
    ):
        path = write(place, change(rows))
        if words is None:
            assert image_table(path, 16, **how).splits is None
            continue
        with pytest.raises(BadValue, match=words) as e:
            image_table(path, 16, **how)
        assert "\n" not in str(e.value)
    with pytest.raises(NotFound, match="no file"):
        image_table(place / "none.csv")
    with pytest.raises(BadValue, match="is an image"):
        check_reading(place / "0.png", Reading())
    with pytest.raises(BadValue, match="--label-column names a column of a table"):
        check_reading(place, Reading(columns={"label": "what"}))


def test_a_run_knows_when_its_splits_or_groups_changed(table):
    place, rows = table
    path = write(place, rows)
    first = images_sum(read_source(path, Reading(size=16)))
    assert first == images_sum(read_source(path, Reading(size=16)))
    rows[0][2] = "test"
    assert first != images_sum(read_source(write(place, rows), Reading(size=16)))


# ---------------------------------------------------------------- as a process


def command(*args, cwd=None):
    done = subprocess.run(
        [sys.executable, "-m", "transfer_course.cli", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    return done.returncode, lines, done.stderr


HOW = ("--strategy", "probe", "--size", 32, "--json")


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_fine_tune_on_splits_and_on_a_table(tmp_path, framework):
    how = (*HOW, "--framework", framework)
    rows = []
    for i in range(24):
        part, c = ("train", "VAL")[i % 6 > 3], ("red", "blue")[i % 2]
        shade = np.uint8([200, 60, 60] if c == "red" else [60, 60, 200])
        noise = np.random.default_rng(i).integers(0, 56, (40, 40, 3), dtype=np.uint8)
        path = tmp_path / "photos" / part / c / f"s{i // 2}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise + shade).save(path)
        rows.append([path.relative_to(tmp_path), c, part, f"s{i // 2}"])
    again = tmp_path / "photos/train/red/s0_0 again.jpg"
    Image.open(tmp_path / "photos/train/red/s0_0.png").save(again, quality=90)
    run = tmp_path / "given"
    options = ("--groups", r"(s\d+)_", "--out", run)
    code, out, err = command("fine-tune", tmp_path / "photos", *how, *options)
    assert code == 0 and "used as they are: training 17, validation 8 images" in err
    assert out[0]["classes"] == ["blue", "red"] and out[0]["n_valid"] == 8
    near = json.loads((run / "run.json").read_text("utf-8"))["near_copies"]
    assert near["groups"] == [["train/red/s0_0 again.jpg", "train/red/s0_0.png"]]
    assert "Copies that were kept together" in (run / "report.html").read_text("utf-8")
    path, run = (
        write(tmp_path, [[*row[:2], "train", row[3]] for row in rows]),
        tmp_path / "b",
    )
    code, out, err = command(
        "fine-tune", path, *how, "--groups", "patient", "--out", run
    )
    assert code == 0, err
    info = json.loads((run / "run.json").read_text("utf-8"))
    assert out[0]["classes"] == info["classes"] == ["blue", "red"]
    assert info["groups"] == "patient" and info["n_train"] + info["n_valid"] == 24


def test_the_command_says_what_is_wrong_with_a_layout(tmp_path):
    tree(tmp_path / "photos", *TRAIN, *listed("val/cat", "valid/dog"))
    code, out, err = command("fine-tune", tmp_path / "photos", *HOW, cwd=tmp_path)
    assert code == 2 and "val and valid" in err and "error" in out[0]
    path = write(tmp_path, [["photos/train/cat/0.png", "a", "train", "p"]] * 2)
    how = (*HOW, "--label-column", "lable")
    code, out, err = command("fine-tune", path, *how, cwd=tmp_path)
    assert code == 2 and "Did you mean 'label'" in err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
