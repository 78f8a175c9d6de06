"""A setup as a short text, and back: what the playground restores, and chapters hand over.

"play1.", then base64 of compressed JSON with only what differs from the defaults. A code may come
from anywhere: its size, its JSON, every type and every bound are checked, and nothing runs.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.setup import Setup
from minserve.config import ConfigError
from minserve.files.json_file import FileError, parse_json
from minserve.files.json_types import build

VERSION = 1
MOST_CODE, MOST_JSON = 100_000, 1 << 20
"""Characters of a code, and bytes of what is in it."""
_CODE = re.compile(r"play(\d{1,6})\.([A-Za-z0-9_-]+)")


def encode(setup: Setup) -> str:
    """The code. Raises SetupError where it would be longer than what `decode` takes."""
    text = json.dumps(_plain(setup), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    packed = zlib.compress(text.encode(), 9)
    code = f"play{VERSION}.{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"
    if len(code) > MOST_CODE or len(text.encode()) > MOST_JSON:
        raise SetupError(
            f"this comparison makes a code of {len(code):,} characters, and {MOST_CODE:,} are "
            "allowed: choose fewer requests or prompts"
        )
    return code


def decode(code: str) -> Setup:
    """The setup of a code. Raises SetupError, in a sentence, for what `encode` does not write."""
    match = _CODE.fullmatch("".join(code.split()[:MOST_CODE])) if len(code) <= MOST_CODE else None
    if match is None:
        raise SetupError(
            f"this is no code of the playground: expected play{VERSION}. and at most "
            f"{MOST_CODE:,} letters and digits"
        )
    if int(match[1]) != VERSION:
        raise SetupError(
            f"this code has version {int(match[1])}, and this lab reads version {VERSION}: make it "
            "again with this lab, or update the lab"
        )
    content = _unpacked(match[2])
    try:
        data = parse_json(content, "the code", what="a playground's setup")
        return build(Setup, data, "setup")
    except (SetupError, ConfigError) as error:
        raise SetupError(f"this code asks for something impossible: {error}") from None
    except FileError as error:
        raise SetupError(f"this code is damaged: {error}".rstrip(".")) from None
    except (ValueError, TypeError) as error:
        raise SetupError(f"this code does not describe a comparison: {error}") from None


def _unpacked(text: str) -> bytes:
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, MOST_JSON + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise SetupError("this code is damaged: copy it again, from its first letter on") from None
    if len(content) > MOST_JSON:
        raise SetupError(f"this code unpacks to more than {MOST_JSON:,} bytes, which no setup has")
    # The end of the stream holds a checksum: without it a part is missing.
    if not unpacker.eof or unpacker.unused_data:
        raise SetupError("this code is damaged: copy it again, to its last letter")
    return content


def _plain(value: Any) -> Any:
    """JSON values, without fields that have their defaults."""
    if is_dataclass(value):
        return {
            item.name: _plain(getattr(value, item.name))
            for item in fields(value)
            if getattr(value, item.name) != _default(item)
        }
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "items"):
        return {name: _plain(each) for name, each in value.items()}
    return value


def _default(item: Any) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()
