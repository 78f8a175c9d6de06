"""A setup as the words of `minserve bench compare`, and the words as a setup.

What the words cannot say (a chapter's list of requests, a link of its own) is given as a code.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from typing import Any

from minserve.bench.compare.code import decode, encode
from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.gpu import DTYPES, OWN, Gpu
from minserve.bench.compare.setup import Changes, Setup, Variant
from minserve.bench.compare.workload import KINDS, Parameter, Value, Workload
from minserve.bench.fields import find_knob, parse_field, show_value

_START = ["minserve", "bench", "compare"]
_DEFAULT = Setup()
_GPU = Gpu()


def add_setup_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that a setup consists of."""
    add = parser.add_argument
    add("--code", help="a code of the playground; instead of all other settings")
    add(
        "--model",
        default=_DEFAULT.model,
        help="zoo/NAME, a directory or, with --modelled, a shape (default: %(default)s)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the base, such as memory.block_size=32; repeatable",
    )
    add("--base-name", default=_DEFAULT.base_name, help="(default: %(default)s)")
    add(
        "--variant",
        action="append",
        nargs="+",
        default=[],
        metavar=("NAME", "FIELD=VALUE"),
        help="the base plus changed fields; at most three times",
    )
    add(
        "--workload",
        nargs="+",
        default=[_DEFAULT.workload.kind],
        metavar=("KIND", "NAME=VALUE"),
        help=f"which requests arrive: {', '.join(KINDS)} (default: {_DEFAULT.workload.kind})",
    )
    add("--prompt", action="append", default=[], help="of --workload prompts; repeatable")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--modelled", metavar="GPU", help="on the virtual clock of this GPU")
    which.add_argument(
        "--own-gpu",
        nargs=3,
        type=float,
        metavar=("FLOPS", "BYTES_PER_S", "BYTES"),
        help="on the virtual clock of a GPU with these numbers",
    )
    add("--gpu-dtype", choices=DTYPES, default=_GPU.dtype, help="(default: %(default)s)")
    add("--efficiency", type=float, default=_GPU.efficiency, help="(default: %(default)s)")
    add(
        "--overhead-ms",
        type=float,
        default=_GPU.overhead_s * 1e3,
        help="per modelled step (default: %(default)s)",
    )
    add("--rounds", type=int, default=_DEFAULT.rounds, help="(default: %(default)s)")


def setup_from(args: argparse.Namespace) -> Setup:
    """The setup that the words say. Raises SetupError or ConfigError."""
    if args.code is not None:
        _refuse_others(args)
        return decode(args.code)
    gpu = {
        "dtype": args.gpu_dtype,
        "efficiency": args.efficiency,
        "overhead_s": args.overhead_ms / 1e3,
    }
    if args.own_gpu:
        flops, bandwidth, memory = args.own_gpu
        gpu |= {"name": OWN, "flops_per_s": flops, "bytes_per_s": bandwidth}
        # What is no number of bytes is refused with the bounds.
        gpu["memory_bytes"] = int(memory) if isfinite(memory) else memory
    elif args.modelled:
        gpu["name"] = args.modelled
    return Setup(
        model=args.model,
        base=dict(map(parse_field, args.set)),
        base_name=args.base_name,
        variants=tuple(
            Variant(name, dict(map(parse_field, changes))) for name, *changes in args.variant
        ),
        workload=_workload(args.workload, args.prompt),
        clock="virtual" if args.modelled or args.own_gpu else "wall",
        gpu=Gpu(**gpu) if args.modelled or args.own_gpu else _GPU,
        rounds=args.rounds,
    )


def _refuse_others(args: argparse.Namespace) -> None:
    """A code is a whole comparison, and what stands beside it would be dropped without a word."""
    parser = argparse.ArgumentParser()
    add_setup_arguments(parser)
    for action in parser._actions:  # argparse has no public way to ask
        if action.dest in ("help", "code"):
            continue
        if getattr(args, action.dest) != action.default:
            raise SetupError(f"--code is a whole comparison: leave out {action.option_strings[0]}")


def _workload(words: Sequence[str], prompts: Sequence[str]) -> Workload:
    kind, *given = words
    if kind not in KINDS:
        return Workload(kind)  # Which says what there is.
    known = {parameter.name: parameter for parameter in KINDS[kind].parameters}
    values: dict[str, Value] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            raise SetupError(
                f"--workload {kind} {word}: expected NAME=VALUE, with a name of {', '.join(known)}"
            )
        values[name] = _value(known[name], text)
    return Workload(kind, values, tuple(prompts))


def _value(parameter: Parameter, text: str) -> Value:
    if parameter.text or parameter.choices:
        return text
    try:
        return int(text) if parameter.whole else float(text)
    except ValueError:
        raise SetupError(f"--workload {parameter.name}={text}: expected a number") from None


def command_line(setup: Setup) -> str:
    """The command that runs this comparison. Raises SetupError where its code is too long."""
    words = _words(setup)
    return shlex.join([*_START, *(words if _says(words, setup) else ["--code", encode(setup)])])


def _says(words: Sequence[str], setup: Setup) -> bool:
    """True where the words say all of the setup; what a figure shows first is not part of a run."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_setup_arguments(parser)
    try:
        found, rest = parser.parse_known_args(words)
        said = setup_from(found)
    except (argparse.ArgumentError, ValueError, SystemExit):
        return False
    compared = [item.name for item in fields(Setup) if item.name != "headline"]
    if setup.clock == "wall":
        compared.remove("gpu")
    same = all(getattr(said, name) == getattr(setup, name) for name in compared)
    return same and not rest


def _words(setup: Setup) -> list[str]:
    words: list[str] = ["--model", setup.model]
    words += [word for text in _changed(setup.base) for word in ("--set", text)]
    if setup.base_name != _DEFAULT.base_name:
        words += ["--base-name", setup.base_name]
    for variant in setup.variants:
        words += ["--variant", variant.name, *_changed(variant.changes)]
    workload = setup.workload
    values = [f"{name}={value}" for name, value in workload.values.items()]
    words += ["--workload", workload.kind, *values]
    words += [word for prompt in workload.prompts for word in ("--prompt", prompt)]
    if setup.clock == "virtual":
        return words + _gpu_words(setup.gpu)
    return [*words, "--rounds", str(setup.rounds)]


def _gpu_words(gpu: Gpu) -> list[str]:
    words = ["--modelled", gpu.name]
    if gpu.name == OWN:
        numbers = (gpu.flops_per_s, gpu.bytes_per_s, gpu.memory_bytes)
        words = ["--own-gpu", *(f"{number!r}" for number in numbers)]
    changed: dict[str, Any] = {
        "--gpu-dtype": (gpu.dtype, _GPU.dtype),
        "--efficiency": (gpu.efficiency, _GPU.efficiency),
        "--overhead-ms": (gpu.overhead_s * 1e3, _GPU.overhead_s * 1e3),
    }
    for name, (value, default) in changed.items():
        if value != default:
            words += [name, f"{value}"]
    return words


def _changed(changes: Changes) -> list[str]:
    found = []
    for path, value in changes.items():
        knob = find_knob(path)
        assert knob is not None, "a setup has known fields only"
        found.append(f"{path}={show_value(knob, value)}")
    return found
