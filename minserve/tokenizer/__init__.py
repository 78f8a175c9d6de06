"""Text to token ids and back: the only room that knows about text. Knows nothing about tensors.

`Tokenizer` encodes, decodes and renders chats. `TextStream` turns one sample's tokens into text as
they arrive: whole characters only, and never a part of a stop string.
"""

from minserve.tokenizer.chat import ChatTemplateError
from minserve.tokenizer.detokenizer import Detokenizer
from minserve.tokenizer.settings import TokenizerError
from minserve.tokenizer.stops import StopChecker
from minserve.tokenizer.stream import TextStream
from minserve.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ChatTemplateError",
    "Detokenizer",
    "StopChecker",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
]
