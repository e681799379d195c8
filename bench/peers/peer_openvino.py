"""OpenVINO GenAI's VLMPipeline on the CPU.  peer_openvino.py MODEL PICTURE PROMPT_TOKENS NEW_TOKENS THREADS"""

import sys

import numpy
import openvino
import openvino_genai as genai
from PIL import Image

from measure import QUESTIONS, ROWS, ROWS_NEW, ROWS_PROMPT, Clock, fit, peak_mb, report, words

model, picture, prompt_tokens, new_tokens, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])


def config(tokens: int) -> genai.GenerationConfig:
    c = genai.GenerationConfig()
    c.max_new_tokens, c.ignore_eos, c.do_sample = tokens, True, False
    return c


def read(number: int) -> openvino.Tensor:
    """The picture with a few pixels changed, others each time: the pipeline reuses what it has computed before. They lie in
    the middle, which no crop takes away."""
    pixels = numpy.array(Image.open(picture).convert("RGB"))
    height, width = pixels.shape[:2]
    pixels[height // 2 : height // 2 + 4, width // 2 + number % 97] ^= 255
    return openvino.Tensor(pixels[None])


with Clock() as load:
    pipe = genai.VLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)


def ask(question: str, count: int, new: int, *images):
    extra = {"images": list(images)} if images else {}
    return pipe.generate(question + words(count), generation_config=config(new), **extra).perf_metrics


def tokens(count: int) -> int:
    return ask(QUESTIONS[0], count, 1, read(count)).get_num_input_tokens()


count = fit(tokens, prompt_tokens)  # warms up, too
with Clock() as whole:
    m = ask(QUESTIONS[0], count, new_tokens, read(601))
vision = m.get_prepare_embeddings_duration().mean
ttft = m.get_ttft().mean

pipe.start_chat()
ask(QUESTIONS[0], count, 2, read(602))
second = ask(QUESTIONS[1], 0, 2).get_ttft().mean
pipe.finish_chat()
peak = peak_mb()

# Several rows need the pipeline for serving, which is a second copy of the model.
del pipe
scheduler = genai.SchedulerConfig()
scheduler.cache_size, scheduler.enable_prefix_caching = 1, False
batching = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
prompts = [QUESTIONS[i % 2] + words(ROWS_PROMPT - 12) for i in range(ROWS)]
spent = []
for new in (1, 1, 1 + ROWS_NEW):
    with Clock() as c:
        batching.generate(prompts, [config(new)] * ROWS)
    spent.append(c.ms)
together = ROWS * ROWS_NEW / (spent[2] - spent[1]) * 1e3

report(
    version=genai.__version__, load_ms=load.ms, vision_ms=vision, ttft_ms=ttft, prefill_tokens=m.get_num_input_tokens(),
    prefill_tps=m.get_num_input_tokens() / (ttft - vision) * 1e3, decode1_tps=1e3 / m.get_tpot().mean, decode8_tps=together,
    request_ms=whole.ms, second_ttft_ms=second, peak_mb=peak,
)
