"""What must hold of a chapter that has run: every rule yields sentences, and none is good news.

Found by trying chapters as new users would; a new chapter that breaks one cannot land. What can be
read off the file without running is in `labs.lint`.
"""

from __future__ import annotations

from labs.lint import PLAYGROUND
from labs.rules.comparisons import (
    a_moved_control_greys_the_results_out,
    both_strips_are_open,
    factors_are_above_one,
    it_opens_in_the_playground,
    nothing_is_said_of_an_unfinished_run,
    the_figure_draws_the_headline,
    the_flip_is_one_field_and_gives_a_verdict,
)
from labs.rules.provenance import (
    a_modelled_shape_is_named,
    numbers_say_how_they_were_found,
    only_the_switch_is_a_difference,
)
from labs.rules.recaps import recap_answers_have_evidence
from labs.rules.sweeps import a_crossover_is_marked, the_sweep_turns_the_flipped_switch
from labs.running import Rule

RULES: tuple[Rule, ...] = (
    the_flip_is_one_field_and_gives_a_verdict,
    the_figure_draws_the_headline,
    factors_are_above_one,
    both_strips_are_open,
    nothing_is_said_of_an_unfinished_run,
    a_moved_control_greys_the_results_out,
    it_opens_in_the_playground,
    a_modelled_shape_is_named,
    only_the_switch_is_a_difference,
    numbers_say_how_they_were_found,
    the_sweep_turns_the_flipped_switch,
    a_crossover_is_marked,
    recap_answers_have_evidence,
)

OF_A_LESSON: tuple[Rule, ...] = (
    the_flip_is_one_field_and_gives_a_verdict,
    a_crossover_is_marked,
    recap_answers_have_evidence,
)
"""Rules that only a chapter can keep: the playground flips, sweeps and asks nothing."""


def rules_for(name: str) -> tuple[Rule, ...]:
    """The rules of a chapter, or of the playground."""
    if name != PLAYGROUND:
        return RULES
    return tuple(rule for rule in RULES if rule not in OF_A_LESSON)
