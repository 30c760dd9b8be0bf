"""Sphinx settings. Build: ``sphinx-build -W -b html docs docs/_build/html`` (offline)."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from command_help import write as write_help
from notebooks import write as write_tutorials
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
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",  # after napoleon
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = f"hrda_lib {release}"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # nn.Module's own words about forward() and train() are not ours
napoleon_google_docstring = True
napoleon_numpy_docstring = False
always_use_bars_union = True
typehints_defaults = None

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# our own references must resolve; nothing is downloaded, so those to other libraries stay plain text
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!hrda_lib\b).*")]


def resolve_short_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """``hrda_lib.geometry.CropBox``, as type hints call it, is documented as ``hrda_lib.CropBox``."""
    if node.get("refdomain") != "py":
        return None
    ending, domain = "." + node["reftarget"].rpartition(".")[2], env.domains["py"]
    names = [name for name in domain.objects if name.startswith("hrda_lib.") and name.endswith(ending)]
    if len(names) != 1:
        return None
    return domain.resolve_any_xref(env, node["refdoc"], app.builder, names[0], node, content)[0][1]


def drop_field_numbers(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Python's own words for a named tuple's field, which say nothing."""
    lines[:] = [line for line in lines if not line.startswith("Alias for field number")]


def setup(app: Any) -> None:
    write_help(Path(app.srcdir) / "generated")
    write_tutorials(Path(app.srcdir) / "generated" / "tutorials")
    app.connect("missing-reference", resolve_short_name)
    app.connect("autodoc-process-docstring", drop_field_numbers)
