"""Writes dynamic_ntk.json: greedy answers of llava15-tiny when its decoder has dynamic NTK scaling from 64 positions on.

Run with torch and transformers installed: python dynamic_ntk.py CHECKPOINT > dynamic_ntk.json, CHECKPOINT being a copy of
testdata/goldens/llava15-tiny/checkpoint. The model is loaded anew for each prompt: upstream's rotary module remembers the
longest sequence it has seen, so a second prompt would be rotated by the first one's length.
"""
import json
import os
import sys

import torch
import transformers
from transformers import AutoTokenizer, LlavaForConditionalGeneration

folder = sys.argv[1]
path = os.path.join(folder, "config.json")
config = json.load(open(path))
config["text_config"].update(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=64)
json.dump(config, open(path, "w"))
tokenizer = AutoTokenizer.from_pretrained(folder)
question = "A long question without a picture. "
cases = []
for prompt in ["USER: Hello! ASSISTANT:", "USER: " + question * 4 + " ASSISTANT:", "USER: " + question * 6 + " ASSISTANT:"]:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=36, do_sample=False, eos_token_id=None, pad_token_id=0)
    cases.append(dict(prompt=prompt, prompt_ids=ids[0].tolist(), ids=out[0, ids.shape[1]:].tolist()))
json.dump(dict(transformers=transformers.__version__, cases=cases), sys.stdout)
