"""A draft learns its teacher's probabilities, can be stopped anywhere, and reads what it wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minserve.zoo import zoo_path
from minserve.zoo.corpus import own_text
from minserve.zoo.corpus.data import SHARES, Sampler
from minserve.zoo.corpus.own_text import before_the_loop, prepare_own_text, repeated_share
from minserve.zoo.training.budget import Budget
from minserve.zoo.training.distil import DistilConfig, Distiller
from minserve.zoo.training.distil_loss import distil_loss
from minserve.zoo.training.export import export, load_net
from minserve.zoo.training.loop import run
from minserve.zoo.training.net import Net, NetConfig

TEACHER = NetConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=64,
    max_positions=256,
)
CONFIG = DistilConfig(
    net=replace(TEACHER, hidden_size=16, num_layers=1, num_heads=1, intermediate_size=32),
    tokens_per_step=128,
    tokens_per_pass=64,
    short_length=32,
    long_length=64,
    warmup_steps=2,
    teach_from=0.4,
    own_parts=2,
)
STEPS = 10


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "PART", 4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    net = Net(TEACHER)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter).mul_(0.3).bfloat16())
    folder = tmp_path_factory.mktemp("teacher")
    export(net, zoo_path("base"), folder, [])
    return folder


def streams() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {mix: rng.integers(2, 4096, 900).astype(np.uint16) for mix in SHARES}


def distiller(teacher: Path, folder: Path) -> Distiller:
    return Distiller(CONFIG, Sampler(streams()), teacher, folder)


def model_folder(folder: Path) -> Path:
    model = folder / "model"
    model.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((zoo_path("base") / name).read_bytes())
    return model


def test_the_loss_and_its_gradients_are_those_of_cross_entropy_under_the_mixture() -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 8, dtype=torch.float64) for n in (37, 50))
    theirs, their_weight = (torch.randn(n, 12, dtype=torch.float64) for n in (37, 50))
    labels = torch.randint(0, 50, (37,))
    label = torch.nn.functional.one_hot(labels, 50).double()
    wanted = 0.7 * torch.softmax(theirs @ their_weight.t(), -1) + 0.3 * label
    results = []
    for loss_of in (
        lambda h, w: distil_loss(h, w, labels, theirs, their_weight, 0.3, chunk=16),
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.t(), wanted),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(h, w)
        loss.backward()
        results.append((loss.detach(), h.grad, w.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_a_network_is_read_back_as_it_was_written(teacher: Path) -> None:
    torch.manual_seed(3)
    net = load_net(teacher)
    assert net.config == TEACHER
    export(net, zoo_path("base"), teacher.with_name("again"), [])
    first, second = (
        (folder / "model.safetensors").read_bytes()
        for folder in (teacher, teacher.with_name("again"))
    )
    assert first == second


def test_a_teacher_without_weights_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"minserve\.zoo\.train"):
        load_net(tmp_path)


@pytest.mark.parametrize("stopped_at", [2, 7])  # before the teacher comes in, and after
def test_a_distillation_stopped_and_resumed_ends_as_if_never_stopped(
    stopped_at: int, teacher: Path, tmp_path: Path
) -> None:
    whole = distiller(teacher, tmp_path / "whole")
    run(whole, Budget(steps=STEPS), tmp_path / "whole", model_folder(tmp_path / "whole"))

    model = model_folder(tmp_path / "cut")
    first = distiller(teacher, tmp_path / "cut")
    step = first.step

    def killed(progress: float) -> tuple[float, torch.Tensor]:
        if first.step_count == stopped_at:
            raise KeyboardInterrupt
        return step(progress)

    first.step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(first, Budget(steps=STEPS), tmp_path / "cut", model, save_every_s=0.0)
    second = distiller(teacher, tmp_path / "cut")
    run(second, Budget(steps=STEPS), tmp_path / "cut", model)

    assert second.step_count == whole.step_count == STEPS
    assert second.sampler.tokens_drawn == whole.sampler.tokens_drawn
    assert second.sampler.tokens_drawn["own"] > 0
    for ours, theirs in zip(
        second.net.state_dict().values(), whole.net.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_most_teaching_is_repetition_and_every_batch_is_kept(teacher: Path, tmp_path: Path) -> None:
    trainer = distiller(teacher, tmp_path)
    asked = []
    hidden_of = trainer.teacher_hidden
    trainer.teacher_hidden = lambda x: asked.append(trainer.step_count) or hidden_of(x)  # type: ignore[method-assign]
    for _ in range(12):
        trainer.step(0.5)
    assert asked == [0, 4, 8]
    assert len(list(tmp_path.glob("taught/*/32-*.npz"))) == 3
    first = trainer.taught.draw(5, 32)
    assert first is not None and first[2].shape == (4, 32, TEACHER.hidden_size)
    wanted = hidden_of(first[0])
    torch.testing.assert_close(first[2], wanted, rtol=1e-3, atol=1e-3)
    assert trainer.taught.draw(0, 32) is None and trainer.taught.draw(9, 64) is None


def test_teaching_brings_the_student_to_the_teachers_probabilities(
    teacher: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, teach_from=0.0, hard_share=0.0, adam_lr=0.02, decay_from=0.5)
    trainer = Distiller(config, Sampler(streams()), teacher, tmp_path)
    inputs = torch.randint(2, 4096, (4, 32))

    @torch.no_grad()
    def divergence() -> float:
        wanted = load_net(teacher).logits(inputs).log_softmax(-1)
        given = trainer.net.logits(inputs).log_softmax(-1)
        return float((wanted.exp() * (wanted - given)).sum(-1).mean())

    before = divergence()
    for index in range(60):
        trainer.step(index / 60)
    assert divergence() < 0.9 * before


def test_own_text_is_written_once_and_again_for_another_model(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_own_text(teacher, streams(), tmp_path, parts=2)
    (part,) = tmp_path.glob("own/*/part-0001.npy")
    part.unlink()
    written = []
    write_part = own_text.write_part
    monkeypatch.setattr(
        own_text, "write_part", lambda m, s, n: written.append(n) or write_part(m, s, n)
    )
    assert np.array_equal(first, prepare_own_text(teacher, streams(), tmp_path, parts=2))
    assert written == [1]
    prepare_own_text(zoo_path("base"), streams(), tmp_path, parts=1)
    assert written == [1, 0]


def test_a_loop_is_cut_off_where_it_takes_over() -> None:
    text = list(range(20))
    assert before_the_loop(text) == text
    loop = text + [1, 2, 3, 4, 5] * 20
    kept = before_the_loop(loop)
    assert text == kept[:20] and len(kept) < 40
    assert repeated_share(kept) <= own_text.LOOP_SHARE < repeated_share(loop)
    assert before_the_loop([5, 5]) == [5, 5]
