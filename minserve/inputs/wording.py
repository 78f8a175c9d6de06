"""Words around a value in a message: "a" or "an". Knows nothing about which messages there are."""

from __future__ import annotations

_SOUNDS_LIKE_YOU_OR_ONE = ("uni", "use", "usa", "uint", "ufunc", "eu", "one")
_LETTERS_THAT_BEGIN_WITH_A_VOWEL = "AEFHILMNORSX"
"""As they are spelled out: "an H100", "an L4", and "a T4"."""


def with_article(name: str) -> str:
    """The name with "a" or "an" before it, by its sound: "an int", "a float", "an H100 SXM".

    A word of capitals and digits is spelled letter by letter.
    """
    # What follows a dot, a hyphen or a space says nothing about the beginning.
    word = name.replace("-", " ").replace(".", " ").split(" ")[0]
    if word.isupper() and word.isascii():
        vowel = word[0] in _LETTERS_THAT_BEGIN_WITH_A_VOWEL
    else:
        low = word.lower()
        vowel = low[:1] in tuple("aeiou") and not low.startswith(_SOUNDS_LIKE_YOU_OR_ONE)
    return f"{'an' if vowel else 'a'} {name}"
