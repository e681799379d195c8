"""ONNX Runtime GenAI on the CPU: the decoder alone.  peer_genai.py MODEL - PROMPT_TOKENS NEW_TOKENS THREADS

Its model builder knows neither LLaVA-1.5 nor InternVL3, so there is no vision; the prompt is as many token ids.
"""

import json
import sys
from pathlib import Path

import numpy
import onnxruntime_genai as genai

from measure import ROWS, ROWS_NEW, ROWS_PROMPT, Clock, report

model, prompt_tokens, new_tokens, threads = Path(sys.argv[1]), *map(int, sys.argv[3:6])

# Left alone it runs at half speed here: it makes a thread a hyper-thread.
settings = model / "genai_config.json"
config = json.loads(settings.read_text())
config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
settings.write_text(json.dumps(config, indent=4))

with Clock() as load:
    loaded = genai.Model(str(model))


def run(rows: int, prompt: int, new: int):
    """Returns the milliseconds of the prompt with its first token, and of the tokens after it."""
    params = genai.GeneratorParams(loaded)
    params.set_search_options(max_length=prompt + new + 1, min_length=prompt + new, batch_size=rows, do_sample=False)
    generator = genai.Generator(loaded, params)
    ids = numpy.random.default_rng(0).integers(1000, 30000, size=(rows, prompt)).astype(numpy.int32)
    with Clock() as first:
        generator.append_tokens(ids)
        generator.generate_next_token()
    with Clock() as rest:
        for _ in range(new - 1):
            generator.generate_next_token()
    return first.ms, rest.ms


run(1, prompt_tokens, 2)
first, rest = run(1, prompt_tokens, new_tokens)
_, together = run(ROWS, ROWS_PROMPT, ROWS_NEW + 1)
report(
    version=genai.__version__, load_ms=load.ms, prefill_tokens=prompt_tokens, prefill_tps=prompt_tokens / first * 1e3,
    decode1_tps=(new_tokens - 1) / rest * 1e3, decode8_tps=ROWS * ROWS_NEW / together * 1e3,
)
