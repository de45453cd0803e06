"""The templates of the pages."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def template(page: str) -> "Template":
    """The template of a page, PAGE.html.jinja next to this file, with the pieces that it shares with others."""
    import jinja2

    # Captions are a model's output on anybody's images, so nothing reaches the page unescaped but the plots.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{page}.html.jinja")
