"""Render the pages of ``templates/``: each is one HTML file that needs no network and no other file."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image


def render(template: str, **values: Any) -> str:
    """Render a template. Values are escaped in HTML, and not in Markdown.

    The template gets ``heading(title)``, which returns a heading and adds it to the table of contents.
    """
    contents: list[str] = []

    def heading(title: str) -> Markup:
        contents.append(title)
        return Markup('<h2 id="section-{}">{}</h2>').format(len(contents), title)

    environment = Environment(
        loader=PackageLoader("fractatlas"),
        autoescape=lambda name: name is not None and ".html." in name,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(contents=contents, heading=heading, **values)


def svg_address(svg: str) -> str:
    """Return a ``data:`` URL of an SVG image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def jpeg_address(image: Image.Image) -> str:
    """Return a ``data:`` URL of an image, compressed as JPEG."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
