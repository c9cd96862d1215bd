"""What each token id of a `tokenizers` tokenizer means as text, and which special tokens are shown.

Special tokens frame a conversation and are not its text, so they decode to nothing; only those that mark thinking
or tool calls are kept, because a reader of the text needs them to split it.
"""

import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from workers.engine.text import ByteDetokenizer, Detokenizer, TextStream, WindowDetokenizer

SHOWN_MARK = re.compile(r"think|reason|tool|call|args|function|channel|message|constrain", re.IGNORECASE)
FUSE = {"type": "Fuse"}
STRIP_ONE_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2, Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_LEVEL = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    if all(char in BYTE_LEVEL for char in token):
        return bytes(BYTE_LEVEL[char] for char in token)
    return token.encode()


class Vocabulary:
    """Token ids as text.

    `shown` adds special tokens, by their content, to those that appear in the text.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.json: str = tokenizer.to_str()
        content = json.loads(self.json)
        special = {t["id"]: t["content"] for t in content.get("added_tokens") or () if t["special"]}
        self.hidden_ids = frozenset(
            token for token, text in special.items() if text not in shown and not SHOWN_MARK.search(text)
        )
        self._decoders = _decoder_steps(content.get("decoder"))
        self._bytes: dict[int, bytes] = {}

    def detokenizer(self) -> Detokenizer:
        """A fresh detokenizer at the start of a text that continues a prompt."""
        match self._decoders:
            case [{"type": "ByteLevel"}]:
                return ByteDetokenizer(self._byte_level_bytes)
            case [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, *rest]:
                if all(step in (FUSE, STRIP_ONE_SPACE) for step in rest):
                    return ByteDetokenizer(self._sentencepiece_bytes, strip_space=STRIP_ONE_SPACE in rest)
        return WindowDetokenizer(self._decode)

    def start_text(self, stop_strings: Sequence[str] = ()) -> TextStream:
        return TextStream(self.detokenizer(), stop_strings)

    def _decode(self, ids: Sequence[int]) -> str:
        shown = [token for token in ids if token not in self.hidden_ids]
        return self.tokenizer.decode(shown, skip_special_tokens=False)

    def _token(self, token: int) -> str:
        """The token's content; empty for hidden tokens and for ids that pad the model's output layer."""
        return "" if token in self.hidden_ids else self.tokenizer.id_to_token(token) or ""

    def _byte_level_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = _byte_level(self._token(token))
        return known

    def _sentencepiece_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            text = self._token(token)
            byte = _BYTE_TOKEN.fullmatch(text)
            known = bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
            self._bytes[token] = known
        return known


def _decoder_steps(decoder: dict[str, object] | None) -> list[dict[str, object]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        steps = decoder["decoders"]
        return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    return [decoder]
