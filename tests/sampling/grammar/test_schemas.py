"""Random schemas: every text that ended by itself parses and validates, by another library."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator

import jsonschema
import pytest
from sampling.grammar import schemas, words

from minserve import LLM, SamplingParams, StructuredOutputs

NUM_SCHEMAS = 500
DRAWN = 40
QUESTIONS = 20


@pytest.fixture(scope="module")
def tally() -> Iterator[Counter[str]]:
    """How texts ended, printed at the end."""
    counts: Counter[str] = Counter()
    yield counts
    print(f"\nrandom schemas: {dict(counts)}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = words.save_model(tmp_path_factory.mktemp("schemas"))
    with LLM(path, words.config(), progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def draft() -> Iterator[LLM]:
    with LLM("zoo/draft", words.config(), progress=False) as llm:
        yield llm


def check(text: str, schema: schemas.Schema) -> None:
    # A name that the schema does not declare may come twice: no automaton remembers all of them.
    # The last value counts, as everywhere in JSON.
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.sampled(DRAWN)
@pytest.mark.parametrize("seed", range(NUM_SCHEMAS))
def test_what_ends_by_itself_is_an_instance_of_its_schema(seed, tiny, draft, tally):
    schema = schemas.schema(seed)
    jsonschema.Draft202012Validator.check_schema(schema)
    form = StructuredOutputs(json=schema, disable_any_whitespace=seed % 2 == 1)
    for name, llm, prompt in (("tiny", tiny, [5, 9, 30]), ("draft", draft, "Once upon a time")):
        how = [
            SamplingParams(
                structured_outputs=form, temperature=temperature, max_tokens=120, seed=seed
            )
            for temperature in (0.0, 0.7, 1.0, 1.5)
        ]
        for output in llm.generate([prompt] * len(how), how, progress=False):
            sample = output.samples[0]
            tally[f"{name} {sample.finish_reason}"] += 1
            assert sample.finish_reason in ("stop", "length"), sample.error
            if sample.finish_reason == "stop":
                check(output.text, schema)
                assert seed % 2 == 0 or output.text == _compact(output.text)


def _compact(text: str) -> str:
    """The text without what stands between its parts."""
    found, inside, escaped = [], False, False
    for character in text:
        if inside or character not in " \n":
            found.append(character)
        if character == '"' and not escaped:
            inside = not inside
        escaped = character == "\\" and not escaped
    return "".join(found)


ANSWERS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "England": "London", "Greece": "Athens", "Portugal": "Lisbon", "Austria": "Vienna",
    "Egypt": "Cairo", "Russia": "Moscow", "China": "Beijing", "Ireland": "Dublin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw", "Cuba": "Havana",
    "Peru": "Lima", "Kenya": "Nairobi", "Hungary": "Budapest",
}  # fmt: skip


@pytest.mark.real
@pytest.mark.slow
def test_questions_to_smollm2_are_answered_in_the_form_that_was_asked_for():
    schema = {
        "type": "object",
        "properties": {
            "country": {"type": "string", "maxLength": 30},
            "capital": {"type": "string", "maxLength": 30},
            "continent": {"enum": ["Africa", "America", "Asia", "Europe", "Oceania"]},
        },
        "required": ["country", "capital", "continent"],
        "additionalProperties": False,
    }
    how = SamplingParams(
        structured_outputs=StructuredOutputs(json=schema), temperature=0.0, max_tokens=80
    )
    questions = [
        [{"role": "user", "content": f"What is the capital of {country}? Answer in JSON."}]
        for country in ANSWERS
    ]
    assert len(questions) == QUESTIONS and "OMP_NUM_THREADS" in os.environ
    with LLM("zoo/smollm2", progress=False) as llm:
        outputs = llm.chat(questions, how, progress=False)
    right = 0
    for output, capital in zip(outputs, ANSWERS.values(), strict=True):
        assert output.finish_reason == "stop"
        check(output.text, schema)
        right += capital.lower() in json.loads(output.text)["capital"].lower()
    print(f"\nzoo/smollm2 names {right} of {QUESTIONS} capitals")
