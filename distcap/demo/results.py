"""A comparison as HTML."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from distcap.data.images import decode
from distcap.demo.comparison import Comparison, Telling
from distcap.report.page import Pictures
from distcap.types import UserError

if TYPE_CHECKING:
    from jinja2 import Template

MOST = 50
"""Images that are compared at a time."""


def respond(comparison: Comparison, uploads: Sequence[str] | None) -> str:
    """The results for uploaded files; of those that are no images, one line each."""
    files, problems = [], []
    for upload in map(Path, uploads or []):
        try:
            decode(upload, 1)
            files.append(upload)
        except UserError:
            problems.append(f"{upload.name} could not be read as an image, and is left out.")
    if len(files) > MOST:
        problems.append(f"{len(files)} images are too many; the first {MOST} are compared.")
    if not files:
        problems.append("There is nothing to caption yet: drop some images first, best of all look-alikes.")
    elif len(files) == 1:
        problems.append("A single image is found by any caption: drop others that look like it.")
    files = files[:MOST]
    return render(files, comparison(files) if files else [], problems)


def render(files: Sequence[Path], tellings: Sequence[Telling], problems: Sequence[str]) -> str:
    """HTML of what each speaker says of each file. Whatever a file or a caption says is escaped."""
    pictures = Pictures(size=320)
    shown = [{"name": file.name, "picture": pictures(str(file))} for file in files]
    return _template().render(shown=shown, tellings=tellings, problems=problems)


@cache
def _template() -> "Template":
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string((Path(__file__).parent / "results.html.jinja").read_text(encoding="utf-8"))
