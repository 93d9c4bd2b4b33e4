"""Packaging; the names, versions and requirements stand in settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def words(key):
    return cfg.get(key, "").split()


extras = {
    k.removesuffix("_requirements"): words(k)
    for k in cfg
    if k.endswith("_requirements")
}
extras["all"] = sorted(
    {r for k, rs in extras.items() if k not in ("dev", "bench") for r in rs}
)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    packages=find_packages(include=["transfer_course", "transfer_course.*"]),
    package_data={"transfer_course": ["assets/**/*", "lessons/**/*", "lessons/*"]},
    include_package_data=True,
    python_requires=">=" + cfg["min_python"],
    install_requires=words("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": ["transfer-course = transfer_course.cli:main"]},
)
