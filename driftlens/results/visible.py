"""Text from outside, with what is invisible in it spelt out."""

from unicodedata import category


def visible(text: str, mark: str = "{}", *, spaces: bool = False) -> str:
    """The text with every control, direction and surrogate character spelt out.

    Args:
        text: Anything at all.
        mark: What to put around a character spelt out, `{}` standing for it.
        spaces: Whether to spell out the spaces that are no plain space, too.
    """
    hidden = _HIDDEN | {"Zs"} if spaces else _HIDDEN
    return "".join(
        mark.format(_spelt(character))
        if character != " " and category(character) in hidden
        else character
        for character in text
    )


def _spelt(character: str) -> str:
    return _SHORT.get(character, f"U+{ord(character):04X}")


# Letters, for few fonts draw the pictures that Unicode has for these.
_SHORT = {"\0": "NUL", "\t": "TAB", "\n": "⏎", "\r": "CR", "\x1b": "ESC", "\x7f": "DEL"}

# Control, format, surrogate, private and unassigned characters, and ends of lines.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
