"""Text from outside, with what is invisible in it spelt out."""

from unicodedata import category

STACK = 6
"""Accents on one letter that are drawn; more would cover the lines above and below."""


def visible(text: str, mark: str = "{}", *, spaces: bool = False) -> str:
    """The text with every control, direction and surrogate character spelt out.

    Args:
        text: Anything at all.
        mark: What to put around a character spelt out, `{}` standing for it.
        spaces: Whether to spell out the spaces that are no plain space, too.
    """
    hidden = _HIDDEN | {"Zs"} if spaces else _HIDDEN
    parts, stacked = [], 0
    for character in text:
        kind = category(character)
        stacked = stacked + 1 if kind in ("Mn", "Me") else 0
        spelt = stacked > STACK or (kind in hidden and character != " ")
        parts.append(mark.format(_spelt(character)) if spelt else character)
    return "".join(parts)


def _spelt(character: str) -> str:
    return _SHORT.get(character, f"U+{ord(character):04X}")


# Letters, for few fonts draw the pictures that Unicode has for these.
_SHORT = {"\0": "NUL", "\t": "TAB", "\n": "⏎", "\r": "CR", "\x1b": "ESC", "\x7f": "DEL"}

# Control, format, surrogate, private and unassigned characters, and ends of lines.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
