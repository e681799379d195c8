"""glimpse bench, in the drivers' JSON.  peer_glimpse.py GLIMPSE:MODEL[:FLAG…] PICTURE PROMPT_TOKENS NEW_TOKENS THREADS"""

import json
import subprocess
import sys

from measure import ROWS, ROWS_NEW, ROWS_PROMPT, report

(binary, model, *flags), picture, prompt_tokens, new_tokens, threads = sys.argv[1].split(":"), *sys.argv[2:6]


def bench(*arguments) -> dict:
    command = [binary, "bench", model, "--image", picture, "--repeat", "1", "--threads", threads, "--json", *flags, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


one = bench("--parallel", "1", "--prompt-tokens", prompt_tokens, "--new-tokens", new_tokens)
rows = bench("--parallel", str(ROWS), "--decode-prompt-tokens", str(ROWS_PROMPT), "--new-tokens", str(ROWS_NEW))


def median(key: str):
    return (one.get(key) or {}).get("median")


report(
    version=one["versions"]["glimpse"] + ", ONNX Runtime " + one["versions"]["onnxruntime"], load_ms=median("load_ms"),
    vision_ms=median("vision_ms") + median("connector_ms"), ttft_ms=median("ttft_ms"), prefill_tokens=median("prefill_tokens"),
    prefill_tps=median("prefill_tps"), decode1_tps=one["decode_tps"]["1"]["median"],
    decode8_tps=rows["decode_tps"].get(str(ROWS), {}).get("median"), request_ms=median("request_ms"),
    second_ttft_ms=median("second_ttft_ms"), peak_mb=one["rss_mb"],
)
