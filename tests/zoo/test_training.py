"""Training can be killed, paused and repeated; the network it trains is a plain Llama."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from minserve.clock import VirtualClock
from minserve.zoo import zoo_path
from minserve.zoo.corpus.data import SHARES, SPLIT_SHARE, Sampler, prepare, split_table
from minserve.zoo.corpus.tokenizer import decode_bytes, load_tokenizer
from minserve.zoo.training.budget import Budget, seconds_until
from minserve.zoo.training.loop import run
from minserve.zoo.training.muon import orthogonalise
from minserve.zoo.training.net import Net, NetConfig, head_loss
from minserve.zoo.training.trainer import TrainConfig, Trainer

TINY = TrainConfig(
    net=NetConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_positions=64,
    ),
    tokens_per_step=256,
    tokens_per_pass=128,
    short_length=32,
    long_length=64,
    warmup_steps=2,
)
STEPS = 12
SPLITS = split_table(zoo_path("base"))


def tiny_trainer() -> Trainer:
    rng = np.random.default_rng(7)
    streams = {mix: rng.integers(2, 4096, 900).astype(np.uint16) for mix in SHARES}
    return Trainer(TINY, Sampler(streams, splits=SPLITS))


def state(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.net.state_dict().values(), *trainer.muon.buffers]


def test_a_run_resumed_after_a_kill_ends_in_the_same_state(tmp_path: Path) -> None:
    whole = tiny_trainer()
    for step in range(STEPS):
        whole.step(step / STEPS)

    model = tmp_path / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((zoo_path("base") / name).read_bytes())
    script = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import test_training as t
        trainer = t.tiny_trainer()
        step = trainer.step
        def slow(progress):  # so that the kill meets it at work, with a checkpoint behind it
            if trainer.step_count == 7:
                Path({str(tmp_path / "there")!r}).touch()
                time.sleep(60)
            return step(progress)
        trainer.step = slow
        where = Path({str(tmp_path)!r})
        t.run(trainer, t.Budget(steps=t.STEPS), where, where / "model", save_every_s=0.0)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "there").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the child did not start"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    resumed = tiny_trainer()
    run(resumed, Budget(steps=STEPS), tmp_path, model, save_every_s=1e9)
    assert resumed.step_count == STEPS
    assert resumed.sampler.tokens_drawn == whole.sampler.tokens_drawn
    for ours, theirs in zip(state(resumed), state(whole), strict=True):
        # One thread there, perhaps more here: sums may be ordered differently.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (model / "model.safetensors").is_file()
    before_decay = torch.load(tmp_path / "before_decay.pt", weights_only=True)
    assert before_decay["step"] == math.ceil(TINY.decay_from * STEPS)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    tiny_trainer().save(tmp_path / "checkpoint.pt")
    other = Trainer(TrainConfig(net=NetConfig(num_layers=1)), Sampler({"stdlib": np.arange(9)}))
    with pytest.raises(ValueError, match="another shape"):
        other.load(tmp_path / "checkpoint.pt")


def test_tokens_without_their_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"copy tokenizer\.json"):
        prepare(tmp_path, tmp_path / "model")
    assert prepare(tmp_path, zoo_path("base")) == {}


def test_learning_lowers_the_loss() -> None:
    streams = {mix: np.tile(np.arange(2, 40, dtype=np.uint16), 40) for mix in SHARES}
    trainer = Trainer(TINY, Sampler(streams))
    losses = [trainer.step(step / 120)[0] for step in range(120)]
    assert losses[-1] < 0.2 * losses[0]


def test_a_pause_does_not_count_as_active_time() -> None:
    budget = Budget(minutes=10, clock=VirtualClock())
    active = sum(budget.active(2.0) for _ in range(10)) + budget.active(500.0)
    assert active == 22.0


def test_progress_completes_at_the_deadline_whatever_happened_before() -> None:
    clock = VirtualClock()
    budget = Budget(minutes=60, within_s=600.0, clock=clock)
    clock.advance(300.0)
    assert budget.progress(10, active_s=300.0) == pytest.approx(0.5)
    clock.advance(299.0)  # stopped all the while
    assert budget.progress(10, active_s=300.0) == pytest.approx(300 / 301)
    clock.advance(1.0)
    assert budget.progress(10, active_s=300.0) == 1.0


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    trainer = tiny_trainer()
    assert trainer.rate(0.0) == pytest.approx(1 / TINY.warmup_steps)
    trainer.step_count = 100
    rates = [trainer.rate(p) for p in (0.1, TINY.decay_from, 0.8, 1.0)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_a_time_of_day_is_read_as_the_next_one() -> None:
    assert 0 < seconds_until("09:30") <= 86400
    with pytest.raises(ValueError, match="09:30"):
        seconds_until("half past nine")


def test_windows_visit_every_token_once_an_epoch() -> None:
    sampler = Sampler({"stdlib": np.arange(2, 2 + 640, dtype=np.uint16)})
    starts = [int(sampler._next_window("stdlib", 64)[0]) for _ in range(9)]
    assert len(set(starts)) == 9
    assert {start % 64 for start in starts} == {starts[0] % 64}


def test_split_tokens_spell_the_same_text() -> None:
    bpe = load_tokenizer(zoo_path("base"))
    text = "def f(x):\n    return g(x)\n\n\n" * 60
    stream = np.array(bpe.encode(text, add_special_tokens=False).ids, dtype=np.uint16)
    plain = Sampler({"stdlib": stream})
    split = Sampler({"stdlib": stream}, splits=SPLITS)
    assert SPLIT_SHARE > 0
    changed = 0
    for _ in range(8):
        ours, theirs = (s._next_window("stdlib", 64).tolist() for s in (split, plain))
        changed += ours != theirs
        assert decode_bytes(bpe, theirs).startswith(decode_bytes(bpe, ours))
    assert changed


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 48), (2, 48, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def test_head_loss_and_its_gradients_are_those_of_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 8, dtype=torch.float64) for n in (37, 50))
    targets = torch.randint(0, 50, (37,))
    grads = []
    for loss_of in (
        lambda h, w: head_loss(h, w, targets, chunk=16),
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.t(), targets),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(h, w)
        loss.backward()
        grads.append((loss.detach().double(), h.grad, w.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_network_is_the_llama_that_transformers_knows(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from minserve.zoo.training.export import export

    torch.manual_seed(0)
    net = Net(TINY.net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter).mul_(0.2).bfloat16())
    export(net, zoo_path("base"), tmp_path, [])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 4096, (2, 40))
    with torch.inference_mode():
        torch.testing.assert_close(
            net.logits(tokens), theirs(input_ids=tokens).logits, rtol=1e-4, atol=1e-4
        )
