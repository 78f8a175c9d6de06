"""Random JSON schemas of the keywords that are supported, from a seed."""

from __future__ import annotations

import random
from typing import Any

WORDS = ["a", "name", "né", "x y", '"q"', "b\\", "😀", "total", "if"]
Schema = dict[str, Any]


def schema(seed: int) -> Schema:
    """A schema whose shortest texts are short; some define a type that they refer to."""
    rng = random.Random(seed)
    made = value(rng, 3)
    if rng.random() < 0.2:
        node = {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, REF]}}}
        strict = {"required": ["next"], "additionalProperties": False}
        made = {"anyOf": [made, REF], "$defs": {"node": node | strict}}
    return made


REF = {"$ref": "#/$defs/node"}


def value(rng: random.Random, depth: int) -> Schema:
    leaves = [integer, number, string, constant, enumeration, boolean]
    inner = [array, fixed_array, thing, thing, choice, extended]
    return rng.choice(leaves + inner if depth else leaves)(rng, depth)


def integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-50, 50)
    limits = {"minimum": low, "maximum": low + rng.randint(0, 200)}
    if rng.random() < 0.3:
        limits = {"exclusiveMinimum": low, "exclusiveMaximum": low + rng.randint(2, 9)}
    if rng.random() < 0.2:
        limits = {"minimum": 0, "maximum": 40, "multipleOf": rng.choice([2, 5, 7])}
    return {"type": "integer"} | limits


def number(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-1.5, 0, 0.25])
    return {"type": "number", "minimum": low, "maximum": low + rng.choice([1, 2.5, 100])}


def string(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 3)
    kinds: list[Schema] = [
        {"minLength": low, "maxLength": low + rng.randint(0, 5)},
        {"pattern": rng.choice(["^[a-f]{2,4}$", "^(yes|no)+$", "^x[0-9]*y$", "^né?$"])},
        {"format": rng.choice(["date", "time", "uuid", "ipv4"])},
    ]
    return {"type": "string"} | rng.choice(kinds)


def constant(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice([None, True, 3, -1.5, "é\n", [], {}, [1, {"a": None}], *WORDS])}


def enumeration(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample([*WORDS, 1, 2.5, None, False, [1, 2]], rng.randint(1, 5))}


def boolean(rng: random.Random, depth: int) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {
        "type": "array",
        "items": value(rng, depth - 1),
        "minItems": low,
        "maxItems": low + rng.randint(0, 2),
    }


def fixed_array(rng: random.Random, depth: int) -> Schema:
    first = [value(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def thing(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randint(0, 4))
    required = [name for name in names if rng.random() < 0.6]
    return {
        "type": "object",
        "properties": {name: value(rng, depth - 1) for name in names},
        "required": required,
        "additionalProperties": rng.choice([False, False, {"type": "boolean"}]),
    }


def choice(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [value(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


def extended(rng: random.Random, depth: int) -> Schema:
    return {"allOf": [thing(rng, depth - 1)]}
