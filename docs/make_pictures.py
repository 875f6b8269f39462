"""Makes the pictures of the README from a real run: python docs/make_pictures.py

Trains experiments/shakespeare.toml into a temporary folder and keeps what the live display shows on the way.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from rich.console import Console

import gptkit
from gptkit import events
from gptkit.cli.render_training import LiveView

ROOT = Path(__file__).parent.parent
WIDTH = 100  # columns
STEP = 700  # at which the picture is taken


def without_web_fonts(svg: str) -> str:
    """The picture as it is where nothing may be fetched: in the reader's own monospaced font."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=WIDTH, force_terminal=True, file=nowhere)
        view = LiveView(console)

        def watch(event: events.Event) -> None:
            done = isinstance(event, events.StepDone) and event.step > STEP
            if not done and not isinstance(event, events.SampleDrawn):
                view(event)
            if isinstance(event, events.SampleDrawn) and event.step < STEP:
                view(event)
            if isinstance(event, events.StepDone) and event.step == STEP:
                console.print(view.render())
                svg = console.export_svg(title="gptkit train experiments/shakespeare.toml")
                (ROOT / "docs" / "live_display.svg").write_text(without_web_fonts(svg))

        with tempfile.TemporaryDirectory() as folder:
            gptkit.train(ROOT / "experiments" / "shakespeare.toml", runs_folder=folder, listener=watch)


if __name__ == "__main__":
    main()
