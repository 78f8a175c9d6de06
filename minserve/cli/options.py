"""Command-line flags, generated from the fields of the configuration and the sampling parameters.

Turns parsed arguments back into `EngineConfig` and `SamplingParams`; an absent flag
changes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from minserve.config import EngineConfig, Knob, describe
from minserve.files.json_file import read_text
from minserve.request import SamplingParams, StructuredOutputs

_UNSET: Any = None
_SAMPLING_FLAGS: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "most tokens to generate"),
    "min_tokens": (int, "tokens before the text may end"),
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "keep the k likeliest tokens"),
    "top_p": (float, "keep the likeliest tokens of this total probability"),
    "min_p": (float, "drop tokens less likely than this fraction of the likeliest"),
    "repetition_penalty": (float, "above 1 discourages tokens seen before"),
    "presence_penalty": (float, "subtracted for every token generated before"),
    "frequency_penalty": (float, "subtracted for every time it was generated before"),
    "sampling_seed": (int, "same seed, same text for equal logits"),
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model` and a flag for every field of EngineConfig."""
    parser.add_argument(
        "--model",
        default="zoo/base",
        help="zoo/NAME, a Hugging Face directory, a .gguf file, or a hub name "
        "(default: %(default)s)",
    )
    add_engine_arguments(parser)


def add_engine_arguments(
    parser: argparse.ArgumentParser, defaults: Mapping[str, Any] | None = None
) -> None:
    """A flag for every field of EngineConfig; `defaults`, by path, are the command's own."""
    group = parser.add_argument_group("engine", "one flag per field of EngineConfig")
    for knob in describe():
        own = (defaults or {}).get(knob.path, _UNSET)
        _add_knob(group, knob if own is _UNSET else replace(knob, default=own), own)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for SamplingParams; defaults are the model's generation_config.json."""
    group = parser.add_argument_group(
        "sampling", "where nothing is given, what the model's generation_config.json recommends"
    )
    for name, (kind, text) in _SAMPLING_FLAGS.items():
        group.add_argument(
            "--" + name.replace("_", "-"), type=kind, default=_UNSET, help=text, metavar="X"
        )
    group.add_argument("--stop", action="append", default=[], help="end at this string; repeatable")
    group.add_argument("--ignore-eos", action="store_true", help="go on past end-of-sequence")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--json-schema",
        metavar="FILE",
        help="the text is JSON of this schema: a file, or the schema itself, which begins with {",
    )
    form.add_argument("--regex", metavar="X", help="the whole text matches this expression")
    form.add_argument(
        "--choice",
        action="append",
        metavar="X",
        help="the text is this one, or another that is given; repeatable",
    )


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The configuration given by the flags. Raises ConfigError for values out of bounds."""
    values = {}
    for knob in describe():
        value = getattr(args, _destination(knob))
        if value is not _UNSET:
            values[knob.path] = value
    return EngineConfig().with_values(values)


def sampling_params(args: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """`defaults`, changed by the flags that are given. Raises InvalidRequestError."""
    values: dict[str, Any] = {}
    for name in _SAMPLING_FLAGS:
        value = getattr(args, name)
        if value is not _UNSET:
            values["seed" if name == "sampling_seed" else name] = value
    if args.stop:
        values["stop"] = tuple(args.stop)
    if args.ignore_eos:
        values["ignore_eos"] = True
    form = _structured_outputs(args)
    if form is not None:
        values["structured_outputs"] = form
    known = {item.name for item in fields(SamplingParams)}
    assert values.keys() <= known, "a sampling flag without a field"
    return replace(defaults, **values)


def _structured_outputs(args: argparse.Namespace) -> StructuredOutputs | None:
    """The form that the flags ask for. Raises InvalidRequestError, or FileError."""
    schema = args.json_schema
    if schema is not None:
        if not schema.lstrip().startswith("{"):
            schema = read_text(schema, what="a JSON schema")
        return StructuredOutputs(json=schema)
    if args.regex is not None:
        return StructuredOutputs(regex=args.regex)
    return StructuredOutputs(choice=args.choice) if args.choice else None


def _destination(knob: Knob) -> str:
    return "engine_" + knob.path.replace(".", "_")


def _add_knob(group: argparse._ArgumentGroup, knob: Knob, default: Any) -> None:
    text = knob.doc.rstrip(".") + f" (default: {'auto' if knob.default is None else knob.default}"
    text += f" {knob.unit})" if knob.unit and knob.default is not None else ")"
    options: dict[str, Any] = {"dest": _destination(knob), "default": default}
    options["help"] = text.replace("%", "%%")
    if knob.type is bool:
        group.add_argument(knob.flag, action=argparse.BooleanOptionalAction, **options)
    elif knob.choices:
        group.add_argument(knob.flag, choices=knob.choices, **options)
    else:
        group.add_argument(knob.flag, type=_parser_of(knob), metavar="X", **options)


def _parser_of(knob: Knob) -> Any:
    if knob.unit == "bytes":
        return parse_bytes
    return knob.type


def parse_bytes(text: str) -> int:
    """ "64MiB", "2GB", "1e9" or a plain number, in bytes. Raises ArgumentTypeError."""
    units = {"": 1, "B": 1}
    for power, letter in enumerate("KMGT", start=1):
        units |= {letter + "iB": 1024**power, letter + "B": 1000**power, letter: 1024**power}
    digits = text.rstrip("BKMGTi")
    try:
        return int(float(digits) * units[text[len(digits) :]])
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: expected something like 64MiB, 2GB or 1000000"
        ) from None
