"""How Sphinx builds these pages: `python -m sphinx -W -b html docs docs/_build/html`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ignite imports parts of torch that torch has deprecated
    import sbi_ignite.inference
    import sbi_ignite.training.run  # imported here, before autodoc counts warnings

project = "sbi_ignite"
author = "the developers of sbi_ignite"
project_copyright = "the developers of sbi_ignite, Apache-2.0"
release = version = sbi_ignite.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
    "generated_pages",
]
exclude_patterns = ["_build", "_extensions", "pictures"]
root_doc = "index"
nitpicky = True
# Objects of other projects cannot be looked up without a network.
nitpick_ignore_regex = [("py:.*", r"(?!sbi_ignite\.).*")]
show_warning_types = True

# --- pages

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute notebooks; pages show the outputs that they hold

# --- docstrings: Google's style, with Markdown's single backticks

default_role = "code"
toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# --- the theme; everything that it needs is copied into the built pages

html_theme = "sphinx_book_theme"
html_title = "sbi_ignite"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_exclude = ".linenos, .gp, .go"
