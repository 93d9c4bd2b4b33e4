"""Sphinx settings of the documentation site.

Outputs are the stored ones, and no page asks another machine for anything.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

HERE = Path(__file__).parent
log = logging.getLogger(__name__)
# Written by tools/docs_site.py.
about = json.loads((HERE / "about.json").read_text(encoding="utf-8"))

project = about["name"]
author = about["author"]
version = release = about["version"]
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["**.ipynb_checkpoints"]
# %magics and !shell lines are no Python.
suppress_warnings = ["misc.highlighting_failure"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "fieldlist"]
myst_heading_anchors = 3

python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_copy_source = False
html_domain_indices = False
html_show_copyright = False
mathjax_path = "mathjax/tex-svg.js"
# The menu would load parts of MathJax that are not here.
mathjax3_config = {"options": {"enableMenu": False}}


def add_alt_texts(app, doctree):
    """Give every image its alt text.

    myst-nb names an image by its sha256 and forgets its words; the build noted them by
    that name.
    """
    for image in doctree.findall(nodes.image):
        image["alt"] = image.get("alt") or about["alt"].get(Path(image["uri"]).stem, "")
        if not image["alt"]:
            log.warning("a picture without alt text: %s", image["uri"], location=image)


def setup(app):
    """Sphinx calls this."""
    app.connect("doctree-read", add_alt_texts)
