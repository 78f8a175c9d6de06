"""Each challenge is solved by its solution and not by the defaults, and cannot be got round."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace

import pytest

from minserve.bench.compare.setup import Variant
from minserve.bench.compare.workload import Workload
from widgets.notebooks.checkout import labs_directory
from widgets.playground import Challenges, Playground
from widgets.playground.challenges import CHALLENGES, LEAST, OUT_OF, judge, judged
from widgets.scoring.progress import Progress

SOLUTIONS = tomllib.loads(
    (labs_directory() / "solutions" / "02_challenges.toml").read_text(encoding="utf-8")
)
NEAR_MISSES = {
    "shared": {"memory.block_size": 32},
    "freeze": {"scheduling.max_num_batched_tokens": 128},
    "turns": {"scheduling.order": "mlfq"},
    "sessions": {"memory.prefix_cache": "radix"},
    "queue": {"scheduling.max_num_seqs": 600, "scheduling.max_num_batched_tokens": 2048},
    "evicted": {"scheduling.max_num_seqs": 4},
}
"""What a reader may try first: it helps, and not enough, or at too high a price."""


def words(html):
    return re.sub(r"<[^>]*>", " ", html)


def run(challenge, changes):
    panel = Playground()
    panel.state.change(lambda setup: replace(challenge.start, variants=(Variant("mine", changes),)))
    panel.run()
    return panel.result


def test_there_are_six_and_a_solution_for_each():
    assert len(CHALLENGES) == 6 and set(SOLUTIONS) == set(CHALLENGES) == set(NEAR_MISSES)


@pytest.mark.parametrize("key", CHALLENGES)
def test_the_defaults_fail_the_solution_passes_and_a_near_miss_does_not(headless, key):
    challenge = CHALLENGES[key]
    result = run(challenge, SOLUTIONS[key])
    count = len(challenge.start.traffic().requests)
    default = judge(challenge, result.runs["base"][0].trace, count)
    assert not default.passed and default.points == 0 and "above" in default.sentence
    assert "base" not in judged(challenge, result), "the defaults are no try"
    mine = judged(challenge, result)["mine"]
    assert mine.passed and mine.points == OUT_OF, mine.sentence
    assert "(modelled)" in mine.sentence
    missed = judged(challenge, run(challenge, NEAR_MISSES[key]))["mine"]
    assert not missed.passed and missed.points == 0, missed.sentence


def test_points_grow_with_the_virtual_seconds_saved(headless):
    challenge = CHALLENGES["shared"]
    result = run(challenge, SOLUTIONS["shared"])
    trace = result.runs["mine"][0].trace
    value = challenge.goals[0].read(trace)
    just = replace(challenge, goals=(replace(challenge.goals[0], limit=value),), par=value / 2)
    assert judge(just, trace, 200).points == LEAST
    half = replace(challenge, goals=(replace(challenge.goals[0], limit=2 * value),), par=0.0)
    assert judge(half, trace, 200).points == pytest.approx((LEAST + OUT_OF) / 2, abs=0.06)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workload": Workload("race")}, "The workload is not that of"),
        ({"clock": "wall", "model": "zoo/base"}, "The model is not that of"),
        ({"variants": (Variant("mine", {"memory.kv_bytes": 8 << 30}),)}, "memory.kv_bytes may not"),
        ({"variants": (Variant("mine", {"scheduling.max_model_len": 99}),)}, "max_model_len may"),
        ({"variants": (Variant("mine", {"quantization.weight_format": "int8"}),)}, "weight_format"),
    ],
)
def test_another_task_or_a_larger_budget_does_not_count(change, said):
    challenge = CHALLENGES["shared"]
    assert said in challenge.refuses(replace(challenge.start, **change), "mine")
    assert challenge.refuses(challenge.start, "mine") == ""


def test_the_slots_of_the_turns_challenge_are_fixed():
    challenge = CHALLENGES["turns"]
    more = replace(challenge.start, variants=(Variant("mine", {"scheduling.max_num_seqs": 9}),))
    assert "max_num_seqs may not" in challenge.refuses(more, "mine")


def test_a_machine_has_no_more_memory_than_the_task_says():
    challenge = CHALLENGES["sessions"]

    def refusal(**changes):
        paths = {name.replace("__", "."): value for name, value in changes.items()}
        mine = (Variant("mine", paths),)
        return challenge.refuses(replace(challenge.start, variants=mine), "mine")

    assert refusal(memory__prefix_cache="radix", memory__host_bytes=4 << 30) == ""
    assert refusal(memory__prefix_cache="radix", memory__host_bytes=16 << 30) == (
        "memory.host_bytes is 16 GiB, and this machine has 4 GiB."
    )
    assert "may not be changed" in refusal(memory__prefix_cache="radix", memory__host_bytes=1 << 30,
                                           memory__disk_bytes=1 << 30)  # fmt: skip


def test_requests_that_were_left_out_solve_nothing(headless):
    challenge = CHALLENGES["shared"]
    result = run(challenge, SOLUTIONS["shared"])
    found = judge(challenge, result.runs["mine"][0].trace, 201)
    assert not found.passed and "200 of 201 requests served" in found.sentence


def test_a_challenge_is_taken_run_judged_and_kept_with_the_other_scores(headless):
    panel, progress = Playground(), Progress()
    challenges = Challenges(panel, progress)
    assert "not tried" in words(challenges.table.value)
    panel.run()
    assert progress.entries() == {}, "a run before a challenge is taken is none of its own"
    challenges.take("queue")
    assert panel.setup == CHALLENGES["queue"].start and panel.editor.chosen == "mine"
    panel.run()
    assert "change a field of “mine”" in words(challenges.verdict.value)
    assert progress.entries() == {}
    panel.state.set("mine", "scheduling.max_num_seqs", 256)
    panel.run()
    assert "Solved, 10 of 10 points" in words(challenges.verdict.value)
    entry = progress.entries()["02.queue"]
    assert (entry.kind, entry.best, entry.out_of, entry.chapter) == ("check", 10.0, 10.0, "02")
    panel.state.set("mine", "scheduling.max_num_seqs", 65)
    panel.run()
    assert "Not solved" in words(challenges.verdict.value)
    assert (progress.entries()["02.queue"].best, progress.entries()["02.queue"].tries) == (10.0, 2)
    assert "10 of 10" in words(Challenges(panel, progress).table.value)


def test_the_task_stands_over_the_sides_and_the_verdict_first_among_the_results(headless):
    panel = Playground()
    challenges = Challenges(panel, Progress())
    challenges.take("queue")
    settings = list(panel.settings.children)
    assert settings.index(panel.task) == settings.index(panel.editor.widget) - 1
    assert challenges.task in panel.task.children
    said = words(challenges.task.value)
    assert CHALLENGES["queue"].text in said and "at most 10 s" in said and "“mine”" in said
    for fixed in ("memory.kv_bytes", "scheduling.max_model_len"):
        assert fixed in said
    panel.state.set("mine", "scheduling.max_num_seqs", 256)
    panel.run()
    assert panel.results.children[0] is challenges.verdict
    assert "Six hundred at once, “mine”. Solved" in words(challenges.verdict.value)


def test_a_verdict_is_never_another_challenges(headless):
    panel = Playground()
    challenges = Challenges(panel, Progress())
    challenges.take("queue")
    panel.state.set("mine", "scheduling.max_num_seqs", 256)
    panel.run()
    challenges.choice.value = "shared"
    assert "Solved" not in words(challenges.text.value)
    assert "Six hundred at once" in words(challenges.verdict.value), "it says whose it is"
    challenges.take("shared")
    assert challenges.verdict.value == "" and "One system prompt" in challenges.task.value


def test_a_challenge_that_was_left_is_judged_no_more(headless):
    panel, progress = Playground(), Progress()
    challenges = Challenges(panel, progress)
    challenges.take("queue")
    challenges.leave_button.click()
    assert panel.task.children == ()
    panel.state.set("mine", "scheduling.max_num_seqs", 256)
    panel.run()
    assert challenges.verdict.value == "" and progress.entries() == {}


def test_another_comparison_is_no_failure_of_a_challenge(headless):
    panel = Playground()
    code = panel.code
    challenges = Challenges(panel, Progress())
    challenges.take("queue")
    assert panel.restore(code)
    panel.run()
    said = challenges.verdict.value
    assert "Not judged. The workload is not that of" in words(said) and "✗" not in said
    assert words(said).count("Not judged") == 1 and "or leave it" in words(said)


def test_a_cell_that_is_run_again_judges_alone(headless):
    panel, progress = Playground(), Progress()
    old = Challenges(panel, progress)
    old.take("queue")
    new = Challenges(panel, progress)
    new.take("queue")
    panel.state.set("mine", "scheduling.max_num_seqs", 256)
    panel.run()
    assert progress.entries()["02.queue"].tries == 1


def test_a_verdict_goes_when_another_run_begins(headless):
    panel = Playground()
    challenges = Challenges(panel, Progress())
    challenges.take("queue")
    panel.state.set("mine", "scheduling.max_num_seqs", 256)
    panel.run()
    assert challenges.verdict.value
    seen = []
    panel.view.draw = lambda result: seen.append(challenges.verdict.value)
    panel.run()
    assert seen == [""], "no verdict beside a run that is not judged yet"
