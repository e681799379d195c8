"""transformers in float32 on the CPU.  peer_transformers.py CHECKPOINT PICTURE PROMPT_TOKENS NEW_TOKENS THREADS"""

import sys

import torch
import transformers
from PIL import Image

from measure import QUESTIONS, ROWS, ROWS_NEW, ROWS_PROMPT, Clock, fit, report, words

checkpoint, picture, prompt_tokens, new_tokens, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
torch.set_num_threads(threads)
torch.set_grad_enabled(False)

with Clock() as load:
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
processor = transformers.AutoProcessor.from_pretrained(checkpoint)


def inputs(count: int):
    text = f"USER: <image>\n{QUESTIONS[0]}{words(count)} ASSISTANT:"
    return processor(images=Image.open(picture).convert("RGB"), text=text, return_tensors="pt")


def generate(batch, new: int):
    return model.generate(**batch, max_new_tokens=new, min_new_tokens=new, do_sample=False)


count = fit(lambda n: inputs(n)["input_ids"].shape[1], prompt_tokens)
batch = inputs(count)
generate(batch, 2)
with Clock() as vision:
    model.get_image_features(pixel_values=batch["pixel_values"])
with Clock() as first:
    generate(inputs(count), 1)
with Clock() as whole:
    generate(inputs(count), new_tokens)
ids = torch.randint(1000, 30000, (ROWS, ROWS_PROMPT))
rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
spent = []
for new in (1, 1 + ROWS_NEW):
    with Clock() as c:
        generate(rows, new)
    spent.append(c.ms)
n = batch["input_ids"].shape[1]
report(
    version=transformers.__version__, load_ms=load.ms, vision_ms=vision.ms, ttft_ms=first.ms, prefill_tokens=n,
    prefill_tps=n / (first.ms - vision.ms) * 1e3, decode1_tps=(new_tokens - 1) / (whole.ms - first.ms) * 1e3,
    decode8_tps=ROWS * ROWS_NEW / (spent[1] - spent[0]) * 1e3, request_ms=whole.ms,
)
