"""Mutants made by hand that no test noticed, each killed by a test here: rows sampled alone, JSON
files, caches, pages on disk, waiting threads."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from sampling import oracle

from minserve.files import cache_dir, json_file
from minserve.files.cache_dir import UnsafeError
from minserve.files.json_file import FileError, open_regular, parse_json
from minserve.kernels.cpu import spinning
from minserve.memory import DiskTier
from minserve.process import openmp
from minserve.request import Request, SamplingParams
from minserve.sampling import Sampler, make_masks, plan_sampling, sample_alone

VOCAB = 30
EACH = [
    SamplingParams(temperature=0.0, logprobs=2),
    SamplingParams(temperature=1.0, repetition_penalty=1.9, presence_penalty=1.5),
    SamplingParams(temperature=0.0, logit_bias={3: 50.0}, allowed_token_ids=[3, 4, 5]),
    SamplingParams(temperature=0.8, logit_bias={7: -math.inf, 8: 60.0}, top_k=3),
    SamplingParams(temperature=0.0, allowed_token_ids=[9, 10], logprobs=3),
    SamplingParams(temperature=0.0, frequency_penalty=2.0, logprobs=0),
]


def rows() -> list[Request]:
    made = []
    for index, params in enumerate(EACH):
        one = oracle.request(params, seed=index, prompt=[1, 2, index], output=[5, 5, index + 6])
        one.masks = make_masks(params, None)
        made.append(one)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_rows_sampled_alone_are_the_rows_of_the_batch(seed: int) -> None:
    logits = torch.randn(len(EACH), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    sampler, batch = Sampler(), plan_sampling(rows())
    together = sampler.sample(logits.clone(), batch)
    alone, errors = sample_alone(sampler, logits.clone(), batch)
    assert not errors
    assert alone.token_ids.tolist() == together.token_ids.tolist()
    assert alone.logprobs is not None and together.logprobs is not None
    for name in ("logprobs", "ranks", "top_token_ids", "top_logprobs"):
        found, expected = getattr(alone.logprobs, name), getattr(together.logprobs, name)
        torch.testing.assert_close(found, expected)


# -- JSON ------------------------------------------------------------------------------------------


def test_numbers_and_nesting_may_be_as_large_as_allowed_and_no_larger() -> None:
    assert parse_json(b"9" * 40, "f") == int("9" * 40)
    with pytest.raises(FileError, match="41 digits"):
        parse_json(b"9" * 41, "f")
    parse_json(b"[" * 64 + b"1" + b"]" * 64, "f")
    with pytest.raises(FileError, match="nested more than 64"):
        parse_json(b"[" * 65 + b"1" + b"]" * 65, "f")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_a_path_that_turns_into_something_else_leaves_no_descriptor_open(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("{}")
    directory, regular = os.stat(tmp_path), os.stat(path)
    before = len(os.listdir("/proc/self/fd"))
    # Regular when it is looked at, a directory once it is open.
    monkeypatch.setattr(json_file.os, "stat", lambda _: regular)
    monkeypatch.setattr(json_file.os, "fstat", lambda _: directory)
    with pytest.raises(FileError, match="a directory"):
        open_regular(path)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before


# -- caches ----------------------------------------------------------------------------------------

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)


@as_root
def test_a_link_of_another_user_to_a_directory_of_ours_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "link"))
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    cache_dir.secure(tmp_path / "link")
    monkeypatch.setattr(cache_dir.os, "geteuid", lambda: 0)
    os.chown(tmp_path / "link", 4321, 4321, follow_symlinks=False)
    with pytest.raises(UnsafeError, match="belongs to another user"):
        cache_dir.secure(tmp_path / "link")


@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_what_a_group_can_write_is_as_open_as_what_all_can(tmp_path, bit):
    folder, path = tmp_path / "folder", tmp_path / "file"
    folder.mkdir(mode=0o700)
    path.write_text("x")
    path.chmod(0o600)
    cache_dir.secure(folder)
    cache_dir.check_file(path)
    folder.chmod(0o700 | bit)
    path.chmod(0o600 | bit)
    with pytest.raises(UnsafeError, match="other users can write"):
        cache_dir.secure(folder)
    with pytest.raises(UnsafeError, match="other users can write"):
        cache_dir.check_file(path)


def test_a_replaced_file_has_the_mode_that_was_asked_for(tmp_path):
    cache_dir.replace(tmp_path / "a", b"x", mode=0o644)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


# -- pages on disk ---------------------------------------------------------------------------------


def test_a_page_that_was_read_is_not_the_next_to_go_and_a_full_tier_is_full(tmp_path):
    keys = [bytes([index]) * 32 for index in range(3)]
    tier = DiskTier(tmp_path, 2 * 40)
    try:
        assert tier.put(keys[0], b"a" * 24) and tier.put(keys[1], b"b" * 24)
        assert len(tier) == 2
        assert tier.get(keys[0]) == b"a" * 24
        assert tier.put(keys[2], b"c" * 24)
        assert keys[0] in tier and keys[1] not in tier
    finally:
        tier.close()


def test_a_tier_that_cannot_make_room_writes_nothing_more(tmp_path, monkeypatch):
    tier = DiskTier(tmp_path, 40)
    try:
        assert tier.put(b"a" * 32, b"a" * 24)

        def refuses(path, missing_ok=False):
            raise PermissionError(1, "not permitted")

        with monkeypatch.context() as broken:
            broken.setattr(Path, "unlink", refuses)
            assert not tier.put(b"b" * 32, b"b" * 24)
        assert "deleting a page failed" in (tier.failure or "")
        assert not (tier._folder / (b"b" * 32).hex()).exists()
    finally:
        tier.close()


# -- spinning --------------------------------------------------------------------------------------


def governed(monkeypatch):
    """A governor, its clock, what its threads ran and waited, and how often it switched."""
    monkeypatch.setattr(spinning, "user_chose", lambda _: False)
    state = {"now": 0.0, "ran": 10.0, "waited": 10.0, "looks": 0, "on": 0}

    class Counting:
        def on(self) -> None:
            state["on"] += 1

        def off(self) -> None:
            state["on"] -= 1

    def times() -> tuple[float, float]:
        state["looks"] += 1
        return state["ran"], state["waited"]

    governor = spinning.SpinGovernor(Counting(), times=times, clock=lambda: state["now"])
    governor.step()
    return governor, state


def test_times_that_an_ended_thread_took_along_say_nothing(monkeypatch):
    governor, state = governed(monkeypatch)
    state.update(now=1.0, ran=9.9, waited=10.3)
    governor.step()
    assert state["looks"] == 2 and not governor.short and state["on"] == 0


def test_a_forked_child_switches_nothing_of_its_parents(monkeypatch):
    governor, state = governed(monkeypatch)
    monkeypatch.setattr(spinning.os, "getpid", lambda: -1)
    state.update(now=1.0, ran=10.1, waited=10.3)
    governor.step()
    assert state["looks"] == 1 and state["on"] == 0


def test_the_sentence_names_every_variable_that_decides(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    said = "waiting threads follow GOMP_SPINCOUNT=7 and OMP_WAIT_POLICY=ACTIVE"
    assert openmp.settle() == said


def test_where_torch_was_loaded_with_our_own_spin_count_the_sentence_says_so(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", str(openmp.SPIN_COUNT))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert openmp.settle().startswith("waiting threads spin 10000 turns")
