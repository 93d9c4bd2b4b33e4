"""Build the bundled data set Five Styles.

Everyday things in five styles, 64 x 64 pixels with alpha.

    python tools/build_five_styles.py SOURCES_FOLDER

It writes transfer_course/assets/five_styles/. SOURCES_FOLDER holds the four sources,
unpacked. Fetch them there with the ordinary tools:

    mkdir google twitter openmoji
    npm pack emoji-datasource-google@16.0.0
    tar -xzf emoji-datasource-google-16.0.0.tgz -C google
    npm pack emoji-datasource-twitter@16.0.0
    tar -xzf emoji-datasource-twitter-16.0.0.tgz -C twitter
    npm pack openmoji@17.0.0
    tar -xzf openmoji-17.0.0.tgz -C openmoji
    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_2022.06.04-1_all.deb tuxpaint

It needs Pillow with WebP, NumPy and cairosvg (which needs the cairo library); nothing
else in this repository needs cairosvg. With the same versions of these the result is
the same bytes, except that drawing may differ by a grey level between systems.
The tables below are the whole curation: what counts as which class, what is left out
and why, what is one thing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
import zipfile
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "transfer_course" / "assets" / "five_styles"
SIZE = 64
STYLES = ["photo", "noto", "twemoji", "openmoji", "outline"]
PARTS = ["development", "sealed"]
SEALED_PART = 3  # one identity in three is sealed
# Two pictures of one class and style that correlate at least so much are one thing:
# rule 3 below.
CORRELATION = 0.85

# ---------------------------------------- what counts as which class

SUBCATEGORIES = {
    "face": (
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical "
        "face-sleepy face-unwell face-hat face-glasses face-concerned face-negative "
        "face-costume cat-face monkey-face"
    ),
    "vehicle": "transport-ground transport-air transport-water",
    "dish": "food-prepared food-asian food-sweet",
    "mammal": "animal-mammal",
    "clothing": "clothing",
    "produce": "food-fruit food-vegetable",
    "building": "place-building place-religious",
    "music": "musical-instrument music",
    "plant": "plant-flower plant-other",
    "sport": "sport",
    "tool": "tool",
    "sealife": "animal-marine",
    "bird": "animal-bird",
    "drink": "drink",
    "bug": "animal-bug",
}
CLASS_OF = {sub: c for c, subs in SUBCATEGORIES.items() for sub in subs.split()}

# Folders of the photographs; the longest prefix decides.
FOLDERS = {
    "animals/birds": "bird",
    "animals/fish": "sealife",
    "animals/shellfish": "sealife",
    # As in the emoji's own grouping: whale, dolphin, seal.
    "animals/mammals/aquatic": "sealife",
    "animals/mammals/aquatic/otter": "mammal",
    "animals/insects": "bug",
    "animals/mammals": "mammal",
    "animals/marsupials": "mammal",
    "plants": "plant",
    "plants/trees/rambutan": "produce",  # a bunch of fruit
    "food/fruit": "produce",
    "food/nuts": "produce",
    "food/spices": "produce",
    "food/vegetables": "produce",
    "hobbies/music": "music",
    "sports": "sport",
    "household/tools": "tool",
    "vehicles": "vehicle",
}

# ---------------------------------------- what is left out

# Emoji whose subcategory is wider than the class's name: signs, places, parts of
# things, materials.
LEFT_OUT_EMOJI = {
    "vehicle": (
        "bus stop, construction, stop sign, motorway, railway track, "
        "horizontal traffic light, vertical traffic light, fuel pump, oil drum, "
        "police car light, station, seat, anchor, ring buoy"
    ),
    "clothing": "gem stone, lipstick, hair pick, folding hand fan, prayer beads",
    "building": "brick, rock, wood",
    "drink": "ice",
    "bug": "microbe, spider web",
    "bird": "feather, wing",
    "mammal": "paw prints, pig nose",
    "plant": "rosette, empty nest, nest with eggs",
    "music": "control knobs, level slider",
}

# Photographs' folder: everything under a folder called cartoon, and these (found by
# looking at every picture).
LEFT_OUT_PHOTOS = {
    "drawing": (
        "animals/insects/bee animals/mammals/echidna animals/mammals/hedgehog "
        "food/pizza vehicles/7spoke256"
    ),
    "mirror image of another": (
        "household/tools/measuring_tape_mirror vehicles/construction/dumper_mirror "
        "vehicles/emergency/sedan_police_mirror"
    ),
    "lettering to put on another picture": "vehicles/emergency/sedan_police",
    "toy": (
        "animals/mammals/bears/toys/edward_bear "
        "plants/flowers/plastic/chuvanna_plastic_poo"
    ),
    "thin poles, nothing left at 64 pixels": "sports/rugby_goal_posts",
    "no class of ours": (
        "animals/amphibians/frog animals/amphibians/frog-1 animals/lizards/iguana"
    ),
}
WHY_NOT = {
    stem: why for why, stems in LEFT_OUT_PHOTOS.items() for stem in stems.split()
}

# ---------------------------------------- what a picture is called

# A photograph's name is its description in the package; these descriptions say
# something else first.
PHOTO_NAMES = {
    "animals/birds/albino_peahen": "albino peahen",
    "animals/birds/peacock": "peacock",
    "animals/birds/hen": "brown hen",
    "animals/birds/rooster": "colourful rooster",
    "animals/fish/bluegroper": "blue groper",
    "animals/fish/lionfish": "lionfish",
    "animals/fish/lobster": "spiny lobster",
    "animals/fish/stripedfish": "stripey fish",
    "animals/insects/hoverfly": "hoverfly",
    "animals/insects/xanthia": "xanthia moth",
    "animals/mammals/bovines/gnu-baby": "gnu calf grazing",
    "animals/mammals/bovines/gnu-baby-stand": "gnu calf",
    "animals/mammals/bovines/sheep_lamb": "lamb",
    "animals/mammals/bovines/mountaingoat": "mountain goat",
    "animals/mammals/bovines/cow_white": "white cow",
    "animals/mammals/equines/donkey_eating": "donkey eating",
    "animals/mammals/wildboar": "wild boars",
    "animals/mammals/bears/european-bear": "european bear",
    "food/fruit/Cherry_Stella": "cherries",
    "food/fruit/apple_fuji": "fuji apple",
    "food/fruit/apple_granny_smith": "granny smith apple",
    "food/fruit/apple_sierra_beauty": "sierra beauty apple",
    "food/fruit/avocado": "avocado",
    "food/fruit/cherimoya": "cherimoya",
    "food/fruit/grapes": "grapes",
    "food/fruit/kiwi": "kiwi fruit",
    "food/vegetables/corn": "yellow corn",
    "food/vegetables/garlic": "garlic",
    "food/vegetables/garlics": "string of garlic",
    "food/vegetables/lettuce": "lettuce",
    "food/vegetables/redlettuce": "red lettuce",
    "food/vegetables/pattypan_squash": "pattypan squash",
    "household/tools/plyers": "pliers",
    "household/tools/wrench_plumbers": "plumbers wrench",
    "food/fruit/orange_seville": "seville orange",
    "food/spices/ginger": "ginger root",
    "food/vegetables/broccoli": "broccoli",
    "food/vegetables/pumpkin_small": "small pumpkin",
    "food/vegetables/tomato": "red tomato",
    "plants/eggplant": "eggplant shrub",
    "plants/lavender": "lavender",
    "plants/mushrooms/cep": "red headed cep",
    "plants/mushrooms/cep-2": "two ceps",
    "plants/thyme": "thyme",
    "plants/trees/birch": "birch in winter",
    "plants/trees/holly_leaves": "holly leaves",
    "plants/trees/rambutan": "rambutan",
    "plants/flowers/adeenia": "desert rose",
    "plants/flowers/appooppanthady": "indian milkweed",
    "plants/flowers/flower1": "purple flower",
    "plants/flowers/flower2": "yellow cup flower",
    "plants/flowers/flower3": "yellow star flower",
    "plants/flowers/flower4": "violet flowers",
    "plants/flowers/flower5": "yellow four petal flower",
    "plants/flowers/flower6": "pink star flower",
    "plants/flowers/flower7": "orange cluster flowers",
    "plants/flowers/flower8": "pink cup flower",
    "plants/flowers/flower9": "pink flower with dew drops",
    "plants/flowers/yellow-flower": "yellow daisy flower",
    "plants/flowers/chemparathi": "small hibiscus",
    "plants/flowers/pigface": "pigface",
    "plants/flowers/anemone_red": "red anemone",
    "sports/australian_rules_football": "australian rules football",
    "vehicles/construction/dumper": "dumper",
    "vehicles/ship/chineseJunk": "chinese sailing ship",
}

# ---------------------------------------- what is one thing (the identity)

# 1. By name. A name's noun: cut it at the first of CUT, drop these words, take what is
#    last, in the singular. One noun
# in one class is one identity, in all styles. A face has no noun: there the whole name
# counts until joined below.
CUT = {
    "with",
    "without",
    "of",
    "in",
    "on",
    "and",
    "fluttering",
    "eating",
    "grazing",
    "from",
}
DROP = """
    a an arrival baby big black blue brown colourful departure eared face facing front
    golden green large little male man's oncoming pink red sitting sleeping sliced small
    the two white wild woman's yellow
"""
#    Nouns too general to join anything by themselves: the word before them stays.
GENERAL = """
    bag ball boot bottle bowl box bread building bus cake cap car castle clothe cream
    drink engine fish flower fruit game glass hat helmet leaf leave light note pepper
    plant post pot railway root scale score ship shoe tree truck
"""
# And names whose noun says too little or too much: these stand for themselves (joined,
# where fit, by hand).
APART = {
    "plant": (
        "yellow cup flower, yellow star flower, yellow daisy flower, "
        "yellow four petal flower, pink cup flower, pink star flower, "
        "pink flower with dew drops, purple flower, white flower, desert rose, "
        "potted plant"
    ),
    "music": "long drum",
    "bug": "lady beetle",
    "sport": "goal net",
    "clothing": "thong sandal",
    "vehicle": "kick scooter, light rail",
    "dish": "fortune cookie, honey pot, stuffed flatbread, curry rice",
    "drink": "baby bottle, glass of milk",
    "building": "Japanese castle, love hotel, house with garden, houses, house",
    "sealife": "sea lion",
}
# 2. By hand: what one would call the same thing, or hardly tell apart at 64 pixels,
#    whatever its name. A line each.
JOINS = {
    "face": [
        (
            "grinning face, beaming face with smiling eyes, "
            "grinning face with big eyes, grinning face with smiling eyes, "
            "grinning face with sweat, grinning squinting face"
        ),
        "face with tears of joy, rolling on the floor laughing",
        (
            "smiling face, slightly smiling face, upside-down face, "
            "smiling face with smiling eyes, smiling face with halo, "
            "smiling face with hearts, smiling face with tear"
        ),
        "smiling face with horns, angry face with horns",
        "smiling face with heart-eyes, star-struck",
        "smiling face with sunglasses, nerd face",
        (
            "kissing face, face blowing a kiss, kissing face with smiling eyes, "
            "kissing face with closed eyes"
        ),
        (
            "face with tongue, winking face with tongue, squinting face with tongue, "
            "zany face, face savoring food"
        ),
        (
            "neutral face, expressionless face, face without mouth, "
            "face with diagonal mouth, dotted line face"
        ),
        (
            "frowning face, slightly frowning face, confused face, worried face, "
            "disappointed face"
        ),
        (
            "face with open mouth, hushed face, astonished face, "
            "frowning face with open mouth, anguished face"
        ),
        "crying face, loudly crying face",
        "face holding back tears, pleading face",
        (
            "downcast face with sweat, anxious face with sweat, sad but relieved face, "
            "fearful face"
        ),
        "weary face, tired face, confounded face, persevering face",
        "sleepy face, sleeping face",
        "pensive face, relieved face",
        "unamused face, smirking face",
        "angry face, enraged face, face with symbols on mouth",
        "face with spiral eyes, face with crossed-out eyes",
        (
            "face with hand over mouth, face with open eyes and hand over mouth, "
            "face with peeking eye"
        ),
        "nauseated face, face vomiting",
        "hot face, cold face",
        "head shaking horizontally, head shaking vertically, shaking face",
        (
            "grinning cat, grinning cat with smiling eyes, cat with tears of joy, "
            "smiling cat with heart-eyes, cat with wry smile, kissing cat, "
            "pouting cat, crying cat, weary cat"
        ),
        "see-no-evil monkey, hear-no-evil monkey, speak-no-evil monkey",
        "skull, skull and crossbones",
    ],
    "vehicle": [
        (
            "automobile, taxi, police car, sport utility vehicle, sedan car, "
            "sports car, vw beetle"
        ),
        "racing car, race car",
        "fire engine, fire truck",
        "delivery truck, articulated lorry",
        "bus, trolleybus, green bus",
        "train, metro, tram, light rail, monorail, high-speed train, bullet train",
        "railway car, tram car",
        "aerial tramway, mountain cableway",
        "ship, passenger ship, ferry",
        "motor boat, speedboat, canoe",
        "sailboat, chinese sailing ship",
        "motor scooter, motorcycle",
    ],
    "dish": [
        "pot of food, shallow pan of food",
        "bread, baguette bread",
        "ice cream, shaved ice",
    ],
    "mammal": [
        "cow, bull, ox, zebu",
        "blue gnu, gnu calf",
        "sheep, lamb, ewe, ram",
        "deer, doe, wapiti, caribou",
        "dog, dingo, poodle",
        "camel, two-hump camel, dromedary",
        "rhinoceros, black rhino",
        "mouse, rat",
        "tiger, leopard",
        "chipmunk, squirrel",
    ],
    "clothing": [
        "glasses, sunglasses",
        "man’s shoe, running shoe",
        "handbag, purse, clutch bag",
        "woman’s sandal, high-heeled shoe",
        "military helmet, rescue worker’s helmet",
    ],
    "produce": [
        "hot pepper, chile pepper",
        "bell pepper, green pepper",
        "tangerine, orange",
        "apricot, peach",
        "almond, pecan",
        "leafy green, lettuce",
        "ear of corn, yellow corn",
        "garlic, string of garlic",
    ],
    "building": [
        "house, houses, house with garden, derelict house",
        "hotel, love hotel",
        "castle, Japanese castle",
        "church, wedding",
    ],
    "music": ["violin, cello", "drum, drum kit"],
    "plant": [
        "hibiscus, hibiscus flower",
        "shamrock, four leaf clover",
        "fallen leaf, leaf fluttering in wind, maple leaf",
        "rose, wilted flower",
        "deciduous tree, pili nut tree, holm oak",
        "leafless tree, birch in winter",
        "mushroom, cep",
    ],
    "sport": [
        "tennis, tennis ball, tennis racket",
        "cricket game, cricket ball",
        "baseball, softball",
    ],
    "tool": [
        "shovel, garden spade",
        "hammer, large metal mallet, pick",
        "chains, link",
        "dagger, crossed swords",
    ],
    "sealife": ["seal, sea lion"],
    "bird": [
        "chicken, brown hen",
        "duck, drake",
        "goose, gander",
        "seagull, silver gull",
        "peacock, albino peahen",
        "dove, pigeon",
        "bird, blackbird",
        "parrot, adelaide rosella, rainbow lorikeet",
        "ostrich, rhea",
    ],
    "drink": ["cup with straw, bubble tea"],
    "bug": ["cricket, grasshopper", "butterfly, xanthia moth"],
}
# 3. By pixels: two pictures of one class and style, composed on white, less the mean
#    picture of that class and style
# (else the yellow disc makes all faces one), correlate with CORRELATION or more, as
# they are or one mirrored.


def words_of(name: str) -> list[str]:
    return name.lower().replace("’", "'").replace("-", " ").split()


def singular(word: str) -> str:
    """Good enough for the names at hand."""
    if word.endswith(("ss", "us", "is", "ris", "ceros")) or len(word) < 4:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "toes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


def noun(name: str, klass: str = "") -> str:
    """What the picture is of, by its name alone."""
    if klass == "face" or name in APART.get(klass, "").split(", "):
        return name
    words = words_of(name)
    cut = next((i for i, w in enumerate(words) if i and w in CUT), len(words))
    words = [singular(w) for w in words[:cut] if w not in DROP.split()] or words
    return " ".join(words[-2:] if words[-1] in GENERAL.split() else words[-1:])


class Groups:
    """Union-find over the pictures; each join remembers why."""

    def __init__(self):
        self.parent: dict[tuple, tuple] = {}

    def root(self, x: tuple) -> tuple:
        self.parent.setdefault(x, x)
        while self.parent[x] != x:
            x = self.parent[x]
        return x

    def join(self, a: tuple, b: tuple) -> bool:
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)
        return a != b


def correlation(images: np.ndarray) -> np.ndarray:
    """Pearson correlation of every pair of RGBA pictures, by rule 3.

    The pictures are of one class and style.
    """
    rgb, alpha = images[..., :3].astype(np.float64), images[..., 3:] / 255.0
    shown = rgb * alpha + 255 * (1 - alpha)
    shown -= shown.mean(0, keepdims=True)
    plain, mirrored = (x.reshape(len(x), -1) for x in (shown, shown[:, :, ::-1]))
    plain, mirrored = (x - x.mean(1, keepdims=True) for x in (plain, mirrored))
    lengths = np.linalg.norm(plain, axis=1)
    return np.maximum(plain @ plain.T, plain @ mirrored.T) / np.outer(lengths, lengths)


def identities(rows: list[dict]) -> list[tuple[float, str, str, str, str]]:
    """Write row["identity"] into every row by the three rules.

    Returns the pairs joined by pixels.
    """
    groups, known = Groups(), {(r["class"], r["name"]) for r in rows}
    for c, n in known:
        groups.join((c, "noun", noun(n, c)), (c, "name", n))
    label = set()
    for c, lines in JOINS.items():
        for line in lines:
            first, *rest = line.split(", ")
            missing = [
                n
                for n in (first, *rest)
                if not any(k == c and noun(x, c) == noun(n, c) for k, x in known)
            ]
            assert not missing, f"JOINS[{c!r}] names what is not there: {missing}"
            for n in rest:
                groups.join((c, "noun", noun(first, c)), (c, "noun", noun(n, c)))
            label.add((c, noun(first, c)))
    by_pixels = []
    for (c, s), part in sorted(split_by(rows, "class", "style").items()):
        r = correlation(np.stack([row["pixels"] for row in part]))
        for i, j in combinations(range(len(part)), 2):
            a, b = ((c, "name", part[k]["name"]) for k in (i, j))
            if r[i, j] >= CORRELATION and groups.root(a) != groups.root(b):
                by_pixels.append(
                    (float(r[i, j]), s, c, part[i]["name"], part[j]["name"])
                )
    for _, _, c, a, b in by_pixels:
        groups.join((c, "name", a), (c, "name", b))
    members = defaultdict(set)
    for c, n in known:
        members[groups.root((c, "name", n))].add(noun(n, c))
    # An identity is called by the first noun of its hand-written line, else by its
    # shortest noun.
    called = {
        root: f"{root[0]}/"
        + min(nouns, key=lambda n: ((root[0], n) not in label, len(n), n))
        for root, nouns in members.items()
    }
    for row in rows:
        row["identity"] = called[groups.root((row["class"], "name", row["name"]))]
    return sorted(by_pixels, reverse=True)


def seal(rows: list[dict]) -> None:
    """Write row["part"].

    Sealed is a third of the identities per class, and a third of those with a
    photograph, chosen by hash.
    """
    strata = defaultdict(set)
    with_photo = {r["identity"] for r in rows if r["style"] == "photo"}
    with_emoji = {r["identity"] for r in rows if r["style"] != "photo"}
    for r in rows:
        strata[
            r["class"], r["identity"] in with_photo, r["identity"] in with_emoji
        ].add(r["identity"])
    sealed = set()
    for members in strata.values():
        order = sorted(
            members,
            key=lambda i: hashlib.sha256(f"five styles: {i}".encode()).hexdigest(),
        )
        sealed |= set(
            order[: max(1, round(len(order) / SEALED_PART)) if len(order) > 1 else 0]
        )
    for r in rows:
        r["part"] = "sealed" if r["identity"] in sealed else "development"


# ---------------------------------------- pictures


def fit(image: Image.Image, margin: int = 0) -> np.ndarray:
    """Cut to what is visible, scale into SIZE x SIZE and centre.

    The aspect ratio is kept, and colours are weighted by alpha.
    """
    pixels = np.asarray(image.convert("RGBA"))
    y, x = np.nonzero(pixels[..., 3] > 16)
    image = Image.fromarray(pixels[y.min() : y.max() + 1, x.min() : x.max() + 1])
    scale = (SIZE - 2 * margin) / max(image.size)
    size = tuple(max(1, round(s * scale)) for s in image.size)
    small = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(small, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return clean(canvas)


def clean(image: Image.Image) -> np.ndarray:
    """RGBA pixels, zero where nothing shows."""
    pixels = np.array(image.convert("RGBA"))
    assert pixels.shape == (SIZE, SIZE, 4), pixels.shape
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def draw(svg: Path) -> np.ndarray:
    import cairosvg

    return clean(
        Image.open(
            io.BytesIO(
                cairosvg.svg2png(url=str(svg), output_width=SIZE, output_height=SIZE)
            )
        )
    )


def emoji_rows(sources: Path) -> list[dict]:
    """One row for each emoji and each of the four drawn styles."""
    google, twitter = sources / "google/package", sources / "twitter/package"
    openmoji = sources / "openmoji/package"
    names = {
        x["hexcode"]: x["annotation"]
        for x in json.loads((openmoji / "data/openmoji.json").read_text("utf-8"))
    }
    left_out = {(c, n) for c, line in LEFT_OUT_EMOJI.items() for n in line.split(", ")}
    rows = []
    for e in json.loads((google / "emoji.json").read_text("utf-8")):
        klass = CLASS_OF.get(e["subcategory"])
        codes = (e["unified"], e["non_qualified"], e["unified"].replace("-FE0F", ""))
        code = next(
            (
                c
                for c in codes
                if c in names and (openmoji / f"black/svg/{c}.svg").exists()
            ),
            None,
        )
        if (
            not klass
            or not code
            or not e["has_img_google"]
            or not e["has_img_twitter"]
            or "skin_variations" in e
        ):
            continue
        if (klass, names[code]) in left_out:
            left_out.remove((klass, names[code]))
            continue
        pixels = {
            "noto": clean(Image.open(google / "img/google/64" / e["image"])),
            "twemoji": clean(Image.open(twitter / "img/twitter/64" / e["image"])),
            "openmoji": draw(openmoji / f"color/svg/{code}.svg"),
            "outline": draw(openmoji / f"black/svg/{code}.svg"),
        }
        rows += [
            {"style": s, "class": klass, "name": names[code], "pixels": p}
            for s, p in pixels.items()
        ]
    assert not left_out, f"LEFT_OUT_EMOJI names what is not there: {left_out}"
    return rows


def photo_name(stem: str, description: str) -> str:
    """The package's own description without article and full stop, lower case."""
    text = re.sub(r"[.!(,].*", "", description.replace("’", "'").strip())
    return PHOTO_NAMES.get(stem) or re.sub(r"^(an?|the) ", "", text.lower()).strip()


def photo_rows(sources: Path) -> list[dict]:
    stamps = sources / "tuxpaint/usr/share/tuxpaint/stamps"
    rows, unused = [], set(WHY_NOT) | set(PHOTO_NAMES)
    for path in sorted(stamps.rglob("*.png")):
        stem = path.relative_to(stamps).with_suffix("").as_posix()
        unused.discard(stem)
        folder = max(
            (f for f in FOLDERS if stem == f or stem.startswith(f + "/")),
            key=len,
            default=None,
        )
        if folder is None or "cartoon" in path.parts or stem in WHY_NOT:
            continue
        name = photo_name(
            stem, path.with_suffix(".txt").read_text("utf-8").split("\n")[0]
        )
        row = {
            "style": "photo",
            "class": FOLDERS[folder],
            "name": name,
            "pixels": fit(Image.open(path), margin=1),
        }
        rows.append(row)
    assert not unused, (
        f"the tables name photographs that are not there: {sorted(unused)}"
    )
    return rows


# ---------------------------------------- writing

SOURCES = {
    "photo": {
        "styles": ["photo"],
        "what": (
            "Tux Paint Stamps 2022.06.04 (Debian package tuxpaint-stamps-default), "
            "cut-out photographs"
        ),
        "licence": "GPL-2",
        "credit": (
            "Photographs: Tux Paint Stamps, copyright 2002-2022 Bill Kendrick and "
            "contributors, https://tuxpaint.org, licensed under the GNU General Public "
            "License, version 2."
        ),
    },
    "noto": {
        "styles": ["noto"],
        "what": "Noto Emoji 2.048 (npm emoji-datasource-google 16.0.0, img/google/64)",
        "licence": "Apache-2.0",
        "credit": (
            "Noto Emoji, copyright Google LLC, "
            "https://github.com/googlefonts/noto-emoji, licensed under the Apache "
            "License, version 2.0."
        ),
    },
    "twemoji": {
        "styles": ["twemoji"],
        "what": "Twemoji 16.0.1 (npm emoji-datasource-twitter 16.0.0, img/twitter/64)",
        "licence": "CC-BY-4.0",
        "credit": (
            "Twemoji, copyright Twitter, Inc. and other contributors, "
            "https://github.com/jdecked/twemoji, graphics licensed under CC BY 4.0, "
            "https://creativecommons.org/licenses/by/4.0/."
        ),
    },
    "openmoji": {
        "styles": ["openmoji", "outline"],
        "what": (
            "OpenMoji 17.0.0 (npm openmoji 17.0.0, colour and black SVG, "
            "drawn at 64 x 64 with cairosvg)"
        ),
        "licence": "CC-BY-SA-4.0",
        "credit": (
            "All emojis designed by OpenMoji, https://openmoji.org, the open-source "
            "emoji and icon project. License: CC BY-SA 4.0, "
            "https://creativecommons.org/licenses/by-sa/4.0/."
        ),
    },
}
CHANGED = (
    "Changed here: selected, sorted into classes, cut and scaled to 64 x 64 pixels, "
    "stored as lossless WebP."
)
COLUMNS = ["file", "style", "class", "identity", "name", "part"]


def split_by(rows: list[dict], *keys: str) -> dict:
    parts = defaultdict(list)
    for r in rows:
        parts[tuple(r[k] for k in keys) if len(keys) > 1 else r[keys[0]]].append(r)
    return parts


def name_files(rows: list[dict]) -> None:
    """Write row["file"]: style/class/name.webp.

    A second picture of the same name gets a number.
    """
    seen = Counter()
    for r in rows:
        slug = re.sub(r"[^a-z0-9]+", "-", r["name"].lower().replace("’", "")).strip("-")
        seen[key := (r["style"], r["class"], slug)] += 1
        number = f"-{seen[key]}" if seen[key] > 1 else ""
        r["file"] = f"{r['style']}/{r['class']}/{slug}{number}.webp"


def table(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def webp(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(
        out, "WEBP", lossless=True, quality=90, method=6, exact=True
    )
    assert (
        np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("RGBA")) == pixels
    ).all()
    return out.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """The same bytes on every run: sorted, stored, one date."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, files[name])


def readme(rows: list[dict], by_pixels: list[tuple]) -> str:
    count = Counter((r["style"], r["class"], r["part"]) for r in rows)
    ids = split_by(rows, "identity")
    things = Counter((v[0]["class"], v[0]["part"]) for v in ids.values())
    sealed = sum(n for (_, part), n in things.items() if part == "sealed")
    lines = [
        "# Five Styles",
        "",
        (
            "Everyday things in five styles, 64 x 64 pixels with alpha. "
            "`tools/build_five_styles.py` built it, wrote this\n"
            "page and holds every table of the curation. Load it with "
            "`transfer_course.vision.data.styles()`."
        ),
        "",
        "## Sources and licences",
        "",
        (
            "Each archive has one source, its own licence (`LICENSE.txt` inside) and "
            "an `index.csv`."
        ),
        "",
        "| archive | styles | source | licence |",
        "|---|---|---|---|",
        *(
            f"| `{a}.zip` | {', '.join(s['styles'])} | {s['what']} | {s['licence']} |"
            for a, s in SOURCES.items()
        ),
        "",
        "Credit these wherever pictures are shown:",
        "",
        *(f"- {s['credit']}" for s in SOURCES.values()),
        "",
        CHANGED,
        "",
        "## Counts",
        "",
        (
            f"{len(rows)} pictures, {len(ids)} identities, of which {sealed} are "
            "sealed. Development + sealed:"
        ),
        "",
        "| class | " + " | ".join(STYLES) + " | identities |",
        "|---|" + "---|" * (len(STYLES) + 1),
    ]
    for c in SUBCATEGORIES:
        cells = [[count[s, c, p] for p in PARTS] for s in STYLES] + [
            [things[c, p] for p in PARTS]
        ]
        lines.append(
            f"| {c} | "
            + " | ".join(f"{d} + {s}" if d + s else "" for d, s in cells)
            + " |"
        )
    total = [
        [sum(count[s, c, p] for c in SUBCATEGORIES) for p in PARTS] for s in STYLES
    ]
    total.append([len(ids) - sealed, sealed])
    lines.append("| all | " + " | ".join(f"{d} + {s}" for d, s in total) + " |")
    joined = "; ".join(f"{a} = {b} ({s} {c}, {r:.3f})" for r, s, c, a, b in by_pixels)
    lines += [
        "",
        "## What is one thing",
        "",
        (
            "Splits are by *identity*: a test thing was never seen in any style. Two "
            "pictures share an identity when they\n"
            "are of one class and a chain of these rules leads from one to the other "
            "(the result: `identities.csv`):"
        ),
        "",
        (
            "1. **By name.** The same noun: the name cut at *with, of, in, and …*, "
            "without colours, sizes and words\n"
            "   like *face*, its last word in the singular. So *tiger face*, *tiger* "
            "and the photograph *sumatran tiger*\n"
            "   are one, and an emoji is one thing in its four drawn styles. Nouns "
            "that say too little (*car, ball,\n"
            "   tree …*) keep the word before them.\n"
            "2. **By hand.** A table in the script joins what has two names or is "
            "hardly told apart at 64 pixels (grinning\n"
            "   faces, the nine cat faces, taxi and police car, dove and pigeon).\n"
            "3. **By pixels.** Two pictures of one class and style, composed on "
            "white, less the mean picture of that\n"
            f"   class and style, correlate with {CORRELATION} or more, as they are or "
            "one of them mirrored. Pairs that\n"
            f"   the first two rules had left apart, {len(by_pixels)}: "
            f"{joined or 'none'}."
        ),
        "",
        (
            f"**Sealed** is one identity in {SEALED_PART} of each class (and of those "
            "with a photograph), by the hash\n"
            "of its name: every class has both parts in every style it occurs in. The "
            "rest is development, which\n"
            "`styles()` gives unless asked otherwise."
        ),
        "",
    ]
    return "\n".join(lines)


def identity_table(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["identity", "part", "emoji", "photographs"])
    for identity, part in sorted(split_by(rows, "identity").items()):
        emoji = sorted({r["name"] for r in part if r["style"] != "photo"})
        photos = sorted(
            r["file"].split("/")[-1].removesuffix(".webp")
            for r in part
            if r["style"] == "photo"
        )
        writer.writerow(
            [identity, part[0]["part"], "; ".join(emoji), "; ".join(photos)]
        )
    return out.getvalue()


def build(sources: Path, out: Path = OUT) -> list[dict]:
    """Read the sources, decide, write everything."""
    rows = photo_rows(sources) + emoji_rows(sources)
    by_pixels = identities(rows)
    seal(rows)
    rows.sort(key=lambda r: (STYLES.index(r["style"]), r["class"], r["name"]))
    name_files(rows)
    rows.sort(key=lambda r: (STYLES.index(r["style"]), r["file"]))
    for (style, klass), part in split_by(rows, "style", "class").items():
        assert len({r["part"] for r in part}) == 2, f"{style} {klass} lacks a part"
    out.mkdir(parents=True, exist_ok=True)
    for archive, source in SOURCES.items():
        mine = [r for r in rows if r["style"] in source["styles"]]
        licence = (ROOT / "tools" / "licences" / f"{source['licence']}.txt").read_text(
            "utf-8"
        )
        head = f"{source['what']}\n{source['credit']}\n{CHANGED}\n\n{'=' * 80}\n\n"
        files = {r["file"]: webp(r["pixels"]) for r in mine}
        files |= {
            "index.csv": table(mine).encode(),
            "LICENSE.txt": (head + licence).encode(),
        }
        write_zip(out / f"{archive}.zip", files)
    (out / "identities.csv").write_text(identity_table(rows), "utf-8")
    (out / "README.md").write_text(readme(rows, by_pixels), "utf-8")
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    built = build(Path(sys.argv[1]))
    print(
        Counter(r["style"] for r in built),
        f"{sum(p.stat().st_size for p in OUT.iterdir()) / 1e6:.1f} MB",
    )
    print("now run: python tools/checksums.py")
