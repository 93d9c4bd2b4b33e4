"""Recompute transfer_course/assets/checksums.json, the sha256 of every bundled file.

    python tools/checksums.py            write the file
    python tools/checksums.py --check    exit with 1 if it is not what the files say

Left out: that file, README and LICENSE files, hidden files and the folder records/
(results, rewritten by studies).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "transfer_course" / "assets"
TARGET = ASSETS / "checksums.json"


def counts(path: Path) -> bool:
    """Whether the file is data that a checksum guards."""
    parts = path.relative_to(ASSETS).parts
    hidden = any(p.startswith((".", "__")) for p in parts)
    return not (
        hidden
        or path == TARGET
        or parts[0] == "records"
        or path.name.startswith(("README", "LICENSE"))
    )


def checksums() -> dict[str, str]:
    """Name relative to the assets folder, with slashes -> sha256, sorted."""
    files = sorted(p for p in ASSETS.rglob("*") if p.is_file() and counts(p))
    return {
        p.relative_to(ASSETS).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }


def main(arguments: list[str]) -> int:
    text = json.dumps(checksums(), indent=1, sort_keys=True) + "\n"
    if "--check" in arguments:
        same = TARGET.exists() and TARGET.read_text("utf-8") == text
        print(
            "checksums.json is right"
            if same
            else "checksums.json differs: run python tools/checksums.py"
        )
        return 0 if same else 1
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
