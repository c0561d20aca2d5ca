"""Sphinx's settings. `make site` stages the pages beside a copy of this file and builds them, see build.py."""

import xml.etree.ElementTree as ElementTree

from latex2mathml.converter import convert

project = "rece"
author = "the rece authors"
html_title = "rece: make a text-to-image model forget"
extensions = ["myst_nb", "sphinx_design"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are those of the runs that are in git
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "use_download_button": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
suppress_warnings = ["mystnb.unknown_mime_type"]


def mathml(latex: str, display: str) -> str:
    """A formula as MathML, which browsers draw by themselves: no script, and readable for screen readers."""
    node = ElementTree.fromstring(convert(latex, display=display))
    node.set("alttext", " ".join(latex.split()))
    ElementTree.register_namespace("", "http://www.w3.org/1998/Math/MathML")
    return ElementTree.tostring(node, encoding="unicode")


def setup(app):
    """Formulas become MathML."""
    from docutils.nodes import SkipNode

    def inline(self, node):
        self.body.append(mathml(node.astext(), "inline"))
        raise SkipNode

    def block(self, node):
        self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
