"""Pages: rendered from templates, and written.

In: what a page shows. Out: one HTML file that needs nothing else: style and script stand in it, and its
content security policy names their hashes, so nothing else runs and nothing is ever requested. All text is
escaped by the templates.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gptkit.files import disk_errors, replace_file

_TEMPLATES = Path(__file__).parent / "templates"
# What a page may not hold as a character: controls, halves of characters, and marks that turn text around
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def render(template: str, **shown: Any) -> bytes:
    """The page of a template, in UTF-8."""
    style, script = _text("style.css"), _text("script.js")
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),
            script=Markup(script),
            policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'",
            **shown,
        )
    )
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", page).encode()


def write_page(path: Path, page: bytes) -> None:
    """Puts a page in its place all at once. Raises DiskError."""
    with disk_errors(f"writing {path.name}", needed=len(page)):
        replace_file(path, page)


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no '<', '>' or '&', nothing beyond ASCII."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def breakable(text: str) -> Markup:
    """A dotted name that a narrow page may break after its dots and underscores."""
    return Markup(str(escape(text)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"script_json": script_json, "breakable": breakable}
    return environment


@cache
def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
