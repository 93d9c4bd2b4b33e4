"""(a) Features: the network alone, and from files.

With the extra `fast`, without it, and in bfloat16.
"""

from __future__ import annotations

import numpy as np
import peers
from common import WORK, forget_features, jpegs, rate_row, turns

# Issue 6, network alone.
FLOORS = {"fast": {96: 3.5, 224: 2.0}, "plain": {96: 2.0, 224: 1.3}}
NAMES = {"fast": "with extra fast", "plain": "without it", "bf16": "bf16 allowed"}


def chosen_without(net, side: int) -> str:
    """The engine that is chosen where OpenVINO is not installed."""
    from unittest import mock

    from transfer_course.engine import engines

    with mock.patch.object(engines, "installed", lambda name: False):
        return engines.choose(net, side, side)


def engines(net, side: int) -> dict[str, dict]:
    """What is measured, as arguments of `extract`.

    The engine chosen here, the one chosen without OpenVINO, and bfloat16 allowed.
    """
    return {
        "fast": {},
        "plain": {"engine": chosen_without(net, side)},
        "bf16": {"bf16": True},
    }


def network_alone(side: int, n: int, rounds: int) -> list[dict]:
    """Features of pictures in memory against an eager loop in the default layout.

    That both are equal is asserted.
    """
    from transfer_course import ImageDataset, extract
    from transfer_course.engine.engines import choose

    net, theirs = peers.lite0(), peers.lite0()
    images = np.random.default_rng(0).integers(
        0, 256, (n, side, side, 3), dtype=np.uint8
    )
    data, eager, rows = ImageDataset(images), peers.torch_eager(theirs, images), []
    wanted = eager()
    for key, how in engines(net, side).items():

        def ours(how=how):
            return extract(net, data, cache=False, progress=False, **how)

        off = float(np.abs(ours() - wanted).max())
        assert key == "bf16" or off < 1e-4, (
            f"the features of '{key}' at {side} px are {off:.1e} off"
        )
        mine, other = turns(ours, eager, rounds)
        engine, floor = choose(net, side, side, **how), FLOORS.get(key, {}).get(side)
        said = (
            NAMES[key]
            if key != "bf16" or "bf16" in engine
            else "bf16 allowed, not used: no instructions for it"
        )
        note = f"engine '{engine}', largest difference {off:.0e}"
        rows.append(
            rate_row(
                "a",
                f"features of {n:,} images, {side} px, {said}",
                "torch eager",
                n,
                mine,
                other,
                floor,
                note,
            )
        )
    return rows


def from_files(side: int, picture: int, n: int, rounds: int) -> list[dict]:
    """From generated JPEG files to features.

    The folder is opened anew every time, and nothing is cached.
    """
    from transfer_course import extract, image_folder

    folder = jpegs(WORK / f"jpeg-{n}-{picture}", n, picture)
    net, rows = peers.lite0(), []

    def ours(draft=False):
        forget_features()
        return extract(
            net,
            image_folder(folder, size=side, progress=False, draft=draft),
            cache=False,
            progress=False,
        )

    title = f"JPEG files of {picture} px to features, {side} px"
    for name, make in (
        ("timm, validate.py", peers.timm_eval),
        ("torch eager + DataLoader", peers.torch_dataloader),
    ):
        theirs = make(peers.lite0(), folder, side)
        mine, other = turns(ours, theirs, rounds)
        rows.append(rate_row("a", title, name, n, mine, other, 2.0))
        if make is peers.timm_eval:
            mine, other = turns(lambda: ours(draft=True), theirs, rounds)
            rows.append(
                rate_row(
                    "a", f"{title}, decoded at a reduced scale", name, n, mine, other
                )
            )
    return rows


def section(quick: bool, rounds: int) -> dict:
    """Rows of (a)."""
    if quick:
        return {"rows": network_alone(32, 8, rounds) + from_files(32, 48, 6, rounds)}
    rows = network_alone(96, 1024, rounds) + network_alone(224, 128, rounds)
    return {
        "rows": rows
        + from_files(96, 256, 384, rounds)
        + from_files(224, 512, 128, rounds)
    }
