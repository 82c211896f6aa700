"""Makes the report that is kept in `demo/`, the gallery in `gallery/`, and the README of both.

    python reports/gallery.py [--keep]

`--keep` leaves `demo/` as it is. It takes a quarter of an hour, and a Chromium for the pictures of
the page; what is drawn is checked by `./dev golden`.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

HERE = Path(__file__).parent
DEMO, GALLERY = HERE / "demo", HERE / "gallery"

PAGE = "report demo:base demo:aligned"
"""What makes the report that is kept."""


class Shown(NamedTuple):
    """A figure of the gallery."""

    question: str
    command: str
    result: str
    """What the name of its file begins with in the folder of that command's report."""

    name: str = ""
    """What it is called in the gallery, of another report than the one that is kept."""


SHOWN = (
    Shown("Which layers lost it?", PAGE, "layer_forgetting-world"),
    Shown("By which weights?", PAGE, "weight_path-world"),
    Shown("On which kinds of tokens?", PAGE, "token_kinds-world"),
    Shown("What would bring it back, piece by piece?", PAGE, "restoration-world"),
    Shown("How far did each layer move?", PAGE, "drift-world"),
    Shown("Which of its first choices are new?", PAGE, "token_shift-world"),
    Shown("Is it surer than it is right?", PAGE, "calibration-world"),
    Shown("Does it say one thing only?", PAGE, "homogenisation-questions"),
    Shown("Does its doubt tell where it is wrong?", PAGE, "risk_coverage-questions"),
    Shown("Is base's refusal direction still there?", PAGE, "safety_directions-guarded-choices"),
    Shown("What does each layer believe, and does negation break it?", PAGE, "polarity-deeds"),
    Shown("What would undo the loss and keep the alignment?", PAGE, "mitigation"),
    Shown("Which heads lost it?", f"attribute{PAGE[6:]} --by head", "weight_path-world", "heads"),
    Shown(
        "Which stage of training cost what?",
        "report demo:base demo:sft demo:aligned",
        "stages",
        "stages",
    ),
    Shown(
        "Would training on these pairs move both answers as meant?",
        "check demo:sft --preferences demo:pairs",
        "entanglement-demo-pairs",
        "entanglement",
    ),
    Shown(
        "What does steering gain, and what does it cost?",
        "steer demo:base --aligned demo:aligned --contrast manners",
        "tradeoff",
        "tradeoff",
    ),
)

VIEWS = {
    "page": ({"width": 1180, "height": 1240}, "light"),
    "page-dark": ({"width": 1180, "height": 1240}, "dark"),
    "page-phone": ({"width": 360, "height": 780}, "light"),
}
"""Pictures of the head of the page: the size of the window, and which colours it asks for."""

TOKENS = "#result-token_forgetting-world .view"
"""What shows documents token by token."""


def main() -> None:
    """Make all of it."""
    parser = argparse.ArgumentParser(description="Make the kept report and the gallery.")
    parser.add_argument("--keep", action="store_true", help="Leave the kept report as it is.")
    if not parser.parse_args().keep:
        run(PAGE, DEMO)
        for picture in DEMO.glob("figures/*.png"):
            # The same as the SVG beside it, in thrice its bytes.
            picture.unlink()
    shutil.rmtree(GALLERY, ignore_errors=True)
    GALLERY.mkdir()
    photograph(DEMO / "index.html")
    with TemporaryDirectory() as folder:
        (HERE / "README.md").write_text("\n".join(written(Path(folder))), "utf-8")


def run(command: str, out: Path) -> None:
    """Run driftlens, to write its report to a folder."""
    call = [sys.executable, "-m", "driftlens", *shlex.split(command), "--overwrite", "--quiet"]
    # Told as anyone may type it: a report keeps its command.
    place = "reports/demo" if out == DEMO else str(out)
    subprocess.run([*call, "--out", place], check=True, cwd=HERE.parent)


def photograph(page: Path) -> None:
    """Take the pictures of the page."""
    from playwright.sync_api import sync_playwright

    browser_of = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_of, args=["--no-sandbox"])
        for name, (size, colours) in VIEWS.items():
            seen = browser.new_page(viewport=size, color_scheme=colours)
            seen.goto(page.as_uri())
            seen.screenshot(path=GALLERY / f"{name}.png")
        seen = browser.new_page(viewport={"width": 1180, "height": 900})
        seen.goto(page.as_uri())
        seen.locator(TOKENS).first.screenshot(path=GALLERY / "tokens.png")
        browser.close()


def written(folder: Path) -> Iterator[str]:
    """The lines of the README, while what it shows is put in its place."""
    yield HEAD
    made = {PAGE: DEMO}
    for shown in SHOWN:
        if shown.command not in made:
            made[shown.command] = folder / str(len(made))
            run(shown.command, made[shown.command])
        yield from of(shown, made[shown.command])


def of(shown: Shown, made: Path) -> Iterator[str]:
    """What the README says of a figure."""
    record = json.loads((made / "results.json").read_text("utf-8"))
    drawn = {str(one["figure"]): one for one in record["results"] if one["figure"]}
    file = next((name for name in drawn if name.startswith(f"figures/{shown.result}")), None)
    if file is None:
        raise SystemExit(
            f"driftlens {shown.command} drew no {shown.result}, but {', '.join(drawn)}"
        )
    result, place = drawn[file], f"demo/{file}"
    if made != DEMO:
        place = f"gallery/{shown.name}.svg"
        shutil.copy(made / file, HERE / place)
    yield f"## {shown.question}\n"
    yield f"`driftlens {shown.command}`\n"
    yield f"> {result['summary']}\n"
    yield f"![{result['title']}]({place})\n"


HEAD = """\
# Reports

`driftlens report` writes here unless `--out` says otherwise; what it writes is not kept under
version control. Two folders are: `demo/`, the report of the demo pair, and `gallery/`.
`reports/gallery.py` makes both and this page, so that every sentence below is what a command said.

| open | is |
|---|---|
| [`demo/index.html`](demo/index.html) | the page, one file that loads nothing |
| [`demo/results.json`](demo/results.json) | the same for programs (`driftlens schema`) |
| [`demo/tables/`](demo/tables) | every table whole, as Parquet |
| [`demo/figures/`](demo/figures) | every figure as SVG; a report has PNGs too |

`./dev golden` makes that report anew and holds it against the one that is kept. Words, data,
models, gates, columns, rows and figures must be the same. A number may differ by a thousandth of
itself, a hundredth of its error bar, or 1e-5; one of drawn answers, of which a few turn between
machines, by a twentieth or a quarter of its bar; in a table by a part of the largest of its column,
but for two rows in a hundred. And the page must be, to the byte, what is drawn today of that
record.

![The head of the page](gallery/page.png)

Dark, on a narrow screen, and texts token by token:

<img alt="The head of the page, dark" src="gallery/page-dark.png" width="58%">
<img alt="The head of the page on a narrow screen" src="gallery/page-phone.png" width="24%">

![Documents in which every token has the colour of what it lost](gallery/tokens.png)
"""


if __name__ == "__main__":
    main()
