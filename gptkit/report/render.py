"""Renders pages from templates, formats values for them, writes them.

Input: what a page shows. Output: one HTML file that needs nothing else: it contains its style and script, and
its content security policy names their hashes, so that nothing else runs and nothing is ever requested. The
templates escape all text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gptkit.files import disk_errors, replace_file

MAX_TEXT, MAX_ROWS = 400, 60  # characters of a value, rows of a table

Row = tuple[str, str]

_TEMPLATES = Path(__file__).parent / "templates"
# Characters that a page may not contain: controls, lone surrogates, and marks that change the text direction
_FORBIDDEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def render(template: str, **values: Any) -> bytes:
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
            **values,
        )
    )
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", page).encode()


def write_page(path: Path, page: bytes) -> None:
    """Replaces the file as a whole. Raises DiskError."""
    with disk_errors(f"writing {path.name}", needed=len(page)):
        replace_file(path, page)


def rows(pairs: Iterable[tuple[str, Any]]) -> list[Row]:
    """Names and values as text, without those that have no value."""
    texts = [(name[:MAX_TEXT], text_of(value)) for name, value in pairs]
    return [(name, text) for name, text in texts if text][:MAX_ROWS]


def text_of(value: Any) -> str:
    """A value of run.json as text, shortened; "" for none."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _shortened(text)


def toml_text(value: Any) -> str:
    """A value as in an experiment file, shortened."""
    if value is None:
        return "not set"
    in_json = isinstance(value, bool | str | list | dict)
    return _shortened(json.dumps(value, ensure_ascii=False, default=str) if in_json else str(value))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def number_text(value: float) -> str:
    """A number with about five digits."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:.4f}" if abs(value) >= 0.1 else f"{value:.4g}"


def moment_text(moment: str | None) -> str:
    """A moment as recorded, to the second, with its offset from UTC."""
    try:
        return datetime.fromisoformat(moment or "").strftime("%Y-%m-%d %H:%M:%S %z").strip()
    except ValueError:
        return text_of(moment)


def duration_text(seconds: float) -> str:
    if not 60 <= seconds < 1e9:
        return f"{seconds:,.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def script_json(value: Any) -> Markup:
    """JSON that is safe in a script element: no '<', '>' or '&', only ASCII."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def breakable(text: str) -> Markup:
    """A dotted name that may be broken after its dots and underscores on a narrow page."""
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
