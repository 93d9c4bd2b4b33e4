"""Build the bundled data set Everyday Photos.

Real photographs of everyday things, cut out and in scenes, up to 192 px.

    python tools/build_photos.py SOURCES_FOLDER

It writes transfer_course/assets/everyday_photos/. SOURCES_FOLDER holds the two sources,
unpacked. Fetch them there with the ordinary tools:

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_2022.06.04-1_all.deb tuxpaint
    apt-get download gcompris-qt-data
    dpkg-deb -x gcompris-qt-data_3.1-2_all.deb gcompris

It needs Pillow with WebP and NumPy, and tools/build_five_styles.py beside it, whose
rules and names it uses. With the same versions of these the result is the same bytes.
The tables below are the whole curation: what counts as which class, what is left out
and why, what is one identity.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import build_five_styles as five
import numpy as np
from PIL import Image

OUT = five.ROOT / "transfer_course" / "assets" / "everyday_photos"
SIDE = 192  # pixels of the long side, at most
# Pixels of the short side of a background, at most: crops of it are shown.
BACKGROUND_SIDE = 160
QUALITY = 90
DOMAINS = ["cutout", "scene"]
SEALED_PART = 4  # about one identity in four is sealed

# ---------------------------------------- what counts as which class

CLASSES = [
    "mammal",
    "building",
    "tool",
    "bird",
    "fish",
    "plant",
    "fruit",
    "coin",
    "vegetable",
    "vehicle",
    "windmill",
    "kitchenware",
]
# Where Five Styles has another class for it; identities carry that one's name.
KINDS = {"fish": "sealife", "fruit": "produce", "vegetable": "produce"}
# Mammals here, sealife there.
SEA_MAMMALS = {"dolphin", "narwhal", "orca", "sea lion", "whale"}

# Folders of Tux Paint's stamps; the longest prefix decides.
FOLDERS = {
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/mammals": "mammal",
    "animals/marsupials": "mammal",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "household/arttools/scissors_small_closed": "tool",
    "household/arttools/scissors_small_open": "tool",
    "household/dishes": "kitchenware",
    "household/kettle": "kitchenware",
    "household/tools": "tool",
    "military/vehicles": "vehicle",
    "plants": "plant",
    "plants/trees/rambutan": "fruit",  # a bunch of fruit
    "symbols/money/canadian/coins": "coin",
    "symbols/money/euro/coins": "coin",
    "symbols/money/japanese": "coin",
    "symbols/money/us/coins": "coin",
    "vehicles": "vehicle",
}
# Left out besides what Five Styles leaves out, and everything under a folder called
# cartoon.
LEFT_OUT_STAMPS = {
    "no class of ours": "animals/fish/lobster animals/fish/shrimp",
    "a fungus, neither plant nor vegetable": (
        "plants/mushrooms/cep plants/mushrooms/cep-1 plants/mushrooms/cep-2 "
        "food/vegetables/mushroom"
    ),
    "mirror image of another": "military/vehicles/bradley_mirror",
    "hardly anything shows on white": "household/dishes/glass",
    "toy or model": "vehicles/ship/chineseJunk vehicles/ship/walnutBoat",
    "a part, not a vehicle": "vehicles/wheel_tractor",
}
# A stamp's name is its description in the package, as in Five Styles; these say
# something else first.
STAMP_NAMES = {
    "household/arttools/scissors_small_closed": "closed scissors",
    "household/arttools/scissors_small_open": "open scissors",
    "military/vehicles/bradley": "troop carrier",
    "military/vehicles/f22_raptor": "fighter jet",
    "military/vehicles/infantry-stryker": "wheeled troop carrier",
    "military/vehicles/ww2_german_gun": "tank",
    "symbols/money/canadian/coins/001penny": "canadian penny",
    "symbols/money/canadian/coins/005nickel": "canadian nickel",
    "symbols/money/canadian/coins/010dime": "canadian dime",
    "symbols/money/canadian/coins/025quarter": "canadian quarter",
    "symbols/money/canadian/coins/100loonie": "loonie",
    "symbols/money/canadian/coins/200toonie": "toonie",
    "symbols/money/euro/coins/001": "one euro cent",
    "symbols/money/euro/coins/002": "two euro cents",
    "symbols/money/euro/coins/005": "five euro cents",
    "symbols/money/euro/coins/010": "ten euro cents",
    "symbols/money/euro/coins/020": "twenty euro cents",
    "symbols/money/euro/coins/050": "fifty euro cents",
    "symbols/money/euro/coins/100": "one euro",
    "symbols/money/euro/coins/200": "two euros",
    "symbols/money/japanese/yen001": "one yen",
    "symbols/money/japanese/yen005": "five yen",
    "symbols/money/japanese/yen010": "ten yen",
    "symbols/money/japanese/yen050": "fifty yen",
    "symbols/money/japanese/yen100": "hundred yen",
    "symbols/money/japanese/yen500": "five hundred yen",
    "symbols/money/us/coins/001penny": "us penny",
    "symbols/money/us/coins/005nickel": "us nickel",
    "symbols/money/us/coins/010dime": "us dime",
    "symbols/money/us/coins/025quarter": "us quarter",
    "symbols/money/us/coins/050kennedy-halfdollar": "half dollar",
    "symbols/money/us/coins/100sacagawea": "us dollar",
}

# GCompris: every picture of these activities, by its path in the activity's resource
# folder. A line each: class or why it is left out, then the pictures with their names.
SCENES = {
    "erase": {
        "mammal": (
            "alpaca, calf=young cow, camels=camel, cheetah, dolphin, "
            "flying_fox=fruit bat, giraffe, goat, gorilla, horse, "
            "long_nosed_monkey=proboscis monkey, macaque, meerkats=meerkat, "
            "nubian_ibex=nubian ibex, pika, red_panda=red panda, rhinoceros, squirrel"
        ),
        "bird": (
            "gosling, heron, kingfisher, northern_harrier=northern harrier, penguin, "
            "spoonbills=spoonbill, swans=swan, toucan"
        ),
        "- no class of ours": "bee, butterfly, caterpillar, chamaeleon, crab",
        "- the only one under its licence": "gibbon, kitten",
    },
    "explore_farm_animals": {
        "mammal": (
            "animals/cat, animals/cow, animals/dog, animals/horse, animals/pig, "
            "animals/sheep"
        ),
        "bird": "animals/chicken, animals/duck, animals/owl",
    },
    "explore_world_animals": {
        "mammal": (
            "animals/bison, animals/giraffe, animals/hedgehog, animals/jaguar, "
            "animals/kangaroo, animals/koala, animals/lemur, animals/moose, "
            "animals/narwhal, animals/panda, animals/polar_bear=polar bear"
        ),
        "bird": "animals/scarlet_macaw=scarlet macaw",
        "- no class of ours": "animals/chameleon, animals/crocodile, animals/dragon",
    },
    "explore_monuments": {
        "building": (
            "egypt/bentPyramid=bent pyramid, egypt/greatPyramidOfGiza=great pyramid, "
            "egypt/meidumPyramid=meidum pyramid, egypt/redPyramid=red pyramid, "
            "france/arlesAmphitheater=arles amphitheatre, "
            "france/chateaudeChambord=chambord castle, "
            "france/chateaudeChenonceau=chenonceau castle, "
            "france/citedeCarcassonne=walls of carcassonne, "
            "france/eiffelTower=eiffel tower, france/montStMichel=mont saint michel, "
            "france/palaisdesPapes=palace of the popes, "
            "france/pontduGard=pont du gard, france/reimsCathedral=reims cathedral, "
            "france/rocamadour=rocamadour, germany/aulaPalatina=trier basilica, "
            "germany/berlinCathedral=berlin cathedral, "
            "germany/brandenburgGate=brandenburg gate, "
            "germany/neuschwansteinCastle=neuschwanstein castle, "
            "germany/schwerinPalace=schwerin palace, "
            "germany/trierImperialBaths=trier imperial baths, "
            "germany/wormsCathedral=worms cathedral, india/charminar=charminar, "
            "india/gatewayofIndia=gateway of india, india/goldenTemple=golden temple, "
            "india/greatStupa=great stupa, india/hawaMahal=hawa mahal, "
            "india/konarkSunTemple=konark sun temple, "
            "india/mysorePalace=mysore palace, india/qutubMinar=qutb minar, "
            "india/rangGhar=rang ghar, india/victoriaMemorial=victoria memorial, "
            "usa/castillodeSanMarcos=castillo de san marcos, "
            "usa/georgeWashingtonBirthplace=washington birthplace, "
            "usa/lincolnMemorial=lincoln memorial, wonders/chichenItza=chichen itza, "
            "wonders/colosseum=colosseum, wonders/greatWallofChina=great wall, "
            "wonders/petra=petra, wonders/tajMahal=taj mahal"
        ),
        "- a landscape or ruins in one": (
            "india/ajantaCave, usa/canyondeChelly, usa/fortSumter, usa/navajo, "
            "wonders/machuPicchu"
        ),
        "- a statue, not a building": (
            "usa/cabrillo, usa/mountRushmore, usa/statueofLiberty, "
            "wonders/christTheRedeemer"
        ),
        "- black and white, from the air": "usa/castleClinton",
    },
    "details": {
        "building": (
            "image/Chenonceau_background=chenonceau castle, "
            "image/EgeskovSlotSpejling_background=egeskov castle, "
            "image/GizahPyramids_background=pyramids of giza, "
            "image/Louvre_2007_02_24_c_background=louvre, "
            "image/Nagoya_background=nagoya castle, "
            "image/NDP_background=notre dame de paris, "
            "image/Neuschwanstein_background=neuschwanstein castle, "
            "image/OperaSidney_background=sydney opera house, "
            "image/TajMahal_background=taj mahal, "
            "image/TourEiffel_background=eiffel tower, "
            "image/TowerBridgeLondon_background=tower bridge"
        ),
        "windmill": "image/FanoeWindmill_background=windmill on fanoe",
        "- the only one under its licence": "image/EilanDonanCastle_background",
        "- a painting": (
            "image/Eglise_dAuvers-sur-Oise_background, image/Gogh4_background, "
            "image/PortraitOfPereTanguy_background, "
            "image/Van_Gogh_The_Night_Cafe_background, "
            "image/VincentVanGogh0012_background, image/VincentVanGogh0013_background, "
            "image/VincentVanGogh0019_background, image/VincentVanGoghBridge_background"
        ),
    },
    "categorization": {
        "fish": (
            "fishes/fish1=angelfish, fishes/fish2=sand smelt, fishes/fish3=cichlid, "
            "fishes/fish4=yellow perch, fishes/fish5=anthias, "
            "fishes/fish6=discus fish, fishes/fish7=red mullet, fishes/fish8=salmon, "
            "fishes/fish9=clownfish, fishes/fish10=anthias, "
            "fishes/fish11=golden trout, fishes/fish12=axillary seabream, "
            "fishes/fish13=ocellated wrasse, fishes/fish14=anthias, "
            "fishes/fish15=brown wrasse, fishes/fish16=common seabream, "
            "fishes/fish17=grenadier, fishes/fish18=boarfish, "
            "fishes/fish19=red seabream, fishes/fish20=boxlip mullet, "
            "fishes/fish21=pompano, fishes/fish22=peacock wrasse, "
            "fishes/fish23=rainbow wrasse, fishes/fish24=rainbow wrasse, "
            "fishes/fish25=goldfish, fishes/fish26=sand smelt, fishes/fish27=weever, "
            "fishes/fish28=puffer fish"
        ),
        "tool": (
            "tools/cuttingTool=side cutters, tools/hammer1=hammer, "
            "tools/hammer2=hammer, tools/hammer3=sledgehammer, tools/hammer4=hammer, "
            "tools/hammer5=hammer, tools/hammer6=hammer, tools/hammer7=hammer, "
            "tools/hammer8=hammer, tools/hammer9=hammer, "
            "tools/measuringTape1=measuring tape, tools/measuringTape2=measuring tape, "
            "tools/measuringTape3=measuring tape, tools/measuringTape4=measuring tape, "
            "tools/measuringTape5=measuring tape, tools/measuringTape6=measuring tape, "
            "tools/multimeter1=multimeter, tools/multimeter2=multimeter, "
            "tools/multimeter3=multimeter, tools/nailCutter=nail clippers, "
            "tools/plier1=pliers, tools/plier2=pliers, tools/plier3=pliers, "
            "tools/plier4=pliers, tools/scissors1=scissors, tools/scissors2=scissors, "
            "tools/scissors3=scissors, tools/scissors4=scissors, "
            "tools/screwDriver=screwdriver, tools/screwDriver1=screwdriver, "
            "tools/screwDriver2=screwdriver, tools/screwDriver3=screwdriver, "
            "tools/sickle=sickle, tools/sideCutter1=side cutters, "
            "tools/tweezer=tweezers, tools/tweezer1=tweezers, tools/wrench=wrench, "
            "tools/wrench1=wrench"
        ),
        "building": (
            "monuments/IndiaGate=india gate, "
            "monuments/arcDeTriomphe=arc de triomphe du carrousel, "
            "monuments/bayterek=bayterek tower, monuments/burj=burj khalifa, "
            "monuments/cathedral=santiago cathedral, "
            "monuments/eiffelTower=eiffel tower, "
            "monuments/empireState=empire state building, "
            "monuments/greatWall=great wall, monuments/jucheTower=juche tower, "
            "monuments/kutubMinar=qutb minar, monuments/leMusee=louvre, "
            "monuments/leaningTowerOfPisa=leaning tower of pisa, "
            "monuments/monument1=dome of the rock, monuments/monument2=tetrapylon, "
            "monuments/monument3=jubilee church, "
            "monuments/operaHouse=sydney opera house, monuments/parthenon=parthenon, "
            "monuments/tajMahal=taj mahal, monuments/usCapitol=us capitol, "
            "monuments/zimniPalace=winter palace, others/igloo=igloo"
        ),
        "kitchenware": (
            "others/buffetset=cup and saucer, others/cup=tea cup, "
            "others/knife=cutlery, others/pan=frying pan, others/plate=plate, "
            "others/spoons=spoons"
        ),
        "windmill": (
            "renewable/windmill=chesterton windmill, "
            "renewable/windmill1=windmill on rhodes, "
            "renewable/windmill3=windmills on mykonos, "
            "renewable/windmill4=windmill in podgoschi, "
            "renewable/windmill5=windmill in schillingstedt, "
            "renewable/windmill7=nutley windmill, renewable/windmill8=white windmill, "
            "renewable/windmill9=black windmill, renewable/windmill11=windmill 11, "
            "renewable/windmill12=windmill 12, renewable/windmill13=windmill 13, "
            "renewable/windmill14=windmill 14, renewable/windmill15=windmill 15"
        ),
        "- a wind turbine, not a windmill": "renewable/windmill6",
        "- a model": "renewable/windmill2",
        "- a statue, not a building": (
            "monuments/christTheRedeemer, monuments/mountRushmore, "
            "monuments/statueOfLiberty, monuments/victoriaMemorial"
        ),
        "- the same photograph as in explore_monuments": (
            "monuments/brandenburgGate, monuments/colosseum, monuments/greatPyramid"
        ),
        "- lettering": "alphabets/alphabets, numbers/numbers",
        "- no class of ours": (
            "others/baseball, others/blackslate, others/bucket, others/bulb, "
            "others/chair, others/erasers, others/pencil, others/pillow, "
            "others/volleyball, others/weighingMachine, renewable/dam1, "
            "renewable/dam2, renewable/dam3, renewable/dam4, renewable/dam5, "
            "renewable/geothermal, renewable/solar1, renewable/solar2, "
            "renewable/solar3, renewable/solar4, renewable/solar5, renewable/solar6, "
            "renewable/solar7, renewable/solar8, tools/spray"
        ),
    },
}
# A photograph longer than 4:3 is cut to that around its middle, and these to a square
# around the point named (fractions of width and height), because what they show is not
# in the middle.
LONGEST = 4 / 3
FOCUS = {
    "erase/alpaca": (0.35, 0.5),
    "erase/cheetah": (0.74, 0.5),
    "erase/flying_fox": (0.65, 0.5),
    "erase/giraffe": (0.73, 0.5),
    "erase/heron": (0.42, 0.5),
    "erase/kingfisher": (0.4, 0.5),
    "erase/long_nosed_monkey": (0.4, 0.5),
    "erase/macaque": (0.68, 0.5),
    "erase/red_panda": (0.6, 0.5),
    "erase/rhinoceros": (0.66, 0.5),
    "erase/toucan": (0.28, 0.5),
    "explore_farm_animals/animals/owl": (0.55, 0.5),
    "explore_world_animals/animals/narwhal": (0.45, 0.5),
    "categorization/fishes/fish28": (0.36, 0.5),
    "categorization/monuments/IndiaGate": (0.7, 0.5),
    "categorization/monuments/kutubMinar": (0.66, 0.5),
}
# These fill their length, on a plain ground: they are made square by continuing the
# ground (its outermost pixels).
EDGE = 4
CONTINUED = {
    "categorization": (
        "fishes/fish17 tools/hammer1 tools/hammer2 tools/hammer4 tools/hammer6 "
        "tools/hammer7 tools/plier4 tools/scissors2 tools/scissors3 tools/scissors4 "
        "tools/screwDriver tools/screwDriver1 tools/sideCutter1 tools/wrench1"
    )
}
# A photograph on white (this part of its outermost pixels is at least so bright) is
# made square with white instead.
ON_WHITE, WHITE = 0.95, 240

# Parts of photographs (left, top, right, bottom as fractions) that show nothing of any
# class: `background="scene"` puts cut-outs on crops of these. All are public domain or
# CC0, so that they lie in one archive, and none is sealed.
BACKGROUNDS = {
    "categorization/others/blackslate": (0.07, 0.1, 0.93, 0.85),
    "categorization/others/erasers": (0, 0, 0.45, 1),
    "categorization/others/pillow": (0, 0, 1, 1),
    "categorization/renewable/dam1": (0, 0.1, 1, 1),
    "categorization/renewable/dam4": (0, 0, 1, 1),
    "categorization/renewable/dam5": (0, 0, 1, 1),
    "categorization/renewable/geothermal": (0, 0, 1, 1),
    "categorization/renewable/solar4": (0, 0, 1, 1),
    "categorization/renewable/solar7": (0, 0, 1, 1),
    "erase/crab": (0, 0, 1, 0.24),
    "erase/kingfisher": (0.62, 0, 1, 0.6),
    "erase/pika": (0.74, 0, 1, 0.9),
    "explore_farm_animals/animals/horse": (0, 0, 1, 0.28),
    "explore_monuments/egypt/bentPyramid": (0, 0.72, 1, 1),
    "explore_monuments/france/montStMichel": (0, 0, 0.55, 0.28),
    "explore_monuments/india/ajantaCave": (0, 0.55, 1, 1),
    "explore_monuments/india/goldenTemple": (0, 0.72, 1, 1),
    "explore_monuments/usa/canyondeChelly": (0, 0.05, 1, 1),
    "explore_monuments/usa/navajo": (0, 0, 1, 0.38),
    "explore_monuments/wonders/machuPicchu": (0, 0, 1, 0.5),
    "explore_world_animals/animals/chameleon": (0, 0.55, 0.4, 1),
    "explore_world_animals/animals/crocodile": (0.45, 0, 1, 0.35),
    "explore_world_animals/animals/dragon": (0, 0, 1, 0.3),
    "explore_world_animals/animals/narwhal": (0, 0, 1, 0.36),
}

# ---------------------------------------- what is one thing (the identity)

# 1. By name, as in Five Styles, whose identities keep their names. A building is called
#    by its whole name, for
# "cathedral" or "palace" says too little; so are windmills and coins.
WHOLE_NAMES = {"building", "windmill", "coin"}
# 2. By hand. A line each, of names here or (with a slash) identities of Five Styles.
JOINS = {
    "mammal": [
        "mammal/tiger, cheetah, jaguar",
        "mammal/llama, alpaca",
        "mammal/monkey, macaque",
        "mammal/goat, nubian ibex",
    ],
    "sealife": ["sealife/whale, narwhal", "sealife/blowfish, puffer fish"],
    "bird": ["bird/goose, gosling", "bird/parrot, scarlet macaw"],
    "building": [
        "great pyramid, bent pyramid, meidum pyramid, red pyramid, pyramids of giza",
        "building/tower, eiffel tower",
        "building/castle, nagoya castle",
        "building/temple, konark sun temple",
        "building/church, jubilee church",
        "building/house, washington birthplace",
    ],
    "tool": ["tool/hammer, sledgehammer"],
    "kitchenware": [
        "drink/teapot, teapot",
        "drink/teacup, tea cup, cup and saucer",
        "drink/mug, mug",
        "dish/pot, frying pan",
        "cutlery, spoons",
    ],
    "vehicle": ["vehicle/airplane, fighter jet", "tank, troop carrier"],
    "coin": [
        "penny, canadian penny, us penny",
        "nickel, canadian nickel, us nickel",
        "dime, canadian dime, us dime",
        "quarter, canadian quarter, us quarter",
        "one euro cent, two euro cents, five euro cents",
        "ten euro cents, twenty euro cents, fifty euro cents",
        "one euro, two euros",
        "five yen, fifty yen",
    ],
}
# 3. By pixels, as in Five Styles, over the pictures of one class and domain.

# ---------------------------------------- Qt resource files


def read_rcc(data: bytes) -> dict[str, bytes]:
    """Every file of a Qt resource file by its path.

    Layout: the header `qres`, the version, and the offsets of the tree, the data and
    the names, all big-endian. A node of the tree has the offset of its name, flags, and
    either its children (their number and the first) or where its data begin. A name is
    its length, a hash, and UTF-16BE. Entries are stored or compressed with zlib.
    """
    magic, version, tree, content, names = struct.unpack_from(">4s4I", data)
    assert magic == b"qres" and version <= 3, (magic, version)
    node_size = 14 if version < 2 else 22
    files = {}

    def walk(node: int, folder: str) -> None:
        at = tree + node * node_size
        name_at, flags = struct.unpack_from(">IH", data, at)
        (length,) = struct.unpack_from(">H", data, names + name_at)
        name = (
            data[names + name_at + 6 :][: 2 * length].decode("utf-16-be")
            if node
            else ""
        )
        path = f"{folder}/{name}" if folder else name
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">2I", data, at + 6)
            for child in range(first, first + count):
                walk(child, path)
            return
        # After language and territory.
        (entry,) = struct.unpack_from(">I", data, at + 10)
        (size,) = struct.unpack_from(">I", data, content + entry)
        body = data[content + entry + 4 :][:size]
        assert not flags & 4, f"{path} is compressed with zstd"
        # The first four bytes say how long it becomes.
        files[path] = zlib.decompress(body[4:]) if flags & 1 else body

    walk(0, "")
    return files


# ---------------------------------------- authors and licences

# GCompris says author, source and licence of every picture in README files beside the
# pictures. The `copyright` file of the Debian package names some of them too, but it
# still describes the pictures of an older version (its fish1 is a stingray, the
# package's an angelfish), so it isn't used. Two names are misspelt there:
MISSPELT = {
    "tools/screDriver": "tools/screwDriver",
    "germany/audaPalatina": "germany/aulaPalatina",
}
FIELDS = ("Copyright", "Source", "License", "Files", "Comment", "Comments")


def readme_entries(text: str) -> list[dict[str, str]]:
    """The paragraphs of such a README as dictionaries.

    A file name without its field belongs to Files.
    """
    entries = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        entry, field = defaultdict(str), "Files"
        for line in paragraph.split("\n"):
            name, colon, rest = line.partition(":")
            if colon and name in FIELDS:
                field, line = name, rest
            elif line.strip().endswith((".webp", ".svg", ".ogg")):
                field = "Files"
            entry[field] += f" {line.strip()}"
        entries.append({k: v.strip() for k, v in entry.items()})
    return entries


def credits(files: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """Author, licence and source of every picture that the READMEs name.

    The keys are the pictures' paths without suffix.
    """
    found = {}
    for path, data in files.items():
        if not path.endswith("README"):
            continue
        folder = path.removesuffix("README")
        for entry in readme_entries(data.decode()):
            said = re.search(
                r"https?://\S+", entry.get("Source", entry.get("Comment", ""))
            )
            author = entry.get("Copyright", "")
            if based := re.search(
                r"based on (?:a|an original) (?:photo|image) by (.+?), license",
                entry.get("Comment", ""),
            ):
                author = f"{based[1]}, adapted by {author.removeprefix('2000, 2008 ')}"
            for name in entry.get("Files", "").split():
                stem = folder + name.removesuffix(".webp")
                found[MISSPELT.get(stem, stem)] = {
                    "author": re.sub(r"^© ?\d{4} ", "", author),
                    "licence": entry["License"]
                    .replace(" ", "-")
                    .replace("Public-Domain", "public domain"),
                    "source": said[0] if said else "",
                }
    for entry in found.values():
        entry["licence"] = {"Public-domain": "public domain"}.get(
            entry["licence"], entry["licence"]
        )
    return found


# ---------------------------------------- reading the sources


def kind_of(klass: str, name: str) -> str:
    """Five Styles' class for this thing."""
    return (
        "sealife"
        if klass == "mammal" and name in SEA_MAMMALS
        else KINDS.get(klass, klass)
    )


def stamp_rows(sources: Path) -> list[dict]:
    """A row for each cut-out photograph of Tux Paint."""
    stamps = sources / "tuxpaint/usr/share/tuxpaint/stamps"
    out = {
        stem: why for why, stems in LEFT_OUT_STAMPS.items() for stem in stems.split()
    }
    rows, unused = [], set(out) | set(STAMP_NAMES)
    for path in sorted(stamps.rglob("*.png")):
        stem = path.relative_to(stamps).with_suffix("").as_posix()
        unused.discard(stem)
        folder = max(
            (f for f in FOLDERS if stem == f or stem.startswith(f + "/")),
            key=len,
            default=None,
        )
        if (
            folder is None
            or "cartoon" in path.parts
            or stem in out
            or stem in five.WHY_NOT
        ):
            continue
        text = path.with_suffix(".txt").read_text("utf-8").split("\n")[0]
        name = STAMP_NAMES.get(stem) or five.photo_name(stem, text)
        rows.append(
            {
                "class": FOLDERS[folder],
                "domain": "cutout",
                "name": name,
                "original": stem,
                "image": Image.open(path).convert("RGBA"),
                "archive": "tuxpaint",
                "author": "Tux Paint contributors",
                "licence": "GPL-2",
                "source": "https://tuxpaint.org/stamps/",
            }
        )
    assert not unused, f"the tables name stamps that are not there: {sorted(unused)}"
    return rows


def named(line: str) -> dict[str, str]:
    """Path -> name of one line of SCENES."""
    pairs = (item.partition("=") for item in line.split(", "))
    return {path: name or path.split("/")[-1] for path, _, name in pairs}


def scene_rows(sources: Path) -> tuple[list[dict], list[dict]]:
    """A row for each photograph of GCompris, and one for each background."""
    rows, backgrounds = [], []
    for activity, lines in SCENES.items():
        rcc = sources / f"gcompris/usr/share/gcompris-qt/rcc/{activity}.rcc"
        prefix = f"gcompris/src/activities/{activity}/resource/"
        inside = {
            p.removeprefix(prefix): d
            for p, d in read_rcc(rcc.read_bytes()).items()
            if p.startswith(prefix)
        }
        inside = {p.removeprefix("images/"): d for p, d in inside.items()}
        known = credits(inside)
        pictures = {p.removesuffix(".webp") for p in inside if p.endswith(".webp")}
        if activity == "details":  # the others are round pieces of these
            pictures = {p for p in pictures if p.endswith("_background")}
        listed = {path for line in lines.values() for path in named(line)}
        assert listed == pictures, (
            f"{activity}: {sorted(listed ^ pictures)} are in SCENES or in the package "
            "alone"
        )
        for klass, line in lines.items():
            for path, name in named(line).items():
                stem = f"{activity}/{path}"
                row = {
                    "class": klass,
                    "domain": "scene",
                    "name": name,
                    "original": stem,
                    **known.get(path, {}),
                }
                row["image"] = Image.open(io.BytesIO(inside[path + ".webp"])).convert(
                    "RGB"
                )
                if not klass.startswith("-"):
                    rows.append(row)
                if stem in BACKGROUNDS:
                    backgrounds.append(
                        {
                            **row,
                            "class": "",
                            "domain": "background",
                            "name": path.split("/")[-1],
                        }
                    )
    assert len(backgrounds) == len(BACKGROUNDS), "BACKGROUNDS names what is not there"
    for row in rows + backgrounds:
        assert row.get("author") and row.get("source"), (
            f"{row['original']} has no author or source"
        )
        row["archive"] = next(
            a for a, s in SOURCES.items() if row["licence"] in s["licences"]
        )
    return rows, backgrounds


# ---------------------------------------- identities and the sealed part


def five_styles() -> dict[str, dict]:
    """Every identity of Five Styles, from its archives.

    Each has its part and the nouns that are called by it.
    """
    found: dict[str, dict] = {}
    for archive in five.SOURCES:
        with zipfile.ZipFile(five.OUT / f"{archive}.zip") as z:
            for row in csv.DictReader(io.StringIO(z.read("index.csv").decode())):
                entry = found.setdefault(
                    row["identity"], {"part": row["part"], "nouns": set()}
                )
                entry["nouns"].add((row["class"], five.noun(row["name"], row["class"])))
    return found


def noun(name: str, kind: str) -> str:
    return name if kind in WHOLE_NAMES else five.noun(name, kind)


def identities(rows: list[dict], known: dict[str, dict]) -> list[tuple]:
    """Write row["identity"] into every row by the three rules.

    Returns the pairs joined by pixels.
    """
    groups, names = five.Groups(), {(r["kind"], r["name"]) for r in rows}
    for identity, entry in known.items():
        for kind, word in entry["nouns"]:
            groups.join(("identity", identity), ("noun", kind, word))
    for kind, lines in JOINS.items():
        for line in lines:
            first, *rest = line.split(", ")
            head = (
                ("identity", first)
                if "/" in first
                else ("noun", kind, noun(first, kind))
            )
            assert first in known or "/" not in first, (
                f"JOINS names {first}, which Five Styles doesn't have"
            )
            for name in rest:
                assert (kind, name) in names, (
                    f"JOINS[{kind!r}] names what is not there: {name}"
                )
                groups.join(head, ("noun", kind, noun(name, kind)))
    root = {(k, n): ("noun", k, noun(n, k)) for k, n in names}
    by_pixels = []
    for (klass, domain), part in sorted(five.split_by(rows, "class", "domain").items()):
        r = five.correlation(np.stack([five.fit(row["image"]) for row in part]))
        for i, j in combinations(range(len(part)), 2):
            a, b = (root[part[k]["kind"], part[k]["name"]] for k in (i, j))
            if r[i, j] >= five.CORRELATION and groups.root(a) != groups.root(b):
                by_pixels.append(
                    (
                        float(r[i, j]),
                        klass,
                        domain,
                        part[i]["name"],
                        part[j]["name"],
                        a,
                        b,
                    )
                )
    for *_, a, b in by_pixels:
        groups.join(a, b)
    called: dict[tuple, str] = {}
    for identity in known:
        there = called.setdefault(groups.root(("identity", identity)), identity)
        assert there == identity, (
            f"{there} and {identity} of Five Styles are joined here"
        )
    members = defaultdict(set)
    for node in root.values():
        members[groups.root(node)].add(node)
    first = {
        noun(line.split(", ")[0], k) for k, lines in JOINS.items() for line in lines
    }
    for group, nodes in members.items():
        word = min((w for _, _, w in nodes), key=lambda w: (w not in first, len(w), w))
        called.setdefault(group, f"{min(nodes)[1]}/{word}")
    for row in rows:
        row["identity"] = called[groups.root(root[row["kind"], row["name"]])]
    return [pair[:5] for pair in sorted(by_pixels, reverse=True)]


def seal(rows: list[dict], known: dict[str, dict]) -> None:
    """Write row["part"].

    What Five Styles has keeps its part. Of the others as many are sealed, by hash, as a
    quarter of a class takes, and at least one where a class would have no sealed
    picture in a domain.
    """
    part = {i: known[i]["part"] for i in {r["identity"] for r in rows} if i in known}
    for klass in CLASSES:
        mine = [r for r in rows if r["class"] == klass]
        ids = {r["identity"] for r in mine}
        new = sorted(
            ids - part.keys(),
            key=lambda i: hashlib.sha256(f"everyday photos: {i}".encode()).hexdigest(),
        )
        wanted = round(len(ids) / SEALED_PART) - sum(
            part.get(i) == "sealed" for i in ids
        )
        chosen = set(new[: max(0, wanted)])
        for domain in DOMAINS:
            there = {r["identity"] for r in mine if r["domain"] == domain}
            if there and not any(i in chosen or part.get(i) == "sealed" for i in there):
                chosen |= {next((i for i in new if i in there), None)} - {None}
        part |= {i: "sealed" if i in chosen else "development" for i in new}
    for r in rows:
        r["part"] = part[r["identity"]]


# ---------------------------------------- pictures


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Long side to at most `side`; colours are weighted by alpha."""
    scale = min(1, side / max(image.size))
    if scale == 1:
        return image
    size = tuple(max(1, round(s * scale)) for s in image.size)
    if image.mode == "RGBA":
        return (
            image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
        )
    return image.resize(size, Image.Resampling.LANCZOS)


def visible(image: Image.Image) -> Image.Image:
    """Cut to what shows."""
    y, x = np.nonzero(np.asarray(image)[..., 3] > 16)
    return image.crop((x.min(), y.min(), x.max() + 1, y.max() + 1))


def on_white(image: Image.Image) -> bool:
    """Whether a photograph was taken on white: its outermost pixels are."""
    pixels = np.asarray(image).min(-1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return (border >= WHITE).mean() >= ON_WHITE


def continued(image: Image.Image) -> Image.Image:
    """Made square.

    The outermost EDGE pixels go on as their mirror images, to and fro.
    """
    pixels = np.asarray(image)
    across = image.width > image.height  # rows are missing, else columns
    pixels = pixels if across else pixels.swapaxes(0, 1)
    missing = pixels.shape[1] - pixels.shape[0]
    before = np.pad(
        pixels[:EDGE], ((missing // 2, 0), (0, 0), (0, 0)), mode="symmetric"
    )[: missing // 2]
    after = np.pad(
        pixels[-EDGE:], ((0, missing - missing // 2), (0, 0), (0, 0)), mode="symmetric"
    )[EDGE:]
    square = np.concatenate([before, pixels, after])
    return Image.fromarray(
        np.ascontiguousarray(square if across else square.swapaxes(0, 1))
    )


def framed(image: Image.Image, stem: str) -> Image.Image:
    """A scene cut around what it shows, or made square where it stands on white."""
    width, height = image.size
    if on_white(image):
        square = Image.new("RGB", (max(image.size),) * 2, "white")
        square.paste(
            image, ((square.width - width) // 2, (square.height - height) // 2)
        )
        return square
    activity, _, path = stem.partition("/")
    if path in CONTINUED.get(activity, "").split():
        return continued(image)
    short, (x, y) = min(image.size), FOCUS.get(stem, (0.5, 0.5))
    long = round(short * (1 if stem in FOCUS else LONGEST))
    size = min(width, long), min(height, long)
    left, top = (
        round(min(max(f * n - s / 2, 0), n - s))
        for f, n, s in zip((x, y), image.size, size, strict=True)
    )
    return image.crop((left, top, left + size[0], top + size[1]))


def part_of(image: Image.Image, box: tuple) -> Image.Image:
    return image.crop(
        tuple(round(f * n) for f, n in zip(box, image.size * 2, strict=True))
    )


def webp(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=4)  # alpha is kept without loss
    return out.getvalue()


# ---------------------------------------- writing

SOURCES = {
    "tuxpaint": {
        "licences": ["GPL-2"],
        "texts": ["GPL-2"],
        "what": (
            "Tux Paint Stamps 2022.06.04 (Debian package tuxpaint-stamps-default), "
            "cut-out photographs"
        ),
        "credit": (
            "Cut-outs: Tux Paint Stamps, copyright 2002-2022 Bill Kendrick and "
            "contributors, https://tuxpaint.org, licensed under the GNU General Public "
            "License, version 2 or later."
        ),
    },
    "gcompris_public_domain": {
        "licences": ["public domain", "CC0-1.0"],
        "texts": ["CC0-1.0"],
        "what": (
            "GCompris 3.1 (Debian package gcompris-qt-data 3.1-2), scenes in the "
            "public domain or under CC0 1.0"
        ),
        "credit": (
            "Scenes: photographs in the public domain or dedicated to it under CC0 "
            "1.0, by the authors named in index.csv, selected by GCompris, "
            "https://gcompris.net."
        ),
    },
    "gcompris_cc_by_sa": {
        "licences": ["CC-BY-SA-4.0"],
        "texts": ["CC-BY-SA-4.0"],
        "what": (
            "GCompris 3.1 (Debian package gcompris-qt-data 3.1-2), scenes under CC "
            "BY-SA 4.0"
        ),
        "credit": (
            "Scenes: photographs by the authors named in index.csv, selected and "
            "cropped by GCompris, https://gcompris.net, licensed under CC BY-SA 4.0, "
            "https://creativecommons.org/licenses/by-sa/4.0/."
        ),
    },
}
CHANGED = (
    "Changed here: selected, sorted into classes, cut to what they show, scaled down "
    f"to at most {SIDE} pixels (backgrounds: {BACKGROUND_SIDE} on the short side), "
    "stored as WebP."
)
COLUMNS = [
    "file",
    "class",
    "domain",
    "identity",
    "name",
    "part",
    "author",
    "licence",
    "source",
    "original",
]


def table(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(
        out, COLUMNS, extrasaction="ignore", lineterminator="\n", restval=""
    )
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def archive_files(name: str, rows: list[dict]) -> dict[str, bytes]:
    """Pictures, index and licence of one archive."""
    source = SOURCES[name]
    texts = [
        (five.ROOT / "tools" / "licences" / f"{t}.txt").read_text("utf-8")
        for t in source["texts"]
    ]
    head = f"{source['what']}\n{source['credit']}\n{CHANGED}\n\n{'=' * 80}\n\n"
    files = {r["file"]: webp(r["image"]) for r in rows}
    return files | {
        "index.csv": table(rows).encode(),
        "LICENSE.txt": (head + "\n".join(texts)).encode(),
    }


def count_table(rows: list[dict]) -> list[str]:
    """Rows of development + sealed images for each class and domain.

    Then come the identities and the part that is cut out.
    """
    count = Counter((r["class"], r["domain"], r["part"]) for r in rows)
    ids = Counter(
        (r["class"], p)
        for (i, p), (r, *_) in five.split_by(rows, "identity", "part").items()
    )
    lines = [
        "| class | cutout | scene | all | identities | cut out |",
        "|---|---|---|---|---|---|",
    ]

    def line(name: str, classes: list[str]) -> str:
        cells = [
            [sum(count[c, d, p] for c in classes) for p in five.PARTS] for d in DOMAINS
        ]
        cells.append([sum(pair) for pair in zip(*cells, strict=True)])
        cells.append([sum(ids[c, p] for c in classes) for p in five.PARTS])
        share = sum(cells[0]) / sum(cells[2])
        return (
            f"| {name} | "
            + " | ".join(f"{d} + {s}" if d + s else "" for d, s in cells)
            + f" | {share:.0%} |"
        )

    return lines + [line(c, [c]) for c in CLASSES] + [line("all", CLASSES)]


def readme(
    rows: list[dict], backgrounds: list[dict], by_pixels: list[tuple], known: dict
) -> str:
    ids = five.split_by(rows, "identity")
    shared = sum(i in known for i in ids)
    both = sum(len({r["domain"] for r in part}) == 2 for part in ids.values())
    white = Counter(
        r["class"] for r in rows if r["domain"] == "scene" and r["on_white"]
    )
    joined = "; ".join(f"{a} = {b} ({d} {c}, {r:.3f})" for r, c, d, a, b in by_pixels)
    sealed = [r for r in rows if r["part"] == "sealed"]
    scenes = [r for r in rows if r["domain"] == "scene"]
    small = Counter(r["class"] for r in rows if max(r["image"].size) < 96)
    whites = ", ".join(f"{c} {n}" for c, n in white.most_common())
    smalls = ", ".join(f"{c} {n}" for c, n in small.most_common())
    return "\n".join(
        [
            "# Everyday Photos",
            "",
            (
                f"Real photographs of everyday things in {len(CLASSES)} classes, the "
                f"long side at most {SIDE} pixels, in two\n"
                "domains: cut-outs (`cutout`, with alpha) and photographs as they "
                "were taken (`scene`).\n"
                "`tools/build_photos.py` built it, wrote this page and holds every "
                "table of the curation. Load it with\n"
                "`transfer_course.photos()`."
            ),
            "",
            "## Sources and licences",
            "",
            (
                "Each archive has one source, its own licence (`LICENSE.txt` inside) "
                "and an `index.csv` that names author,\n"
                "licence and source of each image. `photos()` works without any one "
                "of them and says so in `.warnings`."
            ),
            "",
            "| archive | source | licence | images |",
            "|---|---|---|---|",
            *(
                (
                    f"| `{a}.zip` | {s['what']} | {' or '.join(s['licences'])} | "
                    f"{sum(r['archive'] == a for r in rows)} |"
                )
                for a, s in SOURCES.items()
            ),
            "",
            (
                "Authors and licences of the scenes are those that GCompris itself "
                "names in the README files beside the\n"
                "images. The package's `copyright` file still describes the images of "
                "an older version in places.\n"
                "Credit these wherever images are shown:"
            ),
            "",
            *(f"- {s['credit']}" for s in SOURCES.values()),
            "",
            CHANGED,
            (
                f"A scene longer than 4:3 is cut to that. {sum(white.values())} scenes "
                "on white are made square with white, and\n"
                f"{len(CONTINUED['categorization'].split())} on another plain ground "
                "by continuing the ground."
            ),
            "",
            "## Counts",
            "",
            (
                f"{len(rows)} images, {len(ids)} identities, "
                f"of which {len({r['identity'] for r in sealed})} are sealed\n"
                f"({len(sealed)} images). Development + sealed; the last column says "
                "how often a class is cut out."
            ),
            "",
            *count_table(rows),
            "",
            (
                "**The background tells the class.** Plants, fruit, coins, "
                "vegetables and vehicles exist only as cut-outs, and\n"
                "buildings and windmills only as scenes. A model that recognises "
                "cut-outs by their white border has thereby\n"
                'excluded about half of the classes. `photos(background="scene")` '
                f"puts the cut-outs on crops of {len(backgrounds)}\n"
                "photographs, or parts of photographs, that show nothing of any "
                "class. Scenes keep the background they have,\n"
                f"and in some of them it is white: {whites}."
            ),
            "",
            (
                "Some cut-outs are small in the source. The long side has fewer than "
                "96 pixels in\n"
                f"{smalls}; `photos()` enlarges them."
            ),
            "",
            "## What is one identity",
            "",
            (
                "Splits are by *identity*: the test set contains only identities that "
                "training never saw, in either domain.\n"
                "The rules are those of Five Styles, and so are the names, "
                "so that an identity is sealed in both data sets or\n"
                f"in neither: {shared} of the {len(ids)} identities occur there as "
                "well. The result is in `identities.csv`."
            ),
            "",
            (
                "1. **By name.** The same noun, as in Five Styles. A building, a "
                "windmill and a coin are called by their whole\n"
                "   name, because *cathedral* says too little.\n"
                "2. **By hand.** A table in the script joins what has two names or is "
                "hardly told apart (jaguar and tiger,\n"
                "   pyramids, euro coins of one metal).\n"
                "3. **By pixels.** As in Five Styles, over the images of one class "
                "and domain. Pairs that the first two rules\n"
                f"   had left apart, {len(by_pixels)}: {joined or 'none'}."
            ),
            "",
            (
                f"{both} identities have images in both domains.\n"
                f"**Sealed** is about one identity in {SEALED_PART} of each class: "
                "what Five Styles has keeps its part, and of\n"
                "the others as many are sealed, by the hash of their name, as are "
                "missing. Fruit, vegetables and plants have\n"
                "nearly all their identities from Five Styles, "
                "where one in three is sealed, so their sealed part is larger."
            ),
            "",
            "## Credits",
            "",
            "| image | author | licence | source |",
            "|---|---|---|---|",
            *(
                f"| {r['file']} | {r['author']} | {r['licence']} | <{r['source']}> |"
                for r in scenes + backgrounds
            ),
            "",
            (
                "All cut-outs: Tux Paint contributors, GPL-2, "
                "<https://tuxpaint.org/stamps/>."
            ),
            "",
        ]
    )


def identity_table(rows: list[dict], known: dict) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["identity", "part", "in_five_styles", "cutouts", "scenes"])
    for identity, part in sorted(five.split_by(rows, "identity").items()):
        files = [
            [
                r["file"].split("/")[-1].removesuffix(".webp")
                for r in part
                if r["domain"] == d
            ]
            for d in DOMAINS
        ]
        writer.writerow(
            [
                identity,
                part[0]["part"],
                "yes" if identity in known else "no",
                *map("; ".join, files),
            ]
        )
    return out.getvalue()


def name_files(rows: list[dict]) -> None:
    """Write row["file"]: domain/class/name.webp.

    A second image of the same name gets a number.
    """
    for r in rows:
        r["style"] = r["domain"]
    five.name_files(rows)
    for r in rows:
        r["file"] = r["file"].replace("//", "/")


def build(sources: Path, out: Path = OUT) -> list[dict]:
    """Read the sources, decide, write everything."""
    scenes, backgrounds = scene_rows(sources)
    rows, known = stamp_rows(sources) + scenes, five_styles()
    for r in rows:
        r["kind"] = kind_of(r["class"], r["name"])
    by_pixels = identities(rows, known)
    seal(rows, known)
    sealed = {r["original"] for r in rows if r["part"] == "sealed"}
    assert not sealed & set(BACKGROUNDS), (
        f"sealed images as backgrounds: {sealed & set(BACKGROUNDS)}"
    )
    for r in rows:
        r["on_white"] = r["domain"] == "scene" and on_white(r["image"])
        r["image"] = shrink(
            visible(r["image"])
            if r["domain"] == "cutout"
            else framed(r["image"], r["original"]),
            SIDE,
        )
    for r in backgrounds:
        part = part_of(r["image"], BACKGROUNDS[r["original"]])
        r["image"] = shrink(part, max(part.size) * BACKGROUND_SIDE // min(part.size))
    rows.sort(
        key=lambda r: (
            DOMAINS.index(r["domain"]),
            CLASSES.index(r["class"]),
            r["name"],
            r["original"],
        )
    )
    name_files(rows + backgrounds)
    for (domain, klass), part in five.split_by(rows, "domain", "class").items():
        if len({r["part"] for r in part}) != 2:
            print(f"{domain} {klass} lacks a part")
    out.mkdir(parents=True, exist_ok=True)
    for archive in SOURCES:
        mine = [r for r in rows + backgrounds if r["archive"] == archive]
        five.write_zip(out / f"{archive}.zip", archive_files(archive, mine))
    (out / "identities.csv").write_text(identity_table(rows, known), "utf-8")
    (out / "README.md").write_text(readme(rows, backgrounds, by_pixels, known), "utf-8")
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    built = build(Path(sys.argv[1]))
    print(
        Counter(r["domain"] for r in built),
        f"{sum(p.stat().st_size for p in OUT.iterdir()) / 1e6:.1f} MB",
    )
    print("now run: python tools/checksums.py")
