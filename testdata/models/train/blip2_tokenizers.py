"""The small BLIP-2's two tokenizers in the styles of the released ones: GPT-2 byte-level BPE for OPT, BERT WordPiece for
the Q-Former's text. In both, every word of the scenes' language is one token and any other text still goes in."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import scenes

# OPT: </s> is both begin and end of a text; a caption ends with a line break.
BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
IMAGE = "<image>"
LINE_BREAK = "Ċ"  # "\n" in GPT-2's byte alphabet
QUESTION_PROMPTS = ("Question: {} Answer:", "Question: {} Short answer:")


def lexicon_texts(count: int = 4000) -> list[str]:
    """Prompts and answers as they are learnt, enough of them to hold every word of the language."""
    texts = []
    for index in range(count):
        drawn = scenes.scene(index)
        texts.append(drawn.caption() + "\n")
        for question in drawn.questions(random.Random(index)):
            texts += [f"{prompt.format(question.text)} {question.answer}\n" for prompt in QUESTION_PROMPTS]
    return texts


def build_opt() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, use_regex=True)
    specials = [BEGIN, PAD, END, UNKNOWN]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than the language has words: training ends when no pair is left
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=True) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lexicon_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    begin = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[begin]
    )
    return tokenizer


BERT_PAD, BERT_UNKNOWN, CLASS, SEPARATOR, MASK, DECODE = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"


def build_bert() -> Tokenizer:
    """Lower case; [DEC] and <image> come last, and <image> has no row in the model's table, as released."""
    characters = string.punctuation + string.digits + string.ascii_lowercase
    words = {word.lower() for text in lexicon_texts() for word in _words(text)}
    pieces = [BERT_PAD, BERT_UNKNOWN, CLASS, SEPARATOR, MASK, *characters]
    pieces += [f"##{character}" for character in string.digits + string.ascii_lowercase]
    pieces += sorted(word for word in words if len(word) > 1)
    model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token=BERT_UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    for token in (BERT_PAD, BERT_UNKNOWN, CLASS, SEPARATOR, MASK, DECODE, IMAGE):
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A {SEPARATOR}",
        pair=f"{CLASS} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLASS, SEPARATOR)],
    )
    return tokenizer


def _words(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]


# --- the files beside tokenizer.json --------------------------------------------------------------------------------


def save_opt(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    for file in tokenizer.model.save(str(folder)):  # vocab.json and merges.txt
        Path(file).chmod(0o644)
    specials = {"bos_token": END, "eos_token": END, "pad_token": PAD, "unk_token": END}
    added = {token: token != IMAGE for token in (BEGIN, PAD, END, UNKNOWN, IMAGE)}
    _write(folder / "special_tokens_map.json", specials)
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_prefix_space": False,
            "added_tokens_decoder": _added(tokenizer, added),
            **specials,
            "clean_up_tokenization_spaces": True,
            "errors": "replace",
            "model_max_length": 1000000000000000019884624838656,
            "processor_class": "Blip2Processor",
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


def save_bert(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    for file in tokenizer.model.save(str(folder)):  # vocab.txt
        Path(file).chmod(0o644)
    specials = {
        "bos_token": DECODE,
        "cls_token": CLASS,
        "mask_token": MASK,
        "pad_token": BERT_PAD,
        "sep_token": SEPARATOR,
        "unk_token": BERT_UNKNOWN,
    }
    _write(folder / "special_tokens_map.json", specials)
    _write(folder / "added_tokens.json", {token: tokenizer.token_to_id(token) for token in (IMAGE, DECODE)})
    added = dict.fromkeys((BERT_PAD, BERT_UNKNOWN, CLASS, SEPARATOR, MASK, DECODE, IMAGE), False)
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": _added(tokenizer, added),
            **specials,
            "clean_up_tokenization_spaces": True,
            "do_basic_tokenize": True,
            "do_lower_case": True,
            "model_max_length": 512,
            "never_split": None,
            "processor_class": "Blip2Processor",
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
            "truncation_side": "right",
        },
    )


def _added(tokenizer: Tokenizer, normalized: dict[str, bool]) -> dict[str, dict]:
    return {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": how, "rstrip": False, "single_word": False, "special": True,
        }
        for token, how in normalized.items()
    }  # fmt: skip


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
