"""A name has the article of its sound, letter by letter where it is spelled."""

from __future__ import annotations

import pytest

from minserve.hardware import DEVICES
from minserve.inputs.wording import with_article


@pytest.mark.parametrize(
    "said",
    [
        "a float", "a str", "a NoneType", "an int", "an object", "an Exception", "a UnicodeError",
        "a uint8", "a one", "a bfloat16", "a llama", "an olmo2", "an H100 SXM", "a T4", "a B200",
    ],
)  # fmt: skip
def test_a_name_has_the_article_of_its_sound(said: str) -> None:
    assert with_article(said.partition(" ")[2]) == said


def test_every_modelled_device_has_the_article_of_its_sound() -> None:
    found = {name: with_article(name).split(" ")[0] for name in DEVICES}
    assert {name for name, article in found.items() if article == "an"} == {
        name for name in DEVICES if name.startswith(("A1", "H", "L", "RTX", "MI"))
    }
