"""Writes sampling.json: what transformers' logits processors and warpers make of rows of logits.

Run with torch and transformers installed: python sampling.py > sampling.json. The processors are put in the order in which
GenerationMixin._get_logits_processor adds them.
"""
import json
import sys

import torch
import transformers
from transformers.generation import logits_process as lp

torch.manual_seed(5)
cases = []
settings = [
    dict(temperature=1.0),
    dict(temperature=0.7, top_k=5),
    dict(temperature=1.3, top_p=0.8),
    dict(temperature=0.5, top_p=0.95),
    dict(temperature=1.0, min_p=0.1),
    dict(temperature=1.0, repetition_penalty=1.5),
    dict(temperature=0.8, repetition_penalty=1.2, top_k=20, top_p=0.9, min_p=0.05),
    dict(temperature=2.0, repetition_penalty=0.8, top_k=12, top_p=0.6),
    dict(temperature=1.5, top_k=40, top_p=0.7, min_p=0.2),
]
for n, s in enumerate(settings * 3):
    vocab = [17, 64, 300][n % 3]
    logits = (torch.randn(vocab) * 4).round(decimals=3)
    history = torch.randint(0, vocab, (9,))
    steps = lp.LogitsProcessorList()
    if "repetition_penalty" in s:
        steps.append(lp.RepetitionPenaltyLogitsProcessor(penalty=s["repetition_penalty"]))
    if s["temperature"] != 1.0:
        steps.append(lp.TemperatureLogitsWarper(s["temperature"]))
    if "top_k" in s:
        steps.append(lp.TopKLogitsWarper(s["top_k"]))
    if "top_p" in s:
        steps.append(lp.TopPLogitsWarper(s["top_p"]))
    if "min_p" in s:
        steps.append(lp.MinPLogitsWarper(s["min_p"]))
    probs = steps(history[None], logits[None].clone())[0].softmax(-1)
    kept = probs.nonzero().flatten()
    cases.append(dict(settings=s, logits=logits.tolist(), history=history.tolist(), ids=kept.tolist(),
                      probabilities=[round(p, 9) for p in probs[kept].double().tolist()]))
json.dump(dict(transformers=transformers.__version__, cases=cases), sys.stdout)
