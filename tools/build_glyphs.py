"""Build the bundled data set Glyphs.

39 letters and 10 digits drawn in the fonts of Debian, 28 x 28 grey.

    python tools/build_glyphs.py PACKAGES_FOLDER [--sheets SHEETS_FOLDER]

It writes transfer_course/assets/glyphs/; with --sheets it also draws contact sheets to
look at. PACKAGES_FOLDER holds the packages of the table FONTS below as .deb files of
Debian 12 (bookworm). Fetch them with

    python tools/build_glyphs.py --packages | xargs apt-get download

The versions are those in the table of transfer_course/assets/glyphs/README.md. The
script unpacks them with dpkg-deb. It needs Pillow with FreeType and WebP, NumPy and
fontTools (which matplotlib brings). With the same versions of these the result is the
same bytes, except that drawing may differ by a grey level between systems.
The tables below are the whole curation: which fonts, what is left out and why, what is
one family.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from transfer_course.vision.glyphs import DIGITS, LETTERS, SIDE, centred  # noqa: E402
from transfer_course.vision.glyphs import GLYPH_DOMAINS as DOMAINS  # noqa: E402

OUT = ROOT / "transfer_course" / "assets" / "glyphs"
PARTS = ["development", "sealed"]
SEALED_PART = 4  # one family in four is sealed

# ---------------------------------------- what is drawn

# Letters whose two cases differ by little but size count once, as the capital (table
# CASES in README.md).
SAME_IN_BOTH_CASES = "COPSUVWXYZ"
# Letters that many fonts draw like a digit are left out: nobody could tell them apart
# without a word around them.
LIKE_A_DIGIT = "OIl"
CAPITALS = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in LIKE_A_DIGIT]
SMALL = [
    c
    for c in "abcdefghijklmnopqrstuvwxyz"
    if c.upper() not in SAME_IN_BOTH_CASES and c not in LIKE_A_DIGIT
]
assert (*CAPITALS, *SMALL) == LETTERS
CHARACTERS = LETTERS + DIGITS
COLUMNS_OF_SHEET = 7  # the 49 glyphs of one font lie in a square, row by row
DRAWN_AT = 96  # points, before it is scaled down

# ---------------------------------------- which fonts

# package  licence | domain: family, family … | domain: …     Of each family up to three
# files: regular, bold, italic.
FONTS = """
fonts-3270              BSD-3-Clause | mono: IBM 3270
fonts-adf-accanthis     GPL-2+FE | serif: Accanthis ADF Std
fonts-adf-baskervald    GPL-2+FE | serif: Baskervald ADF Std
fonts-adf-berenis       GPL-2+FE | serif: Berenis ADF Pro
fonts-adf-gillius       GPL-2+FE | sans: Gillius ADF
fonts-adf-ikarius       GPL-2+FE | sans: Ikarius ADF Std
fonts-adf-irianis       GPL-2+FE | serif: Irianis ADF Std
fonts-adf-libris        GPL-2+FE | sans: Libris ADF Std
fonts-adf-mekanus       GPL-2+FE | serif: Mekanus ADF Std
fonts-adf-oldania       GPL-2+FE | sans: Oldania ADF Std
fonts-adf-romande       GPL-2+FE | serif: Romande ADF Std
fonts-adf-romande       GPL-2+FE | script: Romande ADF Script Std
fonts-adf-switzera      GPL-2+FE | sans: Switzera ADF
fonts-adf-tribun        GPL-2+FE | serif: Tribun ADF Std
fonts-adf-universalis   GPL-2+FE | sans: Universalis ADF Std
fonts-adf-verana        GPL-2+FE | serif: Verana | sans: Verana Sans
fonts-agave             MIT | mono: Agave
fonts-allerta           OFL-1.1 | sans: Allerta
fonts-anonymous-pro     OFL-1.1 | mono: Anonymous Pro
fonts-aoyagi-kouzan-t   public domain | script: AoyagiKouzanFontT
fonts-arapey            OFL-1.1 | serif: Arapey
fonts-arundina          GPL-2+ | sans: Arundina Sans | mono: Arundina Sans Mono
fonts-arundina          GPL-2+ | serif: Arundina Serif
fonts-averia-gwf        OFL-1.1 | serif: Averia GWF
fonts-averia-sans-gwf   OFL-1.1 | sans: Averia Sans GWF
fonts-averia-serif-gwf  OFL-1.1 | serif: Averia Serif GWF
fonts-b612              OFL-1.1 | sans: B612 | mono: B612 Mono
fonts-babelstone-modern OFL-1.1 | sans: BabelStone Modern
fonts-baekmuk           MIT-like | serif: Baekmuk Batang
fonts-baekmuk           MIT-like | sans: Baekmuk Dotum, Baekmuk Gulim, Baekmuk Headline
fonts-beteckna          GPL-3 | sans: BetecknaGS
fonts-breip             OFL-1.0 | script: Breip
fonts-cabin             OFL-1.1 | sans: Cabin
fonts-cantarell         OFL-1.1 | sans: Cantarell
fonts-cardo             OFL-1.1 | serif: Cardo
fonts-century-catalogue OFL-1.0 | serif: Century Catalogue
fonts-clear-sans        Apache-2.0 | sans: Clear Sans
fonts-cmu               OFL-1.1 | serif: CMU Serif, CMU Concrete
fonts-cmu               OFL-1.1 | sans: CMU Bright, CMU Sans Serif
fonts-cmu               OFL-1.1 | mono: CMU Typewriter Text
fonts-comfortaa         OFL-1.1 | sans: Comfortaa
fonts-comic-neue        OFL-1.1 | script: Comic Neue
fonts-compagnon         OFL-1.1 | mono: Compagnon
fonts-courier-prime     OFL-1.1 | mono: Courier Prime, Courier Prime Sans
fonts-courier-prime     OFL-1.1 | mono: Courier Prime Code
fonts-croscore          OFL-1.1 | sans: Arimo | mono: Cousine | serif: Tinos
fonts-crosextra-caladea OFL-1.1 | serif: Caladea
fonts-crosextra-carlito OFL-1.1 | sans: Carlito
fonts-dancingscript     OFL-1.1 | script: Dancing Script
fonts-dejavu-core       Bitstream Vera | sans: DejaVu Sans | mono: DejaVu Sans Mono
fonts-dejavu-core       Bitstream Vera | serif: DejaVu Serif
fonts-dkg-handwriting   OFL-1.1 | script: DkgHandwriting
fonts-dosis             OFL-1.1 | sans: Dosis
fonts-dotgothic16       OFL-1.1 | mono: DotGothic16
fonts-dustin            GPL-2 | sans: Dustismo | serif: Dustismo Roman
fonts-dustin            GPL-2 | script: Domestic Manners, El Abogado Loco, Junkyard
fonts-ebgaramond        OFL-1.1 | serif: EB Garamond
fonts-elstob            OFL-1.1 | serif: ElstobD
fonts-essays1743        OFL-1.1 | serif: Essays1743
fonts-eurofurence       OFL-1.1 | sans: eurofurence
fonts-fantasma          WTFPL-2 | sans: Fantasma
fonts-fantasque-sans    OFL-1.1 | mono: Fantasque Sans Mono
fonts-fanwood           MIT | serif: Fanwood
fonts-firacode          OFL-1.1 | mono: Fira Code
fonts-freefont-ttf      GPL-3+FE | mono: FreeMono | sans: FreeSans | serif: FreeSerif
fonts-gemunu-libre      OFL-1.1 | sans: Gemunu Libre
fonts-georgewilliams    OFL-1.1 | sans: Caliban | script: Cupola | serif: Caslon
fonts-georgewilliams    OFL-1.1 | mono: GWMonospace
fonts-gfs-artemisia     OFL-1.1 | serif: GFS Artemisia
fonts-gfs-didot         OFL-1.1 | serif: GFS Didot
fonts-gfs-neohellenic   OFL-1.1 | sans: GFS Neohellenic
fonts-gnutypewriter     OFL-1.1 | mono: GNUTypewriter
fonts-go                BSD-3-Clause | sans: Go | mono: Go Mono
fonts-gotico-antiqua    OFL-1.1 | serif: Hamlet, Jessen, Ptolemy
fonts-goudybookletter   public domain | serif: Goudy Bookletter 1911
fonts-hack              MIT and Bitstream Vera | mono: Hack
fonts-havana            OFL-1.1 | script: Havana
fonts-hermit            OFL-1.1 | mono: Hermit
fonts-hosny-amiri       OFL-1.1 | serif: Amiri
fonts-inconsolata       OFL-1.0 | mono: Inconsolata
fonts-inter             OFL-1.1 | sans: Inter
fonts-jetbrains-mono    Apache-2.0 | mono: JetBrains Mono
fonts-junction          OFL-1.1 | sans: Junction
fonts-junicode          OFL-1.1 | serif: Junicode Two Beta
fonts-jura              OFL-1.1 | sans: Jura
fonts-karla             OFL-1.1 | sans: Karla
fonts-kaushanscript     OFL-1.1 | script: Kaushan Script
fonts-kiloji            BSD-3-Clause | script: kiloji, kiloji - B, kiloji - D
fonts-klaudia-berenika  OFL-1.1 | sans: Klaudia, Berenika
fonts-konatu            MIT | mono: Konatu
fonts-kouzan-mouhitsu   public domain | script: KouzanBrushFont, KouzanBrushFontGyousyo
fonts-kouzan-mouhitsu   public domain | script: KouzanBrushFontSousyo
fonts-kristi            OFL-1.1 | script: Kristi
fonts-lato              OFL-1.1 | sans: Lato
fonts-league-mono       OFL-1.1 | mono: League Mono
fonts-league-spartan    OFL-1.1 | sans: League Spartan
fonts-leckerli-one      OFL-1.1 | script: Leckerli One
fonts-lemonada          OFL-1.1 | script: Lemonada
fonts-lg-aboriginal     GPL-3+FE | sans: Aboriginal Sans | serif: Aboriginal Serif
fonts-lindenhill        MIT | serif: Linden Hill
fonts-linex             GPL-2+ | serif: EMERITA Latina, Quercus | sans: Jara
fonts-linex             GPL-2+ | script: Abecedario
fonts-linuxlibertine    OFL-1.1 | serif: Linux Libertine O | sans: Linux Biolinum O
fonts-linuxlibertine    OFL-1.1 | mono: Linux Libertine Mono O
fonts-lobstertwo        OFL-1.1 | script: Lobster Two
fonts-manrope           OFL-1.1 | sans: Manrope
fonts-millimetre        OFL-1.1 | sans: Millimetre
fonts-monofur           OFL-1.1 | mono: monofur
fonts-monoid            OFL-1.1 | mono: Monoid
fonts-mononoki          OFL-1.1 | mono: mononoki
fonts-motoya-l-cedar    Apache-2.0 | sans: MotoyaLCedar
fonts-motoya-l-maruberi Apache-2.0 | sans: MotoyaLMaru
fonts-mplus             OFL-1.1 | sans: M PLUS 1, M PLUS 2
fonts-mplus             OFL-1.1 | mono: M PLUS 1 Code, M PLUS Code Latin 60
fonts-nanum             OFL-1.1 | serif: NanumMyeongjo | mono: NanumGothicCoding
fonts-nanum             OFL-1.1 | sans: NanumGothic, NanumBarunGothic, NanumSquare
fonts-nanum             OFL-1.1 | sans: NanumSquareRound
fonts-national-park     OFL-1.1 | sans: National Park
fonts-naver-d2coding    OFL-1.1 | mono: D2Coding
fonts-noto-mono         OFL-1.1 | mono: Noto Sans Mono
fonts-ocr-a             public domain | mono: OCRA
fonts-ocr-b             public domain | mono: OCR B
fonts-okolaks           OFL-1.1 | sans: okolaks
fonts-oldstandard       OFL-1.0 | serif: Old Standard TT
fonts-open-sans         Apache-2.0 | sans: Open Sans
fonts-osifont           GPL-2+FE | sans: osifont
fonts-oxygen            OFL-1.1 | mono: Oxygen Mono | sans: Oxygen-Sans
fonts-paratype          ParaType | mono: PT Mono | sans: PT Sans | serif: PT Serif
fonts-play              OFL-1.1 | sans: Play
fonts-prociono          public domain | serif: Prociono
fonts-proggy            MIT | mono: ProggyTinyTT
fonts-quattrocento      OFL-1.1 | serif: Quattrocento
fonts-quicksand         OFL-1.1 | sans: Quicksand
fonts-radisnoir         OFL-1.1 | sans: Radis Sans
fonts-reggae            OFL-1.1 | script: Reggae One
fonts-rit-sundar        OFL-1.1 | serif: RIT-Sundar
fonts-roadgeek          MIT | sans: Roadgeek 2014 Series D, Roadgeek 2014 Series F
fonts-roboto-slab       Apache-2.0 | serif: Roboto Slab
fonts-roboto-unhinted   Apache-2.0 | sans: Roboto
fonts-rocknroll         OFL-1.1 | script: RocknRoll One
fonts-routed-gothic     OFL-1.1 | sans: Routed Gothic
fonts-rufscript         GPL-3+FE | script: Rufscript
fonts-sawarabi-mincho   OFL-1.1 | serif: Sawarabi Mincho
fonts-seto              OFL-1.1 | script: SetoFont
fonts-sil-abyssinica    OFL-1.1 | serif: Abyssinica SIL
fonts-sil-andika        OFL-1.1 | sans: Andika
fonts-sil-annapurna     OFL-1.1 | serif: Annapurna SIL
fonts-sil-charis        OFL-1.1 | serif: Charis SIL
fonts-sil-doulos        OFL-1.1 | serif: Doulos SIL
fonts-sil-gentium       OFL-1.1 | serif: Gentium
fonts-sil-gentium-basic OFL-1.1 | serif: Gentium Basic, Gentium Book Basic
fonts-sil-padauk        OFL-1.1 | sans: Padauk
fonts-sjfonts           GPL-2+FE | script: Delphine, Steve
fonts-smc-anjalioldlipi OFL-1.1 | sans: AnjaliOldLipi
fonts-smc-chilanka      OFL-1.1 | script: Chilanka
fonts-smc-dyuthi        OFL-1.1 | sans: Dyuthi
fonts-smc-gayathri      OFL-1.1 | sans: Gayathri
fonts-smc-karumbi       OFL-1.1 | script: Karumbi
fonts-smc-keraleeyam    OFL-1.1 | sans: Keraleeyam
fonts-smc-manjari       OFL-1.1 | sans: Manjari
fonts-smc-meera         OFL-1.1 | sans: Meera
fonts-smc-rachana       OFL-1.1 | serif: Rachana
fonts-smc-suruma        GPL-3+FE | sans: Suruma
fonts-smc-uroob         OFL-1.1 | sans: Uroob
fonts-smiley-sans       OFL-1.1 | sans: Smiley Sans
fonts-sora              OFL-1.1 | sans: Sora
fonts-spleen            BSD-2-Clause | mono: Spleen 16x32
fonts-stick             OFL-1.1 | script: Stick
fonts-stix              OFL-1.1 | serif: STIX
fonts-summersby         GPL-2+ | serif: Summersby
fonts-teluguvijayam     OFL-1.1 | serif: Gurajada, Mandali, Peddana, Ramaraja
fonts-teluguvijayam     OFL-1.1 | serif: Sree Krushnadevaraya, Suranna
fonts-teluguvijayam     OFL-1.1 | sans: Dhurjati, Gidugu, Mallanna, NATS, NTR
fonts-teluguvijayam     OFL-1.1 | sans: Potti Sreeramulu, Ramabhadra
fonts-teluguvijayam     OFL-1.1 | sans: Suravaram, Syamala Ramana, TenaliRamakrishna
fonts-teluguvijayam     OFL-1.1 | sans: Timmana
fonts-texgyre           GUST | serif: TeX Gyre Bonum, TeX Gyre Pagella, TeX Gyre Schola
fonts-texgyre           GUST | serif: TeX Gyre Termes
fonts-texgyre           GUST | sans: TeX Gyre Adventor, TeX Gyre Heros
fonts-texgyre           GUST | mono: TeX Gyre Cursor | script: TeX Gyre Chorus
fonts-tiresias          GPL-3+FE | sans: Tiresias Infofont, Tiresias Keyfont V2
fonts-tiresias          GPL-3+FE | sans: Tiresias LPfont, Tiresias PCfont
fonts-tiresias          GPL-3+FE | sans: Tiresias Signfont
fonts-tlwg-kinnari-ttf  GPL-2+FE | serif: Kinnari
fonts-tlwg-laksaman-ttf GPL-2+FE | sans: Laksaman
fonts-tlwg-loma-ttf     GPL-2+FE | sans: Loma
fonts-tlwg-norasi-ttf   GPL-2+FE | serif: Norasi
fonts-tlwg-purisa-ttf   GPL-2+FE | script: Purisa
fonts-tlwg-sawasdee-ttf GPL-2+FE | sans: Sawasdee
fonts-tlwg-typist-ttf   GPL-2+FE | mono: Tlwg Typist
fonts-tlwg-typo-ttf     GPL-2+FE | mono: Tlwg Typo
fonts-tlwg-umpush-ttf   GPL-2+FE | sans: Umpush
fonts-tuffy             public domain | sans: Tuffy
fonts-unfonts-core      GPL-2 | serif: UnBatang, UnGungseo
fonts-unfonts-core      GPL-2 | sans: UnDotum, UnGraphic, UnDinaru | script: UnPilgi
fonts-unfonts-extra     GPL-2 | serif: UnShinmun | mono: UnTaza | script: UnPilgia
fonts-unikurdweb        GPL-2+FE | sans: Unikurd Web
fonts-vlgothic          M+ and BSD-3-Clause | mono: VL Gothic
fonts-vollkorn          OFL-1.1 | serif: Vollkorn
fonts-woowa-bm          OFL-1.1 | sans: BM DoHyeon, BM EULJIRO TTF, BM HANNA 11yrs old
fonts-woowa-bm          OFL-1.1 | script: BM HANNA Air, BM JUA_TTF, BM KIRANGHAERANG
fonts-woowa-bm          OFL-1.1 | script: BM YEONSUNG
fonts-yanone-kaffeesatz OFL-1.1 | sans: Yanone Kaffeesatz
fonts-yozvox-yozfont-standard-kana OFL-1.1 | script: YOzS, YOzSF, YOzSP, YOzSX, YOzSXF
fonts-yozvox-yozfont-standard-kana OFL-1.1 | script: YOzSXM
fonts-yrsa-rasa         OFL-1.1 | serif: Yrsa
fonts-yusei-magic       OFL-1.1 | script: Yusei Magic
"""

# The other cuts of these are other designs, not weights of the same letters.
ONLY_REGULAR = ["Compagnon"]

# Looked at on contact sheets and left out. Not listed: fonts without Latin letters and
# digits, and icons.
LEFT_OUT = {
    "small letters are capitals": (
        "Apropal, Bebas Neue, Beteckna (but not BetecknaGS), "
        "Because We … (fonts-bwht), Cherry Bomb, Go Smallcaps, Humor Sans, "
        "Irianis ADF Style, Latin Modern Caps, Mekanus ADF Titling, Romande ADF Style, "
        "Solothurn, Tomson Talks, TriodPostnaja, Ubuntu-Title, unifur"
    ),
    "blackletter or secretary hand, not readable without practice": (
        "Blankenburg, Gamaliel, Isabella, Joscelyn, MathJax Fraktur, jsMath-euf*, "
        "Zainer"
    ),
    "outlines, hatching or dots, nothing left at 28 pixels": (
        "Abecedario dotted and ruled, BM Euljiro oraeorae, Bajaderka, Cabin Sketch, "
        "Ecolier, Elegante, femkeklaver, Linux Biolinum Keyboard, Solide Mirage, "
        "Train One, Wargames"
    ),
    "scan lines of a screen": "Amiga, C-64, Glass TTY VT220",
    "letters hardly told apart": (
        "Ani, Bandal, Engadget, F500, Ferrite Core, It wasn't me, Le Murmure, "
        "Penguin Attack, StayPuft"
    ),
    "Greek letters or symbols under Latin codes": (
        "Alfa-beta, Ellhnikh, D050000L, Standard Symbols PS, jsMath-cm*"
    ),
    "licence by e-mail or of another kind": (
        "fonts-aenigma, fonts-alee, fonts-ipafont-mincho, fonts-opendyslexic, "
        "fonts-pc, fonts-sawarabi-gothic, "
        "Liberation (Arimo, Cousine and Tinos are the same drawings under the OFL)"
    ),
    "only copies of what is here": (
        "fonts-bpg-georgian, fonts-johnsmith-induni, fonts-karmilla, fonts-lmodern, "
        "fonts-mathjax, fonts-povray, fonts-uralic, fonts-urw-base35, Rasa"
    ),
    "the Latin letters are of unclear origin": "fonts-ukij-uyghur",
}

# Families that are one drawing by name; by pixels see JOINED_AT.
JOINS = [
    "KouzanBrushFont, KouzanBrushFontGyousyo, KouzanBrushFontSousyo, AoyagiKouzanFontT",
    "kiloji, kiloji - B, kiloji - D",
    "YOzS, YOzSF, YOzSP, YOzSX, YOzSXF, YOzSXM",
    "Gentium, Gentium Basic, Gentium Book Basic",
    "Klaudia, Berenika",
    "Averia GWF, Averia Serif GWF, Averia Sans GWF",
    "DejaVu Sans, DejaVu Sans Mono, DejaVu Serif",
    "Roadgeek 2014 Series D, Roadgeek 2014 Series F",
    "M PLUS 1, M PLUS 2, M PLUS 1 Code, M PLUS Code Latin 60",
    "NanumGothic, NanumGothicCoding, NanumBarunGothic",
    "NanumSquare, NanumSquareRound",
    "Courier Prime, Courier Prime Code, Courier Prime Sans",
    "Tiresias Infofont, Tiresias PCfont",
    "B612, B612 Mono",
    "Arundina Sans, Arundina Sans Mono",
    "Verana Sans, Verana",
    "FreeSans, Caliban",
]
# So far may small letters correlate with their capitals, on average over those that
# differ.
SMALL_CAPITALS_AT = 0.65
# Two families whose regular files correlate so much on average over the 49 characters
# are one.
JOINED_AT = 0.90

# Archives by family of licence. The full text of every licence lies in its archive,
# with Debian's copyright files.
ARCHIVES = {
    "ofl": (
        "SIL Open Font License, version 1.0 or 1.1",
        ["OFL-1.0", "OFL-1.1"],
        ["OFL-1.1"],
    ),
    "apache": ("Apache License, version 2.0", ["Apache-2.0"], ["Apache-2.0"]),
    "gpl": (
        "GNU General Public License, version 2 or 3, most with the font exception (FE)",
        ["GPL-2", "GPL-2+", "GPL-3", "GPL-2+FE", "GPL-3+FE"],
        ["GPL-2", "GPL-3"],
    ),
    "permissive": (
        "permissive licences and public domain",
        [
            "BSD-2-Clause",
            "BSD-3-Clause",
            "Bitstream Vera",
            "GUST",
            "M+ and BSD-3-Clause",
            "MIT",
            "MIT-like",
        ]
        + ["MIT and Bitstream Vera", "ParaType", "WTFPL-2", "public domain"],
        [],
    ),
}
ARCHIVE_OF = {
    licence: archive
    for archive, (_, licences, _) in ARCHIVES.items()
    for licence in licences
}
# Words that Debian's copyright file of a package has to contain if the table FONTS is
# right.
PROOF = {
    "OFL": r"open font license|\bOFL\b",
    "Apache": r"apache license|Apache-2",
    "GPL": r"general public license|License: GPL",
    "Bitstream": r"bitstream",
    "GUST": r"GUST font license|GUST-Font",
    "MIT": r"permission is hereby granted, free of charge|MIT-LIKE",
    "BSD": r"redistribution and use in source and binary forms",
    "M+": r"these fonts are free soft|M\+",
    "ParaType": r"paratype",
    "WTFPL": r"WTFPL",
    "public domain": r"public.domain",
}
CHANGED = (
    "Changed here: 39 letters and 10 digits of each font drawn at 96 points, scaled "
    "into 20 x 20 pixels, centred by their centre of mass in 28 x 28, white on black, "
    "stored as lossless WebP. No font file and no outline is included."
)
COLUMNS = [
    "file",
    "family",
    "font",
    "style",
    "domain",
    "part",
    "licence",
    "package",
    "version",
    "credit",
]

# ---------------------------------------- reading the packages


def table_of_fonts() -> list[dict]:
    """The table FONTS, one row for each family."""
    rows = []
    for line in FONTS.strip().split("\n"):
        head, *domains = [part.strip() for part in line.split("|")]
        package, licence = head.split(maxsplit=1)
        for part in domains:
            domain, families = part.split(": ")
            rows += [
                {"package": package, "licence": licence, "domain": domain, "family": f}
                for f in families.split(", ")
            ]
    return rows


def unpack(folder: Path) -> dict[str, tuple[str, Path]]:
    """Package -> version and the folder that its .deb file was unpacked into."""
    packages = {}
    for deb in sorted(folder.glob("*.deb")):
        name, version, _ = deb.stem.split("_")
        into = folder / "unpacked" / name
        if not into.exists():
            subprocess.run(["dpkg-deb", "-x", deb, into], check=True)
        packages[name] = (unquote(version), into)
    return packages


def copyright_file(package: str, folder: Path) -> str:
    """Debian's record of who holds the rights in a package, and of its licence."""
    return (folder / "usr/share/doc" / package / "copyright").read_text(
        "utf-8", errors="replace"
    )


def prove(package: str, licence: str, text: str) -> None:
    """Stop if the copyright file does not say what the table says."""
    text = " ".join(text.split())
    for word, pattern in PROOF.items():
        if word in licence:
            assert re.search(pattern, text, re.I), (
                f"{package}: its copyright file does not speak of {word}"
            )
    if licence.endswith("FE"):
        assert re.search(r"exception", text, re.I), f"{package}: no font exception"


WEIGHTS = [
    (r"thin|hairline", 100),
    (r"extra ?light|ultra ?light", 200),
    (r"semi ?bold|demi", 600),
    (r"extra ?bold|ultra ?bold|black|heavy", 800),
    (r"bold|negrita", 700),
    (r"light", 300),
    (r"medium", 500),
]
NOT_PLAIN = (
    r"cond|narrow|wide|expanded|ext\b|extended|cn\b|outline|invert|inline|sharp|caps|"
    r"smcp|\d+ ?pt|contrast|z\b"
)


def style_of(style: str, stem: str) -> tuple[int, bool, bool]:
    """Weight (400 is regular), whether it slopes, whether it is special.

    Special is narrow, outlined or the like.
    """
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", stem)
    said = f"{style} {words}".lower().replace("-", " ")
    weight = next((w for pattern, w in WEIGHTS if re.search(pattern, said)), 400)
    return (
        weight,
        bool(re.search(r"ital|obli|slant", said)),
        bool(re.search(NOT_PLAIN, said)),
    )


def read_names(path: Path) -> dict | None:
    """What a font says of itself, or None if it lacks one of our characters."""
    from fontTools.ttLib import TTFont

    font = TTFont(path, fontNumber=0, lazy=True)
    there = font.getBestCmap() or {}
    if any(ord(c) not in there for c in CHARACTERS):
        return None
    said = [(font["name"].getDebugName(i) or "").strip() for i in range(18)]
    family, style = said[16] or said[1], said[17] or said[2]
    weight, slopes, special = style_of(style, path.stem)
    return {
        "path": path,
        "family": family,
        "style": style,
        "weight": weight,
        "slopes": slopes,
        "special": special,
        "credit": " ".join(said[0].split()),
    }


def choose(files: list[dict]) -> list[dict]:
    """Regular, bold and italic of one family, as far as there are such files."""

    def nearest(kind, weight):
        order = [
            abs(kind["weight"] - weight),
            len(kind["path"].stem),
            kind["path"].suffix != ".ttf",
            kind["path"].name,
        ]
        return tuple(order)

    plain = [f for f in files if not f["special"]] or files
    upright = [f for f in plain if not f["slopes"]] or plain
    regular = min(upright, key=lambda f: nearest(f, 400))
    chosen = {"regular": regular}
    bold = [
        f for f in upright if f["weight"] >= 600 and f["weight"] > regular["weight"]
    ]
    italic = [
        f for f in plain if f["slopes"] and f is not regular and f["weight"] <= 500
    ]
    if bold:
        chosen["bold"] = min(bold, key=lambda f: nearest(f, 700))
    if italic:
        chosen["italic"] = min(italic, key=lambda f: nearest(f, 400))
    return [{**f, "role": role} for role, f in chosen.items()]


def credit_of(font: dict, text: str) -> str:
    """Who made it: the font's own words, else the first holder in Debian's file."""
    credit = font["credit"]
    if not re.search(r"[A-Za-z]{3}", credit) or len(credit) < 12:
        found = re.search(
            r"copyright[^\n]*?:?\s*((?:\(c\)|©|\d{4})[^\n]*|[^\n]*\n\s+[^\n]*)",
            text,
            re.I,
        )
        credit = " ".join(found.group(0).split()) if found else "see copyright file"
    return re.sub(r"<[^>]*@[^>]*>|\S+@\S+", "", credit).strip()[:160]


# ---------------------------------------- drawing


def draw(path: Path, character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """One character, white on black, (28, 28) uint8."""
    left, top, right, bottom = font.getbbox(character)
    assert right > left and bottom > top, f"{path.name} draws nothing for {character}"
    canvas = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), character, fill=255, font=font)
    assert canvas.getbbox(), f"{path.name} draws nothing for {character}"
    return centred(canvas.crop(canvas.getbbox()))


def draw_all(path: Path, characters: str | list[str]) -> np.ndarray:
    """(characters, 28, 28) uint8."""
    font = ImageFont.truetype(path, DRAWN_AT, layout_engine=ImageFont.Layout.BASIC)
    return np.stack([draw(path, c, font) for c in characters])


def font_rows(folder: Path) -> list[dict]:
    """One row for each font file that is used, with its 49 glyphs."""
    logging.disable(logging.ERROR)  # fontTools speaks of every small fault in a font
    packages, rows, names = unpack(folder), [], {}
    for entry in table_of_fonts():
        package, licence = entry["package"], entry["licence"]
        assert package in packages, (
            f"{package} is not in {folder}; fetch it as the docstring says"
        )
        version, into = packages[package]
        text = copyright_file(package, into)
        prove(package, licence, text)
        if package not in names:
            files = [
                p
                for p in sorted(into.rglob("*"))
                if p.suffix.lower() in (".ttf", ".otf", ".ttc") and not p.is_symlink()
            ]
            names[package] = [n for n in map(read_names, files) if n]
        mine = [n for n in names[package] if n["family"] == entry["family"]]
        assert mine, (
            f"{package} has no family called {entry['family']!r} with all our "
            "characters"
        )
        for font in choose(mine)[: 1 if entry["family"] in ONLY_REGULAR else 3]:
            glyphs = draw_all(font["path"], CHARACTERS)
            name = entry["family"] + (
                "" if font["role"] == "regular" else f" {font['role']}"
            )
            rows.append(
                {
                    **entry,
                    "version": version,
                    "font": name,
                    "style": font["role"],
                    "path": font["path"],
                    "credit": credit_of(font, text),
                    "glyphs": glyphs,
                    "copyright": text,
                }
            )
    return rows


# ---------------------------------------- what is one family


def normed(glyphs: np.ndarray) -> np.ndarray:
    """(…, 28, 28) -> (…, 784) with mean 0 and length 1.

    A product of two is their correlation.
    """
    flat = glyphs.reshape(*glyphs.shape[:-2], -1).astype(np.float64)
    flat -= flat.mean(-1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=-1, keepdims=True)


def mean_correlation(glyphs: np.ndarray) -> np.ndarray:
    """(fonts, characters, 28, 28) -> (fonts, fonts): correlation of pixels.

    It is averaged over the characters.
    """
    z = normed(glyphs).reshape(len(glyphs), -1)
    return z @ z.T / glyphs.shape[1]


def join_families(rows: list[dict]) -> list[tuple[float, str, str]]:
    """Write row["family"], the joined one, and row["drawn as"], its own.

    Returns the pairs joined by pixels.
    """
    own = sorted({r["family"] for r in rows})
    parent = {f: f for f in own}

    def root(f):
        while parent[f] != f:
            f = parent[f]
        return f

    def join(a, b):
        parent[max(root(a), root(b))] = min(root(a), root(b))

    for line in JOINS:
        first, *rest = line.split(", ")
        missing = {first, *rest} - set(own)
        assert not missing, f"JOINS names what is not there: {missing}"
        for other in rest:
            join(first, other)
    regular = {r["family"]: r["glyphs"] for r in rows if r["style"] == "regular"}
    correlation = mean_correlation(np.stack([regular[f] for f in own]))
    by_pixels = []
    for i, j in combinations(range(len(own)), 2):
        if correlation[i, j] >= JOINED_AT and root(own[i]) != root(own[j]):
            by_pixels.append((float(correlation[i, j]), own[i], own[j]))
    for _, a, b in by_pixels:
        join(a, b)
    for r in rows:
        r["drawn as"], r["family"] = r["family"], root(r["family"])
    return sorted(by_pixels, reverse=True)


def seal(rows: list[dict]) -> None:
    """Write row["part"].

    Sealed is a quarter of the families of each domain, chosen by the hash of the
    family's name.
    """
    domain_of = {}
    # A family that has several domains counts where most of its fonts are.
    for r in rows:
        domain_of.setdefault(r["family"], Counter())[r["domain"]] += 1
    strata = defaultdict(list)
    for family, domains in domain_of.items():
        strata[domains.most_common(1)[0][0]].append(family)
    sealed = set()
    for families in strata.values():
        order = sorted(
            families, key=lambda f: hashlib.sha256(f"glyphs: {f}".encode()).hexdigest()
        )
        sealed |= set(order[: round(len(order) / SEALED_PART)])
    for r in rows:
        r["part"] = "sealed" if r["family"] in sealed else "development"


# ---------------------------------------- checks of the tables


def check_cases(rows: list[dict]) -> dict[str, float]:
    """Mean correlation of capital and small letter over all regular fonts.

    Stops where the tables say otherwise.
    """
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    differing = [alphabet.index(c) for c in "ABDEGHNQR"]
    each = []
    for r in rows:
        if r["style"] == "regular":
            z = normed(draw_all(r["path"], alphabet + alphabet.lower()))
            each.append((z[:26] * z[26:]).sum(-1))
            said = each[-1][differing].mean()
            assert said < SMALL_CAPITALS_AT, (
                f"{r['font']} draws small letters as capitals: {said:.2f}"
            )
    cases = dict(zip(alphabet, np.mean(each, 0), strict=True))
    same = {c for c, r in cases.items() if r >= 0.55} - set(LIKE_A_DIGIT)
    assert same | {"O"} == set(SAME_IN_BOTH_CASES), (
        f"letters that look the same in both cases: {sorted(same)}"
    )
    return cases


def contact_sheets(rows: list[dict], folder: Path) -> None:
    """One line of glyphs for each font, forty lines a picture: to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(
        rows, key=lambda r: (DOMAINS.index(r["domain"]), r["family"], r["font"])
    )
    for start in range(0, len(ordered), 40):
        part = ordered[start : start + 40]
        sheet = Image.new("L", (220 + SIDE * len(CHARACTERS), SIDE * len(part)))
        for i, r in enumerate(part):
            ImageDraw.Draw(sheet).text(
                (2, SIDE * i + 8), f"{r['domain']} {r['font']}"[:36], fill=255
            )
            sheet.paste(
                Image.fromarray(np.concatenate(list(r["glyphs"]), 1)), (220, SIDE * i)
            )
        sheet.save(folder / f"sheet{start // 40:02d}.png")


# ---------------------------------------- writing


def name_files(rows: list[dict]) -> None:
    for r in rows:
        slug = re.sub(r"[^a-z0-9]+", "-", r["font"].lower()).strip("-")
        r["file"] = f"{r['domain']}/{slug}.webp"
    twice = [f for f, n in Counter(r["file"] for r in rows).items() if n > 1]
    assert not twice, f"two fonts have one name: {twice}"


def table(rows: list[dict], columns: list[str] = COLUMNS) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def webp(glyphs: np.ndarray) -> bytes:
    """The 49 glyphs of a font as one picture, seven a row."""
    lines = glyphs.reshape(-1, COLUMNS_OF_SHEET, SIDE, SIDE).transpose(0, 2, 1, 3)
    sheet = lines.reshape(-1, COLUMNS_OF_SHEET * SIDE)
    out = io.BytesIO()
    Image.fromarray(sheet).convert("RGB").save(
        out, "WEBP", lossless=True, quality=90, method=5, exact=True
    )
    assert (
        np.asarray(Image.open(io.BytesIO(out.getvalue())).convert("L")) == sheet
    ).all()
    return out.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Write the same bytes on every run.

    The files are sorted and have one date; text is compressed, pictures are already.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            info.compress_type = (
                zipfile.ZIP_STORED if name.endswith(".webp") else zipfile.ZIP_DEFLATED
            )
            archive.writestr(info, files[name])


def licence_text(archive: str, packages: list[str]) -> str:
    """What lies in the archive as LICENSE.txt."""
    title, _, texts = ARCHIVES[archive]
    head = [
        f"Glyphs drawn in fonts under: {title}.",
        CHANGED,
        "index.csv names font, package, licence and credit of every picture.",
        (
            "The folder copyright/ holds Debian's copyright file of every package, "
            "with the licence in its own words:"
        ),
        ", ".join(packages) + ".",
    ]
    parts = ["\n".join(head)] + [
        (ROOT / "tools/licences" / f"{t}.txt").read_text("utf-8") for t in texts
    ]
    return ("\n\n" + "=" * 80 + "\n\n").join(parts)


def families_table(rows: list[dict]) -> str:
    """One line for each family: what is one drawing."""
    lines = []
    for family in sorted({r["family"] for r in rows}):
        mine = [r for r in rows if r["family"] == family]
        lines.append(
            {
                "family": family,
                "part": mine[0]["part"],
                "domains": " ".join(
                    sorted({r["domain"] for r in mine}, key=DOMAINS.index)
                ),
                "drawn as": "; ".join(sorted({r["drawn as"] for r in mine})),
                "packages": " ".join(sorted({r["package"] for r in mine})),
                "fonts": len(mine),
            }
        )
    return table(lines, ["family", "part", "domains", "drawn as", "packages", "fonts"])


def readme(rows: list[dict], by_pixels: list[tuple], cases: dict) -> str:
    families = {r["family"]: r["part"] for r in rows}
    sealed = sum(part == "sealed" for part in families.values())
    count = Counter((r["domain"], r["part"]) for r in rows)
    of_domain = Counter(
        x for x in {(r["domain"], r["part"], r["family"]) for r in rows}
    )
    joined = "; ".join(f"{a} = {b} ({r:.3f})" for r, a, b in by_pixels)
    by_licence = Counter(r["licence"] for r in rows)
    lines = [
        "# Glyphs",
        "",
        (
            "Letters and digits drawn in the fonts of Debian, 28 x 28 pixels, grey, "
            "white on black as in MNIST.\n"
            "`tools/build_glyphs.py` built the set, wrote this page and holds every "
            "table of the curation.\n"
            "Load it with `transfer_course.vision.glyphs.glyphs()`."
        ),
        "",
        "## Counts",
        "",
        (
            f"{len(rows)} font files of {len(families)} families in "
            f"{len({r['package'] for r in rows})} packages. Every font has "
            f"{len(LETTERS)} letters and {len(DIGITS)} digits: "
            f"{len(rows) * len(LETTERS)} images of letters and\n"
            f"{len(rows) * len(DIGITS)} of digits. {sealed} families are sealed. "
            "Development + sealed:"
        ),
        "",
        "| domain | font files | families |",
        "|---|---|---|",
    ]
    for d in DOMAINS:
        n = [sum(1 for x in of_domain if x[:2] == (d, p)) for p in PARTS]
        lines.append(
            f"| {d} | {count[d, PARTS[0]]} + {count[d, PARTS[1]]} | {n[0]} + {n[1]} |"
        )
    total = [sum(count[d, p] for d in DOMAINS) for p in PARTS]
    lines += [
        f"| all | {total[0]} + {total[1]} | {len(families) - sealed} + {sealed} |",
        "",
        (
            "A family can have fonts in several domains (DejaVu Sans and DejaVu "
            "Serif), so the numbers of families add up to more."
        ),
        "",
        "## Classes",
        "",
        f"Letters: {' '.join(LETTERS)}. Digits: {' '.join(DIGITS)}.",
        "",
        (
            f"The small letters {' '.join(SAME_IN_BOTH_CASES.lower())} are left out, "
            "because after scaling they look like their capitals.\n"
            "The table says how far the pixels of capital and small letter correlate, "
            "on average over the regular fonts;\n"
            "from 0.55 on, only the capital is drawn."
        ),
        "",
        "| letter | " + " | ".join(sorted(cases, key=cases.get, reverse=True)) + " |",
        "|---|" + "---|" * len(cases),
        "| correlation | "
        + " | ".join(f"{v:.2f}"[1:] for v in sorted(cases.values(), reverse=True))
        + " |",
        "",
        (
            "Capital I, capital O, small l and small o are left out because many "
            "fonts draw them as a bar or a circle, like the\n"
            "digits 1 and 0: without a word around it, nobody could tell which is "
            "meant."
        ),
        "",
        "## How a glyph is drawn",
        "",
        (
            f"The character is drawn at {DRAWN_AT} points, cut to its ink, "
            "scaled with its aspect ratio kept until it just fits into\n"
            "20 x 20 pixels (each pixel is the mean of the area it covers), and moved "
            "by whole pixels until its centre of mass\n"
            f"lies in the middle of {SIDE} x {SIDE}. MNIST was made in the same way."
        ),
        "",
        "## Identities",
        "",
        (
            "The identity of an image is its *family* and its character: the weights "
            "and slopes of a family are near-duplicates.\n"
            "Two fonts are of one family if a chain of these rules leads from one to "
            "the other (the result: `families.csv`):"
        ),
        "",
        (
            "1. **By name.** They have the same family name, in whatever package.\n"
            "2. **By hand.** The table JOINS in the script: designs that share "
            "letters under several names, as DejaVu Sans and DejaVu Sans Mono.\n"
            f"3. **By pixels.** Their regular files correlate by {JOINED_AT} or more, "
            f"on average over the {len(CHARACTERS)} characters. Pairs that\n"
            f"   the first two rules had left apart, {len(by_pixels)}: "
            f"{joined or 'none'}."
        ),
        "",
        (
            "Simple letters of different families still look alike: an E without "
            "serifs has few degrees of freedom. The notebook\n"
            "`nbs/2_vision/glyphs.ipynb` measures this."
        ),
        "",
        (
            f"**Sealed** is one family in {SEALED_PART} of each domain, by the hash of "
            "its name, with all its characters. The rest is development,\n"
            "which `glyphs()` gives unless asked otherwise."
        ),
        "",
        "## Left out",
        "",
        (
            "Every font was looked at on a contact sheet. Left out are fonts without "
            "Latin letters and digits, icons, and:"
        ),
        "",
        *(f"- {why}: {what}." for why, what in LEFT_OUT.items()),
        "",
        "## Sources and licences",
        "",
        (
            "The drawings of letters in this set are pictures, no fonts. We still "
            "treat them as bound by the licence of the font and\n"
            "give each its licence and credit. There is one archive for each family "
            "of licences, so that one can be left out.\n"
            "Each holds `LICENSE.txt`, `index.csv` and Debian's copyright file of "
            "every package in `copyright/`."
        ),
        "",
        "| archive | licences | font files |",
        "|---|---|---|",
    ]
    for archive, (title, licences, _) in ARCHIVES.items():
        lines.append(
            f"| `{archive}.zip` | {title} | {sum(by_licence[x] for x in licences)} |"
        )
    lines += [
        "",
        CHANGED,
        "",
        (
            "FE is the font exception: a document that uses the font is not covered by "
            "the GPL for that."
        ),
        "",
        "| font | domain | licence | package | version | credit |",
        "|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (r["font"].lower(), r["file"])):
        credit = r["credit"].replace("|", "/")
        lines.append(
            f"| {r['font']} | {r['domain']} | {r['licence']} | {r['package']} | "
            f"{r['version']} | {credit} |"
        )
    return "\n".join(lines) + "\n"


def build(folder: Path, out: Path = OUT, sheets: Path | None = None) -> list[dict]:
    """Read the packages, draw, decide, write everything."""
    rows = font_rows(folder)
    cases = check_cases(rows)
    by_pixels = join_families(rows)
    seal(rows)
    name_files(rows)
    rows.sort(key=lambda r: (DOMAINS.index(r["domain"]), r["file"]))
    if sheets:
        contact_sheets(rows, sheets)
    for domain in DOMAINS:
        assert {r["part"] for r in rows if r["domain"] == domain} == set(PARTS), (
            f"{domain} lacks a part"
        )
    out.mkdir(parents=True, exist_ok=True)
    for archive in ARCHIVES:
        mine = [r for r in rows if ARCHIVE_OF[r["licence"]] == archive]
        packages = sorted({r["package"] for r in mine})
        files = {r["file"]: webp(r["glyphs"]) for r in mine}
        files |= {
            f"copyright/{r['package']}.txt": r["copyright"].encode() for r in mine
        }
        files |= {
            "index.csv": table(mine).encode(),
            "LICENSE.txt": licence_text(archive, packages).encode(),
        }
        write_zip(out / f"{archive}.zip", files)
    (out / "families.csv").write_text(families_table(rows), "utf-8")
    (out / "README.md").write_text(readme(rows, by_pixels, cases), "utf-8")
    return rows


if __name__ == "__main__":
    if sys.argv[1:] == ["--packages"]:
        sys.exit(print("\n".join(sorted({r["package"] for r in table_of_fonts()}))))
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    built = build(
        Path(sys.argv[1]),
        sheets=Path(sys.argv[3]) if sys.argv[2:3] == ["--sheets"] else None,
    )
    print(
        Counter(r["domain"] for r in built),
        f"{sum(p.stat().st_size for p in OUT.iterdir()) / 1e6:.1f} MB",
    )
    print("now run: python tools/checksums.py")
