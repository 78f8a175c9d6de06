"""What cannot be is refused in a sentence, beside what was typed, and the setup stays."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from minserve.bench.compare.code import encode
from minserve.bench.compare.workload import Workload
from tests.widgets.playground.small import FOUR
from widgets.playground import Playground


def words(html):
    return re.sub(r"<[^>]*>", " ", html).replace("&#x27;", "'").replace("&quot;", '"')


def sentence_below(box, made):
    """The text of the widget that follows `made` among a box's children."""
    children = list(box.children)
    after = children[children.index(made) + 1 :]
    return words(after[0].value) if after else ""


@pytest.fixture
def play(headless):
    made = Playground()
    assert made.state.change(lambda setup: FOUR)
    return made


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("memory.block_size", "many", "memory.block_size=many: expected an integer"),
        ("memory.block_size", "1.5", "memory.block_size=1.5: expected an integer"),
        ("memory.block_size", "0,5", "memory.block_size=0,5: expected an integer"),
        ("memory.block_size", "4096", "block_size"),
        ("memory.kv_bytes", "lots", "expected a size, such as 64MiB"),
        ("memory.watermark", "0.9", "watermark"),
        ("memory.watermark", "0,1", "memory.watermark=0,1: expected a number"),
    ],
)
def test_a_text_that_is_no_value_is_refused_below_its_field_and_taken_back(play, path, text, said):
    before = play.setup
    play.editor.open("memory")
    field = play.editor.inputs[path]
    field.input.value = text
    assert play.setup == before
    assert said in words(field.text.value) and 'role="alert"' in field.text.value
    assert play.problem.value == "" == play.editor.refused.value, "one sentence, in one place"
    assert field.input.value != text
    other = play.editor.inputs["memory.prefix_cache"]
    other.input.value = "radix"
    assert "alert" not in field.text.value, "what was changed since is no refusal"


def test_a_refusal_goes_when_a_run_begins(play):
    play.workload.inputs["independent"]["count"].value = "many"
    assert play.workload.refused.value
    play.run_button.click()
    play.wait(60)
    assert play.workload.refused.value == "" == play.problem.value and play.last is not None


def test_thousands_may_have_commas(play):
    play.editor.open("scheduling")
    play.editor.inputs["scheduling.max_num_batched_tokens"].input.value = "1,024"
    assert play.setup.config("base").scheduling.max_num_batched_tokens == 1024


@pytest.mark.parametrize(
    ("typed", "kept", "said"),
    [
        ("1,000", 1000, ""),
        ("1e3", 1000, ""),
        ("3.7", 48, "count=3.7: expected a whole number from 1 to 5,000"),
        ("-5", 48, "expected a whole number from 1 to"),
        ("100000000", 48, "count=100,000,000: expected a whole number from 1 to"),
        ("1e400", 48, "count=inf: expected"),
        ("abc", 48, "expected a number, not 'abc'"),
        ("4,9", 48, "expected a number, not '4,9', with a point before decimals, such as 0.5"),
        ("1,00", 48, "expected a number"),
        ("", 48, "expected a number"),
        ("nan", 48, "expected"),
        ("inf", 48, "expected"),
    ],
)
def test_a_number_is_what_was_typed_or_is_refused_below_its_box(play, typed, kept, said):
    play.workload.kind.value = "shared-prefix"
    count = play.workload.inputs["shared-prefix"]["count"]
    count.value = "48"
    count.value = typed
    assert play.setup.workload.number("count") == kept
    assert count.value == str(kept)
    assert bool(said) == bool(play.workload.refused.value)
    if said:
        assert said in sentence_below(play.workload._box, count)
        assert play.problem.value == "", "one sentence, in one place"


def test_a_decimal_comma_is_not_dropped(play):
    play.workload.kind.value = "shared-prefix"
    rate = play.workload.inputs["shared-prefix"]["rate"]
    rate.value = "0,5"
    assert play.setup.workload.number("rate") == 0.0 and rate.value == "0"
    assert "'0,5', with a point" in sentence_below(play.workload._box, rate)


def test_large_bounds_are_written_out(play):
    play.workload.kind.value = "shared-prefix"
    seed = play.workload.inputs["shared-prefix"]["seed"]
    assert seed.placeholder == "0 to 1,073,741,824"
    seed.value = "-1"
    assert "seed=-1: expected a whole number from 0 to 1,073,741,824" in sentence_below(
        play.workload._box, seed
    )


@pytest.mark.parametrize("text", ["0", "10", "2.5", "many", "", "-3", "1e9", "nan"])
def test_rounds_are_what_was_typed_or_are_refused(play, text):
    play.machine.clock.value = "wall"
    play.machine.rounds.value = "5"
    assert play.setup.rounds == 5
    play.machine.rounds.value = text
    assert play.setup.rounds == 5 and play.machine.rounds.value == "5"
    assert "expected a whole number from 1 to 9" in words(play.machine.refused.value)


def test_the_rounds_of_a_code_are_shown_as_they_are(play):
    assert play.restore(encode(replace(FOUR, clock="wall", rounds=1)))
    assert play.machine.rounds.value == "1"


def test_prompts_that_were_refused_stay_and_do_not_run(play):
    play.workload.kind.value = "prompts"
    play.workload.prompts.value = "a first prompt"
    assert play.setup.workload.prompts == ("a first prompt",)
    text = "def f(x):\n" + "x" * 5000
    play.workload.prompts.value = text
    assert play.workload.prompts.value == text, "what was written is not thrown away"
    assert "prompt 2 has 5,000 characters" in words(play.workload.refused.value)
    assert play.workload._box.children[0] is play.workload.refused, "it follows the prompts"
    play.run_button.click()
    assert "prompt 2 has 5,000 characters" in play.problem.value
    assert "Done" not in play.status.value and play.last is None
    play.workload.prompts.value = "def f(x):\n" + "x" * 50
    assert len(play.setup.workload.prompts) == 2 and play.workload.refused.value == ""


def test_a_code_that_is_refused_changes_nothing_and_says_why(play):
    before = play.setup
    good = encode(replace(FOUR, workload=Workload("race")))
    for bad, said in (
        (good[:-4], "damaged"),
        ("hello", "no code of the playground"),
        (encode(replace(FOUR, headline="nothing")), "no quantity 'nothing'"),
    ):
        assert not play.restore(bad)
        assert play.setup == before and said in words(play.problem.value)
        play.code_box.value = bad
        play.restore_button.click()
        assert play.setup == before and said in words(play.code_refused.value)
        assert play.problem.value == "" and play.code_box.value == bad, "it stays to be mended"
    assert play.restore(good) and play.problem.value == "" == play.code_refused.value
    assert play.code_box.value == good


def test_words_of_a_field_are_those_of_the_page(play):
    play.editor.open("memory")
    play.editor.open("scheduling")
    for path, each in play.editor.inputs.items():
        assert "None" not in words(each.text.value), path
    tokens = play.editor.inputs["scheduling.max_num_batched_tokens"].input
    assert tokens.placeholder == "automatic, in tokens"
