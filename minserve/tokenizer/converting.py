"""Tokenizers in older formats, converted by transformers, without running the model's own code.

transformers may open any file of the directory, so all are checked first: each must be a regular
file of plausible size, and JSON must be valid.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from minserve.files.json_file import FileError, read_json, shorten
from minserve.tokenizer.settings import SPECIAL_NAMES, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

OTHER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.tiktoken",
)
_MAX_BYTES = 64 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def convert(path: Path) -> tuple[Backend, dict[str, str]]:
    """The tokenizer of a directory without tokenizer.json, and its special tokens by role.

    Raises TokenizerError.
    """
    _look_at_files(path)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise TokenizerError(
            f"{path} has no tokenizer.json, and converting its tokenizer needs transformers: "
            "pip install transformers sentencepiece"
        ) from error
    try:
        # Without the second argument, transformers asks on standard input whether to run the
        # directory's code, and runs it after a "y".
        loaded = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a converter may raise anything, including Rust's panics
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise TokenizerError(
            f"{path} has no tokenizer.json, and transformers could not convert its tokenizer "
            f"({shorten(reason, 300)}). A SentencePiece file needs: pip install sentencepiece "
            "protobuf. Code that comes with a model is never run."
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{path} has a tokenizer ({type(loaded).__name__}) without a fast form: save one as "
            "tokenizer.json, or give prompts as token ids"
        )
    special = {name: str(token) for name in SPECIAL_NAMES if (token := getattr(loaded, name, None))}
    return backend, special


def _look_at_files(path: Path) -> None:
    for entry in sorted(path.iterdir()):
        if entry.suffix in _WEIGHTS:
            continue
        try:
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                raise TokenizerError(
                    f"{entry} is not a regular file of at most {_MAX_BYTES:,} bytes, and "
                    "converting the tokenizer beside it could open it: remove it."
                )
            if entry.suffix == ".json":
                read_json(entry, max_bytes=_MAX_BYTES)
        except OSError as error:
            raise TokenizerError(f"{entry} cannot be read: {error.strerror}.") from None
        except FileError as error:
            raise TokenizerError(str(error)) from None
