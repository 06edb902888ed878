"""How Sphinx builds the site: `make site` writes it to build/site; a warning is an error."""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for generate.py

from diptych import __version__  # noqa: E402

project = "diptych"
author = "The diptych developers"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["pictures", "launching", "**/.ipynb_checkpoints"]
smartquotes = False  # would make an en dash of the two hyphens of a flag
nitpicky = False  # types of other libraries are named in signatures, and their pages are elsewhere

# Markdown. Links to #headings are made as GitHub makes them, so that pages read well there too.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
suppress_warnings = ["myst.strikethrough"]

# Python. Signatures keep names as they are written, instead of every type spelled out.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

# The page. Nothing is fetched from elsewhere: the site opens from a disk without a network.
html_theme = "furo"
html_title = "diptych"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Links to other sites: `make site-links`. Papers are asked for by number, which arXiv limits.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False


def setup(app: Any) -> None:
    """Writes the generated pages, pictures and notebooks before Sphinx looks for pages."""
    import generate

    app.connect("config-inited", lambda *_: generate.everything(HERE / "generated"))
