"""The table and the picture of the page on speed, from benchmarks/results/*.json."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALT = (
    "For each line of the table a dot at its ratio, on a logarithmic axis from worse "
    "to better, with a bar from the lowest to the highest round and a grey upright "
    "mark at its floor; dots below their floor are hollow."
)


NEVER = 0.1  # where the picture puts what was not reached


def results(device: str = "cpu") -> dict:
    """What a bench has stored; no rows where none has run."""
    file = HERE / "results" / f"{device}.json"
    return (
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    )


def figure(value) -> str:
    """Three digits; a dash for what is not there."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def missed(row: dict) -> bool:
    """Whether a row has a floor and lies below it."""
    return (
        row.get("floor") is not None
        and row["ratio"] is not None
        and row["ratio"] < row["floor"]
    )


def table(found: dict) -> str:
    """Markdown: both figures, the ratio with its spread, the floor.

    A word says where the floor is missed.
    """
    lines = [
        "| | measured | peer | ours | theirs | ratio (lowest to highest) | floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        ratio = (
            ""
            if r["ratio"] is None
            else f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        )
        floor = (
            ""
            if r.get("floor") is None
            else f"{r['floor']:g}" + (" **missed**" if missed(r) else "")
        )
        both = f"{figure(r['ours'])} | {figure(r['theirs'])} {r['unit']}"
        lines.append(
            f"| {r.get('section', '')} | {r['name']} | {r['peer']} | {both} | {ratio} "
            f"| {floor} |"
        )
    return "\n".join(lines)


def accuracies(found: dict) -> str:
    """Markdown: what each fast path changes."""
    lines = [
        "| fast path | plain | fast | difference, 99 % interval | seeds |",
        "|---|---|---|---|---|",
    ]
    for a in found.get("accuracy", []):
        change = f"{a['difference']:+.3f} ({a['low']:+.3f} to {a['high']:+.3f})"
        lines.append(
            f"| {a['name']} | {a['plain']:.3f} | {a['fast']:.3f} | {change} | "
            f"{a['seeds']} |"
        )
    return "\n".join(lines)


def caption(found: dict) -> str:
    """The machine in a sentence."""
    m, v = found.get("machine", {}), found.get("versions", {})
    shown = ", ".join(
        f"{k} {v[k]}"
        for k in ("torch", "tensorflow", "keras", "openvino", "timm", "fastai")
        if k in v
    )
    where = (
        f"{m['processor']}, {m['cores']} cores, {m.get('threads', m['cores'])} threads"
        if m
        else "nothing measured yet"
    )
    return f"{where}; {shown}." if shown else f"{where}."


def picture(found: dict):
    """Ratios with their spread beside their floors, as a matplotlib Figure.

    A dot is hollow where the floor is missed.
    """
    from matplotlib.figure import Figure

    rows = [r for r in found["rows"] if r["ratio"] is not None]
    fig = Figure(figsize=(8, 0.9 + 0.3 * max(len(rows), 1)))
    ax = fig.subplots()
    for i, r in enumerate(rows):
        if r["ratio"] <= 0:  # on a logarithmic axis it has no place
            ax.text(NEVER, i, " never reached", va="center", size=7)
        low, at, high = (max(r[k], NEVER) for k in ("low", "ratio", "high"))
        ax.hlines(i, low, high, color="black", lw=1.5)
        if r.get("floor") is not None:
            ax.plot(r["floor"], i, marker="|", color="#767676", ms=14, mew=3)
        ax.plot(
            at,
            i,
            marker="o",
            color="black",
            mfc="white" if missed(r) else "black",
            ms=6,
        )
    ax.axvline(1, color="black", lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(
        range(len(rows)), [f"{r['name']} · {r['peer']}" for r in rows], size=7
    )
    ax.set(
        ylim=(max(len(rows), 1) - 0.5, -0.5),
        xlabel="ratio (above 1: ours is better); grey: floor",
    )
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(left=False)
    fig.set_layout_engine("tight")
    return fig


def main() -> None:
    """Print the tables and store the pictures beside the results."""
    for file in sorted((HERE / "results").glob("*.json")):
        found = results(file.stem)
        print(
            f"{file.stem}: {caption(found)}\n\n{table(found)}\n\n{accuracies(found)}\n"
        )
        picture(found).savefig(file.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
