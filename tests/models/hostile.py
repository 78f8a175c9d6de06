"""A small valid model directory, and the ways in which a stranger's may be worse."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizer.vocabularies import BOS, byte_level, starting_with_bos
from tokenizer.vocabularies import save as save_tokenizer

from minserve.models import load_spec
from minserve.models.weights import build_weights

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "dtype": "float32",
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32,
        "beta_fast": 32.0, "attention_factor": 1.1,
    },
}  # fmt: skip
GENERATION = {
    "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1,
    "repetition_penalty": 1.1, "max_new_tokens": 5, "eos_token_id": [1, 2],
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


class _Drawn:
    """A `TensorReader` that remembers what it gave."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.tensors[name] = torch.randn(shape, generator=self._generator) * 0.3
        return self.tensors[name]

    def has(self, name: str) -> bool:
        return True


def write_model(directory: Path, *, shards: int = 0, legacy_tokenizer: bool = False) -> Path:
    """A valid directory with every kind of file that is read."""
    path = save_tokenizer(
        starting_with_bos(byte_level()),
        directory,
        added_tokens_decoder={"301": {"content": "<think>", "special": False}},
        extra_special_tokens=["<tool>"],
    )
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "generation_config.json").write_text(json.dumps(GENERATION))
    (path / "special_tokens_map.json").write_text(json.dumps({"bos_token": BOS}))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    drawn = _Drawn()
    build_weights(load_spec(path), drawn, torch.float32, torch.device("cpu"))
    names = sorted(drawn.tensors)
    if not shards:
        save_file(drawn.tensors, path / "model.safetensors", {"format": "pt"})
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: drawn.tensors[name] for name in names[number::shards]}
        save_file(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    if shards:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    if legacy_tokenizer:
        vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]
        (path / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
        merges = (" ".join(pair) for pair in vocabulary["merges"])
        (path / "merges.txt").write_text("\n".join(merges))
        (path / "tokenizer.json").unlink()
        (path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "GPT2Tokenizer"})
        )
    return path


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e300, 2.0, 10**7, 10**12, 2**31,
    2**63, 10**39, "", "x", "\0", "../../etc", "/dev/zero", "é" * 1000, [], [[]], [1, "a"], [None],
    {}, {"a": {}}, {"content": 5}, [{"name": 1}], "{{ 'x' * 10**10 }}", "LlamaTokenizer",
    "GPT2TokenizerFast", "yarn", "dynamic", "llama3", "float64", "float16",
]  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value; of long lists and maps, some."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        each = stack.pop()
        keys = list(each) if isinstance(each, dict) else list(range(len(each)))
        for key in keys[:40]:
            found.append((each, key))
            if isinstance(each[key], (dict, list)):
                stack.append(each[key])
    return found


def _edit(value: Any, rng: random.Random) -> None:
    """Replace, remove or add something within a JSON object or list."""
    places = _places(value)
    if not places:
        return
    container, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.75 or isinstance(container, list):
        container[key] = rng.choice(NASTY)
    elif kind < 0.9:
        del container[key]
    else:
        container[rng.choice(["is_causal", "type", "auto_map", "x"])] = rng.choice(NASTY)


def edit_json(path: Path, rng: random.Random) -> None:
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return  # an earlier mutation broke it
    _edit(value, rng)
    path.write_text(json.dumps(value))


def break_json(path: Path, rng: random.Random) -> None:
    """JSON that parsers disagree about, or choke on."""
    text = path.read_text()
    within = text.rindex("}")
    lead = "" if text.strip() == "{}" else ", "
    inserted = rng.choice(
        [
            '"a": ' + "[" * 5_000 + "]" * 5_000, '"a": ' + "9" * 5_000, '"a": NaN', '"a": 1e999',
            '"a": -Infinity', '"vocab_size": 1, "vocab_size": 2', r'"a": "\ud800"', '"a": "\0"',
            r'"\udfff": 1', '"a": "\x07"', "'a': 1", '"a": 0x10', '"a": 01', "// comment\n",
            '"a": ' + '{"b":' * 500 + "1" + "}" * 500,
        ]
    )  # fmt: skip
    path.write_text(text[:within] + lead + inserted + text[within:])


def recode(path: Path, rng: random.Random) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    coding = rng.choice(["utf-16", "utf-16-le", "utf-8-sig", "utf-32", "latin-1"])
    path.write_bytes(text.encode(coding, errors="replace") + b"\xff" * rng.randrange(2))


def damage_bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = rng.randrange(4)
    if kind == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif kind == 1:
        for _ in range(rng.choice([1, 3, 100])):
            if content:
                content[rng.randrange(min(len(content), 4000))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        content = bytearray(rng.randbytes(rng.randrange(200)))
    else:
        content += rng.randbytes(rng.randrange(1, 50))
    path.write_bytes(content)


def replace_file(path: Path, rng: random.Random) -> None:
    """Something else under the same name."""
    path.unlink()
    kind = rng.randrange(8)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.touch()
    elif kind == 3:
        with path.open("wb") as file:
            file.truncate(rng.choice([10**6, 10**10, 1 << 40]))
    elif kind == 4:
        path.symlink_to(
            rng.choice(["/dev/zero", "/dev/null", "/dev/tty", path.name, "nowhere", "/"])
        )
    elif kind == 5:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == 6:
        path.write_bytes(b"\x80\x04c__main__\nnothing\n.")


def edit_header(path: Path, rng: random.Random) -> None:
    """A safetensors header that lies."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        lengths = [0, 1, length - 1, length + 1, len(content), 10**9, 2**63, 2**64 - 1]
        path.write_bytes(rng.choice(lengths).to_bytes(8, "little") + content[8:])
        return
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    if kind == 1:
        header[name]["dtype"] = rng.choice(["F16", "I8", "F64", "F8_E4M3", "Q4", "", 5, None])
    elif kind == 2:
        header[name]["shape"] = rng.choice(
            [[], [0], [-1, 16], [2**62, 2**62], [16.0], [True], "x", [1] * 99, [10**30]]
        )
    elif kind == 3:
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = rng.choice(
            [[end, begin], [begin + 4, end + 4], [0, len(data)], [-4, 0], [begin], [0, 2**63], None]
        )
    elif kind == 4:
        header[rng.choice(["x", "lm_head.bias", "", "\0"])] = header.pop(name)
    else:
        _edit(header, rng)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def write_bomb(path: Path, rng: random.Random) -> None:
    """A chat template that means no good."""
    path.write_text(
        rng.choice(
            [
                "{% for i in range(10**9) %}{% endfor %}", "{{ 'x' * 10**10 }}", "{% if %}",
                "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}",
                "{{ raise_exception('no') }}", "{{ (" * 900, "{{ 1 // 0 }}", "", "x" * 300_000,
                "{{ messages[0].content.nothing.at.all }}", "{{ cycler.__init__.__globals__ }}",
            ]
        )
    )  # fmt: skip


Mutation = Callable[[Path, random.Random], None]


def mutate(directory: Path, rng: random.Random) -> str:
    """Damage one file of a directory; says which, and how."""
    # An earlier mutation may have left a link, or a file too large to be read here.
    files = sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20
    )
    jsons = [path for path in files if path.suffix == ".json"]
    weights = [path for path in files if path.suffix == ".safetensors"]
    kinds: list[tuple[float, Mutation, list[Path]]] = [
        (6.0, edit_json, jsons),
        (1.5, break_json, jsons),
        (0.7, recode, [*jsons, *(path for path in files if path.suffix == ".jinja")]),
        (1.5, damage_bytes, files),
        (1.5, replace_file, files),
        (2.0, edit_header, weights),
        (0.7, write_bomb, [path for path in files if path.suffix == ".jinja"]),
    ]
    kinds = [kind for kind in kinds if kind[2]]
    _, change, candidates = rng.choices(kinds, [kind[0] for kind in kinds])[0]
    path = rng.choice(candidates)
    try:
        change(path, rng)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        # An earlier mutation left nothing of the kind to change.
        return f"nothing ({change.__name__} of {path.name})"
    return f"{change.__name__} of {path.name}"


def copy_of(directory: Path, to: Path) -> Path:
    """A copy to be damaged, in place of an earlier one."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(directory, to))
