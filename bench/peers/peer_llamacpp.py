"""llama.cpp's own tools.  peer_llamacpp.py FOLDER PICTURE PROMPT_TOKENS NEW_TOKENS THREADS

FOLDER has bin/ (llama-bench, llama-batched-bench, llama-mtmd-cli), text.gguf and mmproj.gguf.
"""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

from measure import QUESTIONS, ROWS, ROWS_NEW, ROWS_PROMPT, Clock, report, words

folder, picture, prompt_tokens, new_tokens, threads = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
text, mmproj = str(folder / "text.gguf"), str(folder / "mmproj.gguf")


def tool(name: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(folder / "bin" / name), *map(str, arguments), "-t", str(threads)], check=True, capture_output=True, text=True
    )


def figure(pattern: str, log: str) -> float:
    found = re.search(pattern, log)
    if not found:
        raise SystemExit(f"llama-mtmd-cli printed nothing like {pattern!r}:\n{log[-3000:]}")
    return float(found[1])


bench = json.loads(tool("llama-bench", "-m", text, "-p", prompt_tokens, "-n", new_tokens, "-r", 1, "-o", "json").stdout)
prefill = next(b["avg_ts"] for b in bench if b["n_prompt"])
decode = next(b["avg_ts"] for b in bench if b["n_gen"])
# Its table: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S.
rows = tool("llama-batched-bench", "-m", text, "-c", ROWS * (ROWS_PROMPT + ROWS_NEW), "-npp", ROWS_PROMPT, "-ntg", ROWS_NEW, "-npl", ROWS)
line = next(l for l in rows.stdout.splitlines() if re.match(rf"\|\s*{ROWS_PROMPT} \|", l))
together = float(line.strip("|").split("|")[7])

question = QUESTIONS[0] + words(20)
with Clock() as whole:
    run = tool(
        "llama-mtmd-cli", "-m", text, "--mmproj", mmproj, "--image", picture, "-p", question, "-n", new_tokens, "--ignore-eos",
        "--temp", 0, "-c", 2048,
    )
log = run.stdout + run.stderr
# Lines begin with minutes.seconds.milliseconds.microseconds since the start.
loaded = re.search(r"^(\d+)\.(\d+)\.(\d+)\.\d+ \S+ main: loading model", log, re.M)
if not loaded:
    raise SystemExit(f"llama-mtmd-cli did not say when the model was loaded:\n{log[-3000:]}")
load = (int(loaded[1]) * 60 + int(loaded[2])) * 1e3 + int(loaded[3])
report(
    version=(folder / "bin" / "VERSION").read_text().strip(), load_ms=load, vision_ms=figure(r"mtmd batch encoding done in ([\d.]+) ms", log),
    prefill_tokens=prompt_tokens, prefill_tps=prefill, decode1_tps=decode, decode8_tps=together, request_ms=whole.ms - load,
    peak_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6,
)
