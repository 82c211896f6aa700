"""The page in a real browser: what eyes, ears, keys, paper and hostile texts find there."""

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import nets
from driftlens import comparison, series
from driftlens.diagnostics import (
    Drift,
    Forgetting,
    Lens,
    Polarity,
    Ranking,
    ShiftedTokens,
    TokenForgetting,
    WeightChange,
    overview,
)
from driftlens.diagnostics.retention import Retention
from driftlens.metric import measure
from driftlens.packs import Pack
from driftlens.report import Report
from driftlens.results import (
    Check,
    DocumentView,
    Estimate,
    Result,
    TextView,
    TokenView,
    column,
    fact,
    figures,
    value,
)
from driftlens.results.result import kinds
from driftlens.steer import selection

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""What a browser may be called; Debian's is the first."""

KEPT = Path(__file__).parents[1] / "reports/demo/index.html"
"""The report of the demo pair that is kept."""

PHONE, TABLET, DESK, PAPER = 360, 768, 1280, 688
"""Widths in CSS pixels; of paper, what A4 leaves between its margins."""

LEAST, FAINTEST = 11.7, 4.5
"""The smallest letters, in CSS pixels, and the least contrast of text with what is behind it."""

LONG = "w" * 10_000
HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "javascript:window.hacked=3",
    "</style></svg></title><svg onload=window.hacked=4>",
    "\u202eright to left\u2066\u2069",
    "\x00\x07\x08\x1b[31mred\x1b[0m\r\n\x7f\x9b",
    "\ud800\udfff",
    "Z\u0310\u0334" + "\u0301" * 60,
    "שלום, עולם",
    "مرحبا",
    "👩🏽\u200d🚀🇦🇶",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %} %(x)s {0}",
    "url(https://example.org/a.png)",
    LONG,
]


@dataclass(frozen=True)
class Shown(Result):
    """A result with everything that a page can hold."""

    kind = "test_shown"
    title = "Loss by token"
    how = """It is measured so; see https://example.org.

        Δ = log p_base − log p_aligned
    """
    rise: Estimate = value("nats/token")
    faint: Estimate = value("nats/token")
    source: str = fact()
    names: tuple = fact()
    token: np.ndarray = column()
    loss: np.ndarray = column("nats")
    right: np.ndarray = column()

    def figure(self):
        axes = figures.panels(2)[1]
        says = {"xlabel": self.source, "ylabel": self.label("loss")}
        figures.bars(self.token[:20], self.loss[:20], **says, floor=1.5, on=axes[0])
        lines = {name: self.loss[:5] + n for n, name in enumerate(self.token[:5])}
        return figures.curves(np.arange(5), lines, **says, on=axes[1])

    def headline(self):
        return f"lost {self.rise} nats a token on {self.source}"

    def views(self):
        every = zip(self.token, np.resize(np.linspace(-9, 9, 25), len(self.token)), strict=True)
        tokens = [TokenView(str(token), float(size), f"{token}") for token, size in every]
        tokens.append(TokenView("dotted", np.nan))
        return [
            TextView(self.source, [DocumentView(f"document {n}", tokens[:30]) for n in range(4)])
        ]


def shown(pack="plain", tokens=tuple("abcde"), source="texts", rows=120):
    tokens = [str(token) for token in np.resize(np.array(tokens, dtype=object), rows)]
    loss = np.resize([3, 0.5, np.nan, 0, -1, -9], rows)
    rise, faint = Estimate(0.42, 0.39, 0.45), Estimate(0.01, 0.0, 0.02)
    given = {"pack": pack, "notes": tokens[:14], "floor": {"faint": 0.14, "loss": 1.0}}
    return Shown(rise, faint, source, tuple(tokens[:14]), tokens, loss, loss > 0, **given)


def report(words):
    """A report in which every text that comes from outside is one of the words."""
    checks = [
        Check(words[n % len(words)], status, words[-n])
        for n, status in enumerate(("pass", "warn", "fail", "skip"))
    ]
    run = {
        "command": " ".join(words),
        "models": {word: {"name": word, "sha256": "0f" * 32} for word in words},
        "packs": [{"name": word, "examples": 7, "sha256": "0f" * 32} for word in words],
        "seed": 0,
    }
    results = [shown(word, words, words[-1]) for word in words[:14]]
    return Report(f"{words[0]} → {words[-1]}", results, checks, run)


@pytest.fixture(scope="module")
def browser():
    """One browser for all of these, started by nobody but us."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the path")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def everything(folder):
    """A report that holds every kind of result there is, each as it is found, not made up."""
    import test_compare
    import test_evals
    import test_faithfulness
    import test_laws
    import test_mitigation
    import test_retention
    import test_series
    import test_study

    pair, pack = test_laws.pair(), test_laws.pack
    found = []
    for kind, metrics in test_laws.METRICS.items():
        found += measure(pair, pack(kind), [make() for make in metrics], rows=2, length=24)
    pairs = pack("preference").examples
    rated = [replace(one, reward=float(n % 3)) for n, one in enumerate(pairs)]
    found += measure(pair, Pack("rated", "preference", rated), [Ranking()])
    few = {"layers": {1}, "folds": 2, "restarts": 2, "steps": 20}
    found += measure(pair, pack("contrast"), [Polarity(**few, published=True)])
    found += measure(test_retention.pair(), test_retention.pack(), [Retention(shuffles=9)])
    found += [test_faithfulness.faithfulness(test_faithfulness.planted())]
    found += [test_evals.capability(*test_evals.evaluations(test_evals.both()))]
    found += test_mitigation.whole()[1].results
    found += test_study.studied().results
    asked = Pack.load("guarded"), Pack.load("guarded-choices")
    found.append(selection.select(test_study.demo(), *asked, 1, depth=1.0))
    later = nets.moved(deepcopy(pair.aligned.net), 0.1, 2)
    models = [pair.base.net, pair.aligned.net, later]
    found += series.examine(models, [test_series.TEXT], **test_series.TOKENIZER).results
    runs = [
        test_compare.written(folder / name, two, test_compare.PACK)
        for name, two in zip(("one", "other"), test_compare.pairs(), strict=True)
    ]
    found.append(comparison.compare(comparison.read(runs)).result)
    once = {(one.kind, one.pack): one for one in reversed([*overview(found), *found])}
    return Report("everything", list(once.values())[::-1])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of each report, by its name, written when it is first asked for."""

    @cache
    def write(name):
        folder = tmp_path_factory.mktemp(name)
        return PAGES[name](folder).write(folder / "it")

    return write


PAGES = {
    "plain": lambda _: report(["plain", "stories", "facts"]),
    "hostile": lambda _: report(HOSTILE),
    "everything": everything,
}


@pytest.fixture(params=nets.some(PAGES, ["plain", "hostile"]))
def file(request, written):
    return written(request.param)


@pytest.mark.slow
def test_the_page_of_everything_holds_every_kind_of_result_that_driftlens_has(written):
    record = json.loads(written("everything").with_name("results.json").read_text())
    ours = {name for name, kind in kinds().items() if kind.__module__.startswith("driftlens.")}
    assert ours == {one["kind"] for one in record["results"]}


class Open:
    """A page that is open, with all that it said and asked for."""

    def __init__(self, browser, file, *, width=DESK, scheme="light", media=None, folds=True):
        view = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=view, color_scheme=scheme)
        self.page = self.context.new_page()
        self.told, self.asked = [], []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("dialog", lambda dialog: self.told.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        if media:
            self.page.emulate_media(media=media)
        if folds:
            self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def __enter__(self):
        return self.page

    def __exit__(self, *_):
        self.context.close()


def test_the_page_says_nothing_asks_for_nothing_and_runs_nothing(browser, file):
    seen = Open(browser, file)
    with seen as page:
        page.mouse.wheel(0, 100_000)
        for token in page.locator(".text .t").all()[:20]:
            token.dispatch_event("focus")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.scripts.length") == 0
        assert page.evaluate("document.images.length") == 0
    assert seen.told == []
    assert seen.asked == [file.as_uri()]


FIGURES = """() => [...document.querySelectorAll('svg')].map(svg => ({
  role: svg.getAttribute('role'),
  name: document.getElementById(svg.getAttribute('aria-labelledby'))?.textContent.trim(),
  text: document.getElementById(svg.getAttribute('aria-describedby'))?.textContent.trim(),
  leads: [...svg.querySelectorAll('[href]')].map(e => e.getAttribute('href'))
    .filter(href => !/^(#|data:image[/]png;base64,)/.test(href)),
  lost: [...svg.querySelectorAll('[href^="#"]')].map(e => e.getAttribute('href').slice(1))
    .filter(id => !svg.querySelector(`[id="${id}"]`)),
}))"""


def test_every_figure_has_its_name_and_its_text_and_no_two_have_the_same(browser, file):
    with Open(browser, file) as page:
        found = page.evaluate(FIGURES)
        assert page.get_by_role("img").count() == len(found) > 0
    assert all(one["role"] == "img" and one["name"] and one["text"] for one in found)
    assert all(one["leads"] == one["lost"] == [] for one in found)
    told = [(one["name"], one["text"]) for one in found]
    assert len(set(told)) == len(told)
    assert not any(text in name for name, text in told)


ORDER = """() => ({
  unnamed: [...document.querySelectorAll('table')]
    .filter(table => !table.caption?.textContent.trim()).length
    + [...document.querySelectorAll('.scroll, nav, section:not(.view)')].filter(e =>
      !(e.getAttribute('aria-label')
        ?? document.getElementById(e.getAttribute('aria-labelledby'))?.textContent)?.trim()).length,
  tables: document.querySelectorAll('table').length,
  levels: [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => +h.tagName[1]),
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  links: [...document.querySelectorAll('a')].map(a => a.getAttribute('href')),
  marks: ['header', 'nav', 'main'].map(tag => document.querySelectorAll(tag).length),
})"""


def test_the_page_is_in_order(browser, file):
    with Open(browser, file) as page:
        found = page.evaluate(ORDER)
    assert found["unnamed"] == 0
    assert found["tables"] > 0
    levels = found["levels"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(set(found["ids"])) == len(found["ids"])
    assert {link.removeprefix("#") for link in found["links"]} <= set(found["ids"])
    assert found["marks"] == [1, 1, 1]


LETTERS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = memo(colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map(x => x / 255);
  });
  function memo(f) { const known = {}; return x => known[x] ??= f(x); }
  const over = (top, below) => below.map((b, i) => top[3] * top[i] + (1 - top[3]) * b);
  const behind = e => e ? over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement))
    : [1, 1, 1];
  const light = c => c.map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = {};
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest('title, desc') || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const back = behind(e), ink = over(rgba(svg ? style.fill : style.color), back);
    const [dim, bright] = [light(ink), light(back)].sort((a, b) => a - b);
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const key = (svg ? 'svg' : e.tagName + '.' + e.className) + ' in ' + e.parentElement.className;
    const seen = found[key] ??= {contrast: 99, size: 99};
    seen.contrast = Math.min(seen.contrast, (bright + .05) / (dim + .05));
    seen.size = Math.min(seen.size, parseFloat(style.fontSize) * scale);
  }
  return found;
}"""


@pytest.mark.parametrize(("scheme", "width"), [("light", DESK), ("dark", DESK), ("dark", PHONE)])
def test_all_letters_can_be_read(scheme, width, browser, file):
    with Open(browser, file, width=width, scheme=scheme) as page:
        found = page.evaluate(LETTERS)
    assert len(found) > 15
    assert {k: v for k, v in found.items() if v["contrast"] < FAINTEST} == {}
    assert {k: v for k, v in found.items() if v["size"] < LEAST} == {}


WIDTHS = """() => {
  const page = document.documentElement;
  return {
    beyond: page.scrollWidth - page.clientWidth,
    out: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, nav, .skip, svg')
      && e.checkVisibility() && e.getBoundingClientRect().right > page.clientWidth + 1)
      .map(e => e.tagName + '.' + e.className),
    cut: [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth
      && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).length,
  };
}"""


@pytest.mark.parametrize("width", [PHONE, TABLET, DESK])
def test_only_wide_things_scroll_sideways_and_never_the_page(width, browser, file):
    with Open(browser, file, width=width) as page:
        assert page.evaluate(WIDTHS) == {"beyond": 0, "out": [], "cut": 0}


FOLDED = """() => [...document.querySelectorAll('details > :not(summary)')]
  .filter(e => e.getBoundingClientRect().height === 0).length"""


def test_paper_holds_what_folds_hide_and_cuts_nothing_off(browser, file, tmp_path):
    with Open(browser, file, width=PAPER, media="print", folds=False, scheme="dark") as page:
        found = page.evaluate(WIDTHS)
        assert (found["beyond"], found["out"]) == (0, [])
        assert page.evaluate(FOLDED) == 0
        assert not page.locator("nav").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        letters = page.evaluate(LETTERS).values()
        assert min(seen["contrast"] for seen in letters) >= FAINTEST
        assert page.pdf(format="A4").startswith(b"%PDF")


def pressed(page, most):
    """What Tab comes to in turn: its tag and class, and whether one sees that it is there."""
    for _ in range(most):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
          const e = document.activeElement, style = getComputedStyle(e);
          e.dataset.reached = '';
          return [e.tagName, e.className, style.outlineStyle, e.getBoundingClientRect().left >= 0];
        }"""
        )
        if found[0] == "BODY":
            return
        yield found


def test_keys_reach_every_fold_and_whatever_scrolls_and_open_it(browser, written):
    with Open(browser, written("plain"), width=PHONE, folds=False) as page:
        reached = list(pressed(page, 400))
        assert reached[0][1] == "skip"
        assert all(style != "none" and inside for _, _, style, inside in reached)
        missed = page.locator("summary:not([data-reached])")
        assert missed.count() == 0
        hidden = "e => !e.checkVisibility()"
        places = page.locator(".scroll:not([data-reached])").all()
        assert all(place.evaluate(hidden) for place in places)
        assert page.locator(".scroll[data-reached]").count() > 0
        fold = page.locator("details:not([open]) > summary").first
        fold.focus()
        opened = "document.activeElement.parentElement.open"
        for key, then in (("Enter", True), ("Space", False)):
            page.keyboard.press(key)
            assert page.evaluate(opened) is then


def test_the_first_key_leads_past_the_contents(browser, written):
    with Open(browser, written("plain")) as page:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


PLACES = """row => [...row.querySelectorAll('.t')].map(t => {
  const {left, top} = t.getBoundingClientRect(); return [Math.round(top), left]; })"""


@pytest.mark.parametrize("spoilt", ["\u202eevil\u2066", "שלום", "مرحبا"])
def test_no_token_turns_its_neighbours_around(spoilt, browser, tmp_path):
    words = ["one ", "two ", spoilt, " 3 ", "4 ", "five"]
    file = Report("t", [shown("p", words, "texts", 6)]).write(tmp_path / "r")
    with Open(browser, file) as page:
        places = page.locator(".text").first.evaluate(PLACES)
    assert places == sorted(places)


def test_what_is_written_from_the_right_leaves_the_numbers_after_it_in_their_order(
    browser, tmp_path
):
    noted = replace(shown("p"), notes=("It fell at שלום 17, 23 of them.",))
    file = Report("t", [noted]).write(tmp_path / "r")
    where = """e => ['17', '23'].map(word => {
      const walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
      for (let node; node = walker.nextNode();) {
        const at = node.data.indexOf(word);
        if (at < 0) continue;
        const range = new Range();
        range.setStart(node, at); range.setEnd(node, at + 2);
        return range.getBoundingClientRect().left;
      }
    })"""
    with Open(browser, file) as page:
        first, second = page.locator(".notes li").evaluate(where)
        word = page.locator(".notes bdi").bounding_box()
    assert word["x"] < first < second


def test_where_colours_are_forced_the_sign_of_a_token_is_still_seen(browser, written):
    with Open(browser, written("plain")) as page:
        page.emulate_media(forced_colors="active")
        styles = {
            sign: page.locator(f".text .{sign}").first.evaluate(
                "e => getComputedStyle(e).borderBottomStyle"
            )
            for sign in ("w1", "w3", "w5", "b1", "b3", "b5")
        }
    assert styles == {
        f"{sign}{n}": line for sign, line in (("w", "solid"), ("b", "dotted")) for n in (1, 3, 5)
    }


KB = 1024


def test_a_page_grows_with_what_was_found_and_not_with_what_was_looked_at(tmp_path):
    few, many = (
        Report("t", [shown("p", [f"word {n}" for n in range(500)], rows=rows)]).write(
            tmp_path / str(rows)
        )
        for rows in (200, 20_000)
    )
    assert abs(many.stat().st_size - few.stat().st_size) < 2 * KB
    assert "19900 more rows" in many.read_text().replace("\u202f", "")


def test_a_cloud_of_points_is_drawn_in_pixels_and_a_few_one_by_one():
    def drawn(count):
        x = np.random.default_rng(0).normal(size=(2, count))
        names = {"a": "A", "b": "B"}
        groups = np.resize(["a", "b"], count)
        return figures.svg(figures.points(*x, groups, names=names, xlabel="", ylabel=""), "T", "D")

    assert drawn(1000).count("<use") > 1000
    cloud = drawn(50_000)
    assert "<image" in cloud
    assert len(cloud) < 300 * KB


@pytest.mark.skipif(not KEPT.exists(), reason="reports/demo is not in this copy")
def test_the_page_of_the_demo_can_be_mailed():
    assert KEPT.stat().st_size < 2000 * KB


@pytest.mark.slow
def test_a_report_of_32_blocks_on_1000_documents_is_a_small_page(tmp_path):
    words = sorted({word for text in nets.TEXTS for word in text.split()})
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, 12)) for _ in range(1000)]
    deep = nets.pair("llama", num_hidden_layers=32)
    metrics = [Drift(), Lens(), Forgetting(), TokenForgetting(), ShiftedTokens(), WeightChange()]
    found = measure(deep, nets.pack(texts), metrics)
    file = Report("deep", found).write(tmp_path / "r", formats={"html", "parquet"})
    # About a quarter of the bytes of a whole report, which takes long and may have 15 MB.
    assert file.stat().st_size < 600 * KB
