"""What kind of token a stretch of text is: a number, a name, a function word or code."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

KINDS = (
    "number",
    "name",
    "function word",
    "punctuation",
    "code",
    "other word",
    "whitespace",
    "special",
)
"""Every kind there is; one text span has exactly one."""


def kinds(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The kind of each span, decided from the word that holds its first visible character.

    A piece of a word is thus of the word's kind. The rules are those of English prose:

    - *code* is what stands in backticks or in a line that looks like code, whatever it is
      there, and elsewhere identifiers, addresses and operators;
    - a *number* starts with a digit (3.5, 2nd, 1980s) or is a cardinal spelled out;
    - a *name* is capitalised within a sentence, or at its start if the same word is
      capitalised within a sentence of the text too;
    - a *function word* is an article, preposition, pronoun, auxiliary, conjunction or negation.

    Args:
        text: Any text.
        spans: First character and end of each token; what lies outside the text is cut off.

    Returns:
        One of `KINDS` for each span: "special" of an empty one, as a model's own marks have.
    """
    marks = _marks(text)
    found = []
    for start, end in spans:
        start, end = max(start, 0), min(end, len(text))
        visible = VISIBLE.search(text, start, end) if start < end else None
        if visible:
            found.append(KINDS[marks[visible.start()]])
        else:
            found.append("whitespace" if start < end else "special")
    return found


FUNCTION_WORDS = frozenset(
    """
    a an the
    i me my mine myself we us our ours ourselves you your yours yourself yourselves thou thee thy
    he him his himself she her hers herself it its itself they them their theirs themselves
    this that these those who whom whose which what whoever whatever whichever
    someone somebody something anyone anybody anything everyone everybody everything nobody nothing
    some any each every either neither both all few many much more most several such other another
    be am is are was were been being have has had having do does did doing done
    will would shall should can could may might must ought cannot
    about above across after against along amid among around as at before behind below beneath
    beside besides between beyond by despite down during except for from in inside into like near
    of off on onto out outside over past per since through throughout till to toward towards under
    underneath until up upon via with within without
    and but or nor so yet if unless because although though while whereas whether than when whenever
    where wherever how why once
    no not never none there here then thus also just only too very
    """.split()  # noqa: SIM905 (quoted one by one, they cannot be read)
)

NUMBER_WORDS = frozenset(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred hundreds thousand thousands million millions billion billions trillion trillions dozen
    """.split()  # noqa: SIM905 (quoted one by one, they cannot be read)
)

ALSO_NAMES = frozenset({"may", "will"})
"""Function words that are somebody when they are capitalised within a sentence."""

TITLES = frozenset(
    "mr mrs ms dr prof st mt jr sr gen col capt lt rev hon vs etc no vol fig".split()  # noqa: SIM905
)
"""Words whose full stop does not end a sentence."""

OPENING_QUOTES = frozenset("\"'“‘«„")

VISIBLE = re.compile(r"\S")

PIECE = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<code>
          https?://\S+
        | __[^\W_]+(?:_[^\W_]+)*__                         # __dunder__
        | [^\W_]+(?:_+[^\W_]+)+                            # snake_case
        | [a-z][a-z][a-z0-9]*[A-Z][^\W_]*                  # camelCase, but not iPhone
        | 0x[0-9a-fA-F]+
        | [=!<>+\-*/%&|^]==? | -> | => | :: | && | \|\| | << | >> | \+\+ | \(\) | \[\]
        | [{}=<>\\]+
      )
    | (?P<number>\d+(?:[.,]\d+)*[^\W_]*)
    | (?P<word>[^\W_]+(?:['’][^\W\d_]+)*)
    | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)

QUOTED_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)

CODE_START = re.compile(
    r"def \w+\(|class \w+ ?[(:{]|import [\w.]+(?: as \w+)?;?$|from [\w.]+ import\b|//|/\*"
    r"|# ?(?:include|define|ifdef|ifndef|endif)\b|@\w+(?:\(|$)|(?:else|try|finally):$"
)
CODE_BLOCK = re.compile(r"(?:if|elif|for|while|except|with|switch)\b[^=<>()\[\]]*[=<>()\[\]]")
CODE_STATEMENT = re.compile(r"=|\w\(|^\w+;$|^return\b")
CODE_INSIDE = re.compile(r"\w\(\)|</\w+>|[^=\s]\s*(?:===?|!=|\+=|-=|->|=>|::|&&|\|\|)\s*[^=\s]")


def _marks(text: str) -> bytearray:
    """[character] place in `KINDS` of the word or sign that each character is part of."""
    marks, names, beginnings = bytearray(len(text)), set(), []
    for piece, kind, begins in _pieces(text):
        word = _stem(piece.group())
        if kind == "name" and begins:
            beginnings.append((piece, word))
        elif kind == "name":
            names.add(word)
        _paint(marks, piece.start(), piece.end(), kind)
    for piece, word in beginnings:
        if word not in names:
            _paint(marks, piece.start(), piece.end(), "other word")
    return marks


def _pieces(text: str) -> Iterator[tuple[re.Match[str], str, bool]]:
    """Words and signs with their kinds, and whether a sentence may begin there."""
    code, loud = _code(text), _loud(text)
    begins, before, newline, kind = True, "", True, "punctuation"
    for piece in PIECE.finditer(text):
        at, form, found = piece.start(), piece.group(), piece.lastgroup or ""
        if found == "space":
            lines = form.count("\n")
            begins, newline = begins or lines > 1, lines > 0
            continue
        starts = begins
        if code[at] or found == "code":
            kind = "code"
        elif found != "mark":
            kind, begins = _word(form, found, begins, bool(loud[at])), False
        elif not unicodedata.category(form).startswith("M"):  # an accent is of its letter's kind
            kind = "punctuation"
            begins = begins or _begins_sentence(text, at, form, before, newline)
        yield piece, kind, starts
        before, newline = form, False


def _word(form: str, found: str, begins: bool, loud: bool) -> str:
    stem = _stem(form)
    if found == "number" or stem in NUMBER_WORDS or unicodedata.category(form[0]).startswith("N"):
        return "number"
    capital = form[0].isupper() or form[0].istitle()
    function = stem in FUNCTION_WORDS or stem.endswith("n't")
    if function and not (capital and not begins and stem in ALSO_NAMES):
        return "function word"
    return "name" if capital and not loud else "other word"


def _stem(form: str) -> str:
    """A word in lower case without what an apostrophe adds, but for a negation's."""
    form = form.lower().replace("’", "'")
    return form if form.endswith("n't") else form.split("'")[0]


def _begins_sentence(text: str, at: int, form: str, before: str, newline: bool) -> bool:
    """Whether a sentence may begin after the sign `form`, which follows the piece `before`."""
    if form == ".":
        initial = len(before) == 1 and before.isalpha() and before != "I"
        return not initial and before.lower() not in TITLES
    if form in "!?…。！？":
        return True
    if form in OPENING_QUOTES:
        return at == 0 or text[at - 1].isspace() or text[at - 1] in "([—–-"
    return newline and form in "-*•#"


def _code(text: str) -> bytearray:
    """[character] whether it stands in a line that looks like code, or in backticks."""
    code, at = bytearray(len(text)), 0
    for line in text.split("\n"):
        if _is_code(line):
            code[at : at + len(line)] = b"\1" * len(line)
        at += len(line) + 1
    for quoted in QUOTED_CODE.finditer(text):
        code[quoted.start() : quoted.end()] = b"\1" * len(quoted.group())
    return code


def _is_code(line: str) -> bool:
    body = line.strip()
    if not body.strip("{}()[];,"):
        return bool(body.strip("()[];,"))
    return bool(
        body.endswith("{")
        or (body.endswith(";") and CODE_STATEMENT.search(body))
        or (body.endswith(":") and CODE_BLOCK.match(body))
        or (line[0].isspace() and re.match(r"return\b", body))
        or CODE_START.match(body)
        or CODE_INSIDE.search(body)
    )


def _loud(text: str) -> bytearray:
    """[character] whether its line is in capitals throughout, where a capital says nothing."""
    loud, at = bytearray(len(text)), 0
    for line in text.split("\n"):
        if line.isupper() and len(line.split()) > 1:
            loud[at : at + len(line)] = b"\1" * len(line)
        at += len(line) + 1
    return loud


def _paint(marks: bytearray, start: int, end: int, kind: str) -> None:
    marks[start:end] = bytes([KINDS.index(kind)]) * (end - start)
