"""Makes the pictures of the README from a real run: python docs/make_pictures.py

Trains experiments/shakespeare.toml into a temporary folder and keeps what the live display shows at a step on
the way, at several widths: docs/live_60.svg and so on; that of 100 columns is docs/live_display.svg as well.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from rich.console import Console

import gptkit
from gptkit import events
from gptkit.cli.render_live import LiveView

ROOT = Path(__file__).parent.parent
SIZES = ((60, 20), (100, 30), (160, 40))  # columns and rows
README = 100  # columns of the one that the README shows
STEP = 600  # at which the pictures are taken


def without_web_fonts(svg: str) -> str:
    """The picture as it is where nothing may be fetched: in the reader's own monospaced font."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    with open("/dev/null", "w") as nowhere:
        consoles = [
            Console(record=True, width=width, height=height, force_terminal=True, file=nowhere)
            for width, height in SIZES
        ]
        views = [LiveView(console) for console in consoles]

        def watch(event: events.Event) -> None:
            if isinstance(event, events.StepDone) and event.step > STEP:
                return
            for view in views:
                view(event)
            if isinstance(event, events.StepDone) and event.step == STEP:
                for console, view in zip(consoles, views, strict=True):
                    keep(console, view)

        def keep(console: Console, view: LiveView) -> None:
            console.print(view.render())
            svg = without_web_fonts(console.export_svg(title="gptkit train experiments/shakespeare.toml"))
            names = [f"live_{console.width}.svg"] + ["live_display.svg"] * (console.width == README)
            for name in names:
                (ROOT / "docs" / name).write_text(svg)

        with tempfile.TemporaryDirectory() as folder:
            gptkit.train(ROOT / "experiments" / "shakespeare.toml", runs_folder=folder, listener=watch)


if __name__ == "__main__":
    main()
