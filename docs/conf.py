"""Sphinx settings. Build: ``sphinx-build -W -b html docs docs/_build/html`` (offline)."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(2, str(Path(__file__).resolve().parent))

from archive import write_archive
from command_help import write as write_help
from folding import fold
from notebooks import write as write_tutorials
from offline import check_offline, copy_mathjax
from pictures import draw_all, stale, substitutions
from plain_text import write_plain_text
from sphinx.deprecation import RemovedInSphinx10Warning

import hrda_lib

# sphinx-autodoc-typehints calls what a later Sphinx will remove
warnings.filterwarnings("ignore", category=RemovedInSphinx10Warning)

project = "hrda_lib"
author = "The hrda_lib authors"
copyright = author
version = release = hrda_lib.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",  # after napoleon
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
# tables are included in pages
exclude_patterns = ["_build", "jupyter_execute", "inventories", "tables"]

html_theme = "furo"
html_title = f"hrda_lib {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_favicon = "_static/favicon.svg"
mathjax_path = "mathjax/tex-chtml.js"  # copied from the package by offline.py
# the menu's own files are not copied
mathjax3_config = {"options": {"enableMenu": False}}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
# {{ crops }}: a picture of the gallery, with its caption
myst_substitutions = substitutions()
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# nn.Module's own words about forward() and train() are not ours
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
always_use_bars_union = True
typehints_defaults = None
typehints_use_signature = True
python_maximum_signature_line_length = 88

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# the names of other libraries that our pages use, as inventories written by hand: nothing is downloaded
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.txt"),
    "torch": ("https://docs.pytorch.org/docs/stable/", "inventories/torch.txt"),
}
DOCUMENTED_AS = {
    "torch.nn.modules.module": "torch.nn",
    "torch._C": "torch",
    "torch.optim.optimizer": "torch.optim",
}

# our own references must resolve; those to names that no inventory has stay plain text
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!hrda_lib\b).*")]


def name_as_documented(app: Any, env: Any, node: Any, content: Any) -> None:
    """Type hints name the module that defines a class, torch's documentation the one that exports it."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    if module in DOCUMENTED_AS:
        node["reftarget"] = f"{DOCUMENTED_AS[module]}.{name}"


def resolve_short_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """``hrda_lib.geometry.CropBox``, as type hints call it, is documented as ``hrda_lib.CropBox``."""
    if node.get("refdomain") != "py":
        return None
    ending, domain = "." + node["reftarget"].rpartition(".")[2], env.domains["py"]
    names = [
        name
        for name in domain.objects
        if name.startswith("hrda_lib.") and name.endswith(ending)
    ]
    if len(names) != 1:
        return None
    return domain.resolve_any_xref(
        env, node["refdoc"], app.builder, names[0], node, content
    )[0][1]


def drop_field_numbers(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Python's own words for a named tuple's field, which say nothing."""
    lines[:] = [line for line in lines if not line.startswith("Alias for field number")]


def draw_pictures(app: Any) -> None:
    if stale():
        draw_all()


def setup(app: Any) -> None:
    write_help(Path(app.srcdir) / "generated")
    write_archive(Path(app.srcdir) / "generated" / "examples.zip")
    write_tutorials(Path(app.srcdir) / "generated" / "tutorials")
    app.connect("builder-inited", draw_pictures)
    # before intersphinx looks it up
    app.connect("missing-reference", name_as_documented, priority=400)
    app.connect("missing-reference", resolve_short_name)
    app.connect("autodoc-process-docstring", drop_field_numbers)
    app.connect("html-page-context", fold)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", write_plain_text)
    app.connect("build-finished", check_offline)
