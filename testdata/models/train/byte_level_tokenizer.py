"""Small byte-level BPE tokenizers in Qwen's style: every word of the given texts, with its leading space, is one token.

Qwen2's is a tokenizer.json with merges, Qwen's a list of byte strings in the order of their ranks (qwen.tiktoken). Both
start with the 256 bytes in GPT-2's order, split text by one pattern, keep digits apart and normalise to NFC.
"""

from __future__ import annotations

import base64
import json
import unicodedata

import regex
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than the texts have words: training ends when no pair is left
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_added(tokenizer: Tokenizer, special: tuple[str, ...], plain: tuple[str, ...] = ()) -> Tokenizer:
    """Adds tokens behind the ranks in the order of `special`; those also in `plain` are not marked as special."""
    for token in special:
        add = tokenizer.add_tokens if token in plain else tokenizer.add_special_tokens
        add([AddedToken(token, special=token not in plain, normalized=False)])
    return tokenizer


def byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    mapping = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    mapping.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return mapping


def ranks_of(tokenizer: Tokenizer) -> list[bytes]:
    """A trained vocabulary as byte strings in the order of their ids."""
    byte_of = byte_of_character()
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.get)
    return [bytes(byte_of[character] for character in token) for token in ordered]


def tiktoken_file(ranks: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))


class RankedBytes:
    """Encodes as tiktoken does: in each piece of text, the neighbours whose union has the lowest rank are joined first."""

    def __init__(self, ranks: list[bytes], special: tuple[str, ...]):
        self.ranks = {token: rank for rank, token in enumerate(ranks)}
        self.special = {token: len(ranks) + number for number, token in enumerate(special)}
        self.size = len(ranks) + len(special)
        self._tokens = [*ranks, *(token.encode() for token in special)]
        self._pattern = regex.compile(PATTERN)
        self._split = regex.compile("(" + "|".join(regex.escape(token) for token in special) + ")")
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of text in which every special token's name stands for the token."""
        ids = []
        for part in self._split.split(unicodedata.normalize("NFC", text)):
            if part in self.special:
                ids.append(self.special[part])
            else:
                for piece in self._pattern.findall(part):
                    ids += self._piece(piece)
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self._tokens[token] for token in ids).decode(errors="replace")

    def _piece(self, piece: str) -> list[int]:
        if piece not in self._cache:
            parts = [bytes([byte]) for byte in piece.encode()]
            while len(parts) > 1:
                joined = [self.ranks.get(left + right, len(self.ranks)) for left, right in zip(parts, parts[1:])]
                best = min(range(len(joined)), key=joined.__getitem__)
                if joined[best] == len(self.ranks):
                    break
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            self._cache[piece] = [self.ranks[part] for part in parts]
        return self._cache[piece]
