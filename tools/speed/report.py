"""The findings of a row, and the table of all rows: for a terminal, in Markdown, in JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


class SkippedError(Exception):
    """A row that cannot be measured on this machine; the message is the reason."""


@dataclass(frozen=True)
class Finding:
    """One line of the table. `met` is None if nothing was measured."""

    what: str
    target: str
    measured: str
    how: str = ""
    met: bool | None = None
    numbers: dict[str, float | str] = field(default_factory=dict)


_HEADER = ("what", "target", "measured", "met", "how")
_MET = {True: "yes", False: "no", None: "-"}


def machine() -> str:
    """The machine and versions of the measurement."""
    import torch

    from gptkit.backend import choose_backend, fingerprint
    from gptkit.experiment.schema import TrainingSettings
    from gptkit.machine import usable_processors

    backend = choose_backend(TrainingSettings(backend="cpu"))
    facts = fingerprint(backend)
    return (
        f"{facts['processor']}, {usable_processors()} cores, {backend.precision}{_gpu()}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def _gpu() -> str:
    import torch

    return f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def table(findings: Sequence[Finding], *, markdown: bool) -> str:
    rows = [_HEADER, *((f.what, f.target, f.measured, _MET[f.met], f.how) for f in findings)]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(_HEADER), *lines[1:]])
    blocks = []
    for what, target, measured, met, how in rows[1:]:
        blocks.append(f"{what}\n  target    {target}\n  measured  {measured}\n  met       {met}")
        if how:
            blocks[-1] += f"\n  how       {how}"
    return "\n".join(blocks)


def as_json(findings: dict[str, Sequence[Finding]]) -> str:
    rows = [{"row": row, **asdict(finding)} for row, found in findings.items() for finding in found]
    return json.dumps({"machine": machine(), "rows": rows}, indent=1)


def count(number: float) -> str:
    """A rate with three digits and separators."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
