"""Sphinx settings of the documentation site; outputs are the stored ones."""

project = "transfer_course"
author = "The transfer_course authors"
extensions = ["myst_nb"]
nb_execution_mode = "off"
html_theme = "furo"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
exclude_patterns = ["**.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "myst.xref_missing", "misc.highlighting_failure", "toc.not_included"]
