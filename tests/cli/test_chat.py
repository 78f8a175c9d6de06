"""A conversation: what is kept, what Ctrl-C does, and when."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys

import pytest

from minserve.__main__ import main
from minserve.cli import chat
from minserve.llm import LLM
from minserve.loading import find_model

TEMPLATE = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}# answer:"
ENGINE = ["--dtype", "float32", "--device", "cpu", "--temperature", "0", "--ignore-eos"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The draft model with a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    for path in find_model("zoo/draft").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


class Watched(LLM):
    """Remembers the conversations that it was asked about, and itself."""

    made: list[Watched]

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[list[dict[str, str]]] = []
        self.pages: list[int] = []
        self.made.append(self)

    def chat_prompt(self, messages):
        self.asked.append([dict(message) for message in messages])
        self.pages.append(pages_in_use(self))
        return super().chat_prompt(messages)


def pages_in_use(llm: LLM) -> int:
    """Pages that live requests hold; those that are only cached do not count."""
    assert not llm.engine.live_requests()
    return sum(group.pool.num_owned for group in llm.engine.memory.groups)


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """Runs a chat over typed lines, with the steps of the engine interrupted as asked for."""
    Watched.made = []
    monkeypatch.setattr("minserve.cli.chat.LLM", Watched)

    def run(lines: str, *words: str) -> tuple[int, Watched, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(["chat", "--model", model, "--quiet", *ENGINE, *words])
        captured = capsys.readouterr()
        return code, Watched.made[-1], captured.out, captured.err

    return run


def interrupt_after(monkeypatch, num_chunks: int, times: int = 1) -> None:
    """Ctrl-C while that chunk of the first answer is computed, `times` times in succession."""
    from minserve.frontend.share import EngineShare

    made, step = [0], EngineShare._step

    def stepping(self, engine):
        made[0] += 1
        if made[0] == num_chunks:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return step(self, engine)

    monkeypatch.setattr(EngineShare, "_step", stepping)


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(talk, monkeypatch):
    interrupt_after(monkeypatch, 5)
    code, llm, out, err = talk("first\nsecond\n", "--max-tokens", "12")
    assert code == 0
    assert "minserve: stopped; what was said so far is kept" in err
    partial, whole = out.splitlines()[0], llm.asked[-1][1]["content"]
    assert llm.asked[-1] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": whole},
        {"role": "user", "content": "second"},
    ]
    assert whole and whole.startswith(partial) and out.startswith(whole + "\n")
    assert llm.pages == [0] * len(llm.pages)


def test_ctrl_c_before_the_first_word_removes_the_question(talk, monkeypatch):
    interrupt_after(monkeypatch, 1)
    code, llm, _, err = talk("first\nsecond\n", "--max-tokens", "4")
    assert code == 0 and "minserve: stopped; the question is removed" in err
    assert llm.asked[-1] == [{"role": "user", "content": "second"}]


def test_a_second_ctrl_c_ends_with_a_sentence(talk, monkeypatch):
    interrupt_after(monkeypatch, 3, times=2)
    code, llm, _, err = talk("first\nsecond\n", "--max-tokens", "12")
    assert code == 130 and err.endswith("\nminserve: interrupted\n")
    assert len(llm.asked) == 2  # the trial at the start, and the first line
    with pytest.raises(RuntimeError, match="closed"):
        _ = llm.engine


def test_ctrl_c_at_the_prompt_ends_with_a_sentence(talk, monkeypatch):
    def pressed() -> str:
        signal.raise_signal(signal.SIGINT)
        return "never"

    monkeypatch.setattr(chat, "read_line", pressed)
    code, llm, _, err = talk("")
    assert code == 130 and err.endswith("\nminserve: interrupted\n")
    with pytest.raises(RuntimeError, match="closed"):
        _ = llm.engine


def test_outside_an_answer_ctrl_c_is_handled_as_before(talk):
    before = signal.getsignal(signal.SIGINT)
    assert talk("first\n", "--max-tokens", "2")[0] == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_reset_and_exit(talk):
    code, llm, _, _ = talk("first\n/reset\nsecond\n\n/exit\nthird\n", "--max-tokens", "2")
    assert code == 0
    assert [conversation[-1]["content"] for conversation in llm.asked[1:]] == ["first", "second"]
    assert len(llm.asked[-1]) == 1


def test_a_conversation_that_is_too_long_keeps_the_turns_before(talk):
    code, llm, _, err = talk("first\n" + "x " * 3000 + "\nsecond\n", "--max-tokens", "2")
    assert code == 0 and "/reset starts over" in err
    assert [message["role"] for message in llm.asked[-1]] == ["user", "assistant", "user"]


@pytest.mark.skipif(os.name == "nt", reason="no signals to send")
def test_a_process_that_is_sent_sigint_goes_on_with_the_conversation(model):
    words = ["--max-tokens", "800", "--quiet"]
    command = [sys.executable, "-m", "minserve", "chat", "--model", model, *ENGINE, *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        read_until(process.stderr, b"> ")
        process.stdin.write(b"first\n")
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        told = read_until(process.stderr, b"stopped; what was said so far is kept")
        assert b"Traceback" not in told
        read_until(process.stderr, b"> ")
        process.stdin.write(b"second\n")
        read_until(process.stderr, b"> ")  # the second answer has come to its end
        process.send_signal(signal.SIGINT)  # at the prompt
        read_until(process.stderr, b"minserve: interrupted\n")
        assert process.wait(60) == 130


def read_until(stream: io.RawIOBase, text: bytes) -> bytes:
    """What the stream said up to `text`."""
    said = b""
    while text not in said:
        piece = stream.read(1)
        assert piece, said
        said += piece
    return said
