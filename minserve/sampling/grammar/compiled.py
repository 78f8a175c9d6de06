"""Compiled forms, kept per engine: the newest `MOST_KEPT`, by kind and text.

May be called from any thread: two that ask for the same new form both compile it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from minserve.inputs.checks import shorten
from minserve.inputs.errors import InvalidRequestError
from minserve.inputs.params import SamplingParams
from minserve.inputs.structured import StructuredOutputs
from minserve.sampling.grammar.mask import GrammarMask
from minserve.sampling.grammar.vocabulary import Vocabulary, build_tokens, need_library

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_KEPT = 64
"""Compiled forms per engine."""
MOST_LEXER_STATES = 50_000
"""States of one form's automaton, of some 2 kB each, made while it is followed. All other limits
are llguidance's own."""
WHITESPACE = r"[ ]|\n[ ]{0,16}"
"""What may stand between two parts of a JSON text, if anything does. llguidance's own default has
no bound, and a model that prefers a space there would never leave it."""
_ANY_TOKENS = '%llguidance {"no_forcing": true}'
"""Allow every token that continues the form. Otherwise llguidance allows, where a text is forced,
only the token that its tokenizer would choose, and when it notices that depends on the questions
before: the mask would be no function of the tokens."""
_PICTURE = re.compile(r"\s*(\d+\s*\||\^\s*$)")
_MOST_SHOWN = 400
"""Characters of llguidance's answer in an error message."""


class Grammars:
    """The compiled forms of one engine."""

    def __init__(
        self, vocabulary: Vocabulary | None, end_token_ids: Collection[int], most_chars: int
    ) -> None:
        """`end_token_ids`: the model's. `most_chars`: the longest form that is compiled."""
        self._vocabulary = vocabulary
        self._end_token_ids = tuple(end_token_ids)
        self._most_chars = most_chars
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._kept: OrderedDict[StructuredOutputs, LLMatcher] = OrderedDict()
        self.num_compiled = 0

    def prepare(self, params: SamplingParams) -> None:
        """Compile the form that these parameters ask for, if it is not kept. Raises
        InvalidRequestError."""
        if params.structured_outputs is not None:
            self._find(params.structured_outputs)

    def mask(self, params: SamplingParams) -> GrammarMask | None:
        """The rule for these parameters; None if they ask for no form. Raises
        InvalidRequestError."""
        form = params.structured_outputs
        if form is None:
            return None
        ends = dict.fromkeys((*self._end_token_ids, *params.stop_token_ids))
        if not ends:
            raise InvalidRequestError(
                "SamplingParams.structured_outputs: this model names no end-of-sequence token, so "
                "a text of this form could not end: give stop_token_ids"
            )
        matcher = self._find(form)
        assert self._vocabulary is not None
        return GrammarMask(matcher, tuple(ends), self._vocabulary.vocab_size)

    def _find(self, form: StructuredOutputs) -> LLMatcher:
        """The matcher of a form, at its beginning; callers copy it."""
        with self._lock:
            found = self._kept.get(form)
            if found is not None:
                self._kept.move_to_end(form)
                return found
        matcher = self._compile(form)  # without the lock: it takes up to seconds
        with self._lock:
            self.num_compiled += 1
            self._kept[form] = matcher
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return matcher

    def _compile(self, form: StructuredOutputs) -> LLMatcher:
        where = f"SamplingParams.structured_outputs.{form.kind}"
        if self._vocabulary is None:
            raise InvalidRequestError(
                f"{where} needs a tokenizer, and this model came without one: use allowed_token_ids"
            )
        if len(form.source) > self._most_chars:
            raise InvalidRequestError(
                f"{where} has {len(form.source)} characters, and admission.max_grammar_chars "
                f"allows {self._most_chars}: shorten it, or raise that field"
            )
        library = need_library()
        try:
            matcher: LLMatcher = library.LLMatcher(
                self._get_tokens(),
                _source(form),
                log_level=0,
                limits=library.LLParserLimits(
                    max_lexer_states=MOST_LEXER_STATES, verbose_errors=False
                ),
            )
            if not matcher.is_error():
                # Some expressions grow only when they are followed; the first mask shows it here.
                first = matcher.compute_bitmask()
        except InvalidRequestError:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic is a BaseException
            raise InvalidRequestError(f"{where}: {_one_line(str(error))}") from None
        if matcher.is_error():
            raise InvalidRequestError(
                f"{where}={shorten(form.source)} cannot be compiled: "
                f"{_one_line(matcher.get_error())}"
            )
        if not any(first):
            raise InvalidRequestError(
                f"{where}={shorten(form.source)}: no text of this form begins with a token of "
                "this model"
            )
        return matcher

    def _get_tokens(self) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                assert self._vocabulary is not None
                self._tokens = build_tokens(self._vocabulary, self._end_token_ids)
            return self._tokens


def _source(form: StructuredOutputs) -> str:
    """The form as a grammar of llguidance. Raises ValueError."""
    library = need_library()
    if form.kind in ("json", "json_object"):
        options: dict[str, Any] = {
            # A keyword that is ignored would be a promise that is broken.
            "lenient": False,
            "whitespace_flexible": not form.disable_any_whitespace,
        }
        if not form.disable_any_whitespace:
            options["whitespace_pattern"] = WHITESPACE
        schema = json.loads(form.source) | {"x-guidance": options}
        lark = "start: %json " + json.dumps(schema, ensure_ascii=False)
    elif form.kind == "regex":
        made = json.loads(library.LLMatcher.grammar_from_regex(form.source))
        lark = made["grammars"][0]["lark_grammar"]
    elif form.kind == "choice":
        assert form.choice is not None
        each = (json.dumps(choice, ensure_ascii=False) for choice in form.choice)
        # A terminal, in capitals, is one automaton: the parser would count each choice.
        lark = "start: CHOICE\nCHOICE: " + " | ".join(each)
    else:
        lark = library.grammar_from("grammar", form.source)
    return f"{lark}\n{_ANY_TOKENS}"


def _one_line(text: str) -> str:
    """llguidance's answer as one line of limited length, without its picture of the grammar."""
    told = [each for each in text.splitlines() if not _PICTURE.match(each)]
    line = " ".join(" ".join(told).split()) or "llguidance gives no reason"
    return line if len(line) <= _MOST_SHOWN else line[:_MOST_SHOWN] + "..."
