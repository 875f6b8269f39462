"""Makes the pictures and the shown output of the documentation: python -m tools.make_pictures

- docs/live_60.svg, live_display.svg (100 columns) and live_160.svg: what the live display shows at a step of
  experiments/shakespeare.toml.
- docs/report.png and comparison.png, light and dark: pages of twelve runs of shakespeare_quick.toml,
  four positional encodings by three seeds, as Chromium shows them.
- In docs/getting-started.md, the text below each `<!-- output of: COMMAND -->`.

It takes some three minutes on two CPU cores, and Tiny Shakespeare in a data folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

import gptkit
from gptkit import events
from gptkit.cli.display.live import LiveView

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SIZES = ((60, 20, "live_60"), (100, 30, "live_display"), (160, 40, "live_160"))  # columns and rows
STEP = 600  # at which the live display is taken
POSITIONS = ("rope", "alibi", "learned", "none")
SEEDS = (1, 2, 3)
WIDTH, HEIGHT = 1000, 1160  # pixels of a page's picture
OUTPUT = re.compile(r"(<!-- output of: (.+?) -->\n```\n).*?(^```$)", re.MULTILINE | re.DOTALL)


def without_web_fonts(svg: str) -> str:
    """The picture without fonts from the network: it uses the reader's own monospaced font."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def live_pictures(workspace: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        consoles = [
            Console(record=True, width=width, height=height, force_terminal=True, file=nowhere)
            for width, height, _ in SIZES
        ]
        views = [LiveView(console) for console in consoles]

        def watch(event: events.Event) -> None:
            if isinstance(event, events.StepDone) and event.step > STEP:
                return
            for view in views:
                view(event)
            if isinstance(event, events.StepDone) and event.step == STEP:
                for console, view, (*_, name) in zip(consoles, views, SIZES, strict=True):
                    console.print(*view.lines(), sep="\n")
                    svg = console.export_svg(title="gptkit train experiments/shakespeare.toml")
                    (DOCS / f"{name}.svg").write_text(without_web_fonts(svg))

        gptkit.train(
            ROOT / "experiments" / "shakespeare.toml", runs_folder=workspace / "live", listener=watch
        )


def run_gptkit(words: str, workspace: Path) -> str:
    """The output of a command in a workspace with the experiments. Raises CalledProcessError."""
    done = subprocess.run(
        [sys.executable, "-m", "gptkit", *words.split()],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def train_all(workspace: Path) -> None:
    shutil.copytree(ROOT / "experiments", workspace / "experiments")
    for position in POSITIONS:
        for seed in SEEDS:
            run_gptkit(
                "train experiments/shakespeare_quick.toml --eval-interval 20 --quiet "
                f"--set model.position={position} --set sampling.sample_interval=40 --seed {seed} "
                f"--name {position}",
                workspace,
            )


def page_pictures(workspace: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        print("no Chromium here, so the pictures of the pages stay as they are", file=sys.stderr)
        return
    run_gptkit("runs compare --where step=220 --html comparison.html", workspace)
    report = next((workspace / "runs").glob("rope*")) / "report.html"
    for name, page in (("report", report), ("comparison", workspace / "comparison.html")):
        for scheme, setting in (("", 1), ("_dark", 0)):  # Blink's numbers of light and dark
            subprocess.run(
                [
                    *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                    f"--blink-settings=preferredColorScheme={setting}",
                    f"--window-size={WIDTH},{HEIGHT}",
                    f"--screenshot={DOCS / f'{name}{scheme}.png'}",
                    page.resolve().as_uri(),
                ],
                stderr=subprocess.DEVNULL,
                check=True,
            )


def shown(output: str) -> str:
    """The output without the samples of the runs, which are long."""
    return output.split("\nA writes, at step", maxsplit=1)[0].rstrip("\n") + "\n"


def outputs(workspace: Path) -> None:
    page = DOCS / "getting-started.md"
    text = OUTPUT.sub(
        lambda found: found[1] + shown(run_gptkit(found[2].removeprefix("gptkit "), workspace)) + found[3],
        page.read_text("utf-8"),
    )
    page.write_text(text, "utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        live_pictures(workspace)
        train_all(workspace)
        page_pictures(workspace)
        outputs(workspace)


if __name__ == "__main__":
    main()
