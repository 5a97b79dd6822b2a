"""Renders HTML pages that need no other file and no network, from Jinja templates; all share one style sheet."""

import base64
from pathlib import Path

import jinja2

SHARED = Path(__file__).parent / "pages"


def environment(templates: Path) -> jinja2.Environment:
    """Jinja for the templates of a folder, which may include ``page.css``; values are escaped.

    The filter ``data_uri("jpeg")`` puts the bytes of an image into the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
