"""How the documentation is built: by Sphinx, from docstrings and what the code says of itself."""

import sys
from pathlib import Path

from driftlens import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "driftlens"
release = version = __version__
html_title = f"driftlens {release}"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "made"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

# What a docstring has in single backticks is a name: a link where it is documented, else code.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
# Our dashes and quotes are meant as they stand: a command that is copied must work.
smartquotes = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_static_path = ["style"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_math_renderer = "mathml"
