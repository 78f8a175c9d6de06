"""Faults that were planted in masks and cursors: the checks of the other files must notice each."""

from __future__ import annotations

import numpy as np
import pytest
from sampling.grammar import test_mask, words

from minserve.sampling.grammar import mask


def notices() -> bool:
    """Does a check fail?"""
    try:
        for kind in test_mask.FORMS:
            test_mask.test_a_mask_allows_exactly_what_continues_the_form_in_any_order_of_questions(
                kind, 1
            )
        test_mask.test_after_a_banned_token_of_a_draft_nothing_is_an_error_and_nothing_is_remembered()
        test_mask.test_samples_of_one_prompt_have_a_cursor_each_and_one_compiled_form()
        test_mask.test_special_tokens_are_no_text_even_if_they_are_spelled_like_some()
        test_mask.test_a_form_that_must_stop_allows_the_end_alone(False)
    except (AssertionError, mask.GrammarError):
        return True
    return False


real_bits = mask.GrammarMask._bits
real_move = mask._Cursor.move_to


def always_ends(self, cursor):
    return real_bits(self, cursor) | self._ends


def never_ends(self, cursor):
    return real_bits(self, cursor) & ~self._ends


def shifted(self, cursor):
    bits = np.unpackbits(real_bits(self, cursor), bitorder="little")
    return np.packbits(np.roll(bits, 1), bitorder="little")


def own_end_left(self, cursor):
    """The grammar's own end is taken for a token of the vocabulary."""
    words_ = np.frombuffer(cursor.bitmask(), dtype=np.uint8)[: len(self._ends)]
    return words_ | real_bits(self, cursor)


def not_rolled_back(self, tokens):
    """Only the tokens at the end are consumed, whatever the cursor knows."""
    known = self._consumed
    if known != tokens[: len(known)]:
        known[:] = tokens[: len(known)]
    return real_move(self, tokens)


def one_token_too_few(self, tokens):
    known = self._consumed
    if known and known != tokens[: len(known)]:
        self._matcher.rollback(1)
        known.pop()
        known[:] = tokens[: len(known)]
    return real_move(self, tokens)


def banned_is_kept(self, tokens):
    """A banned token counts as consumed."""
    followed = real_move(self, tokens)
    if not followed:
        self._consumed[:] = tokens
    return followed


FAULTS = {
    "always_ends": (mask.GrammarMask, "_bits", always_ends),
    "never_ends": (mask.GrammarMask, "_bits", never_ends),
    "shifted": (mask.GrammarMask, "_bits", shifted),
    "own_end_left": (mask.GrammarMask, "_bits", own_end_left),
    "not_rolled_back": (mask._Cursor, "move_to", not_rolled_back),
    "one_token_too_few": (mask._Cursor, "move_to", one_token_too_few),
    "banned_is_kept": (mask._Cursor, "move_to", banned_is_kept),
}


def test_without_a_fault_nothing_fails():
    assert not notices()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_mask_or_a_cursor_is_noticed(name, monkeypatch):
    monkeypatch.setattr(*FAULTS[name])
    assert notices()


def test_forced_spellings_would_be_noticed(monkeypatch):
    """Where a text is forced, llguidance by itself allows one spelling, when it notices."""
    monkeypatch.setattr("minserve.sampling.grammar.compiled._ANY_TOKENS", "")
    assert notices()


def test_special_tokens_that_count_as_text_would_be_noticed(monkeypatch):
    tokens = words.tokenizer()
    tokens.special_ids = frozenset()
    monkeypatch.setattr(test_mask, "TOKENS", tokens)
    assert notices()
