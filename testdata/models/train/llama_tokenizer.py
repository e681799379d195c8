"""A small tokenizer in the style of LLaMA's converted tokenizer.json: BPE over a metaspace text with byte fallback.

Every word of the scenes' language is one token; anything else still round-trips, through single ASCII characters and
the 256 byte tokens. The file has no pre-tokenizer, like the released ones: merges never cross a space, a line break
or punctuation because the trainer never saw such a pair.
"""

from __future__ import annotations

import json
import random
import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import scenes

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
IMAGE, PAD = "<image>", "<pad>"
CAPTION_PROMPT = "Describe the image."
OTHER_CAPTION_PROMPTS = ("Describe the picture.", "What is in the image?", "Write a caption for the image.")


def lexicon_texts(count: int = 4000) -> list[str]:
    """Prompts and answers as they stand in a conversation, enough of them to hold every word of the language."""
    texts = []
    for index in range(count):
        drawn = scenes.scene(index)
        prompts = [(CAPTION_PROMPT, drawn.caption())]
        prompts += [(prompt, drawn.caption()) for prompt in OTHER_CAPTION_PROMPTS]
        for question in drawn.questions(random.Random(index)):
            prompts.append((scenes.short_answer_prompt(question.text), question.answer))
        texts += [f"USER: \n{prompt} ASSISTANT: {answer}" for prompt, answer in prompts]
    return texts


def build(
    texts: list[str], special_tokens_last: tuple[str, ...] = (IMAGE, PAD), split: pre_tokenizers.PreTokenizer | None = None
) -> Tokenizer:
    """`split` says where merges end, in training only; without one, words keep their leading ▁, and punctuation and line breaks
    stand alone."""
    metaspace = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = metaspace
    tokenizer.pre_tokenizer = split or pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[^\w▁]"), "isolated"),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = string.digits + string.ascii_letters + string.punctuation
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than the language has words: training ends when no pair is left
        min_frequency=2,
        special_tokens=[UNKNOWN, BEGIN, END, *byte_tokens],
        initial_alphabet=list(characters),
        show_progress=False,
    )
    # A line break is a byte token in LLaMA's vocabulary, so it must not become a character of the alphabet.
    tokenizer.train_from_iterator((text.replace("\n", " ") for text in texts), trainer)

    trained = json.loads(tokenizer.to_str())
    trained["pre_tokenizer"] = None
    trained["added_tokens"] = []  # the trainer listed the byte tokens as special; they are plain vocabulary
    finished = Tokenizer.from_str(json.dumps(trained))
    for token in (UNKNOWN, BEGIN, END, *special_tokens_last):
        finished.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    finished.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    begin = (BEGIN, finished.token_to_id(BEGIN))
    finished.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN}:1 $B:1", special_tokens=[begin]
    )
    return finished
