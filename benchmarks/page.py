"""Where the bytes of a page go: `benchmarks/page.py PAGE`, the index.html of a report."""

import argparse
import re
from pathlib import Path

PARTS = {
    "figures": r"<svg.*?</svg>",
    "tables": r"<table.*?</table>",
    "texts": r'<section class="view">.*?</section>',
    "how it was measured": r'<div class="how">.*?</div>',
    "style": r"<style>.*?</style>",
    "contents": r"<nav.*?</nav>",
}
RESULT = re.compile(r'<section id="result-([^"]*)"(.*?)(?=<section id="|</main>)', re.DOTALL)


def size(text: str) -> int:
    return len(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    text = parser.parse_args().page.read_text(encoding="utf-8")
    print(f"{size(text):>9,}  page")
    for name, pattern in PARTS.items():
        found = re.findall(pattern, text, re.DOTALL)
        print(f"{sum(map(size, found)):>9,}  {name}, {len(found)}")
    results = sorted(((size(body), name) for name, body in RESULT.findall(text)), reverse=True)
    for count, name in results[:12]:
        print(f"{count:>9,}  {name}")


if __name__ == "__main__":
    main()
