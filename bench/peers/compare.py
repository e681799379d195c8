"""Runs the systems one after the other, round after round, and writes what came out.

    compare.py --rounds 3 --system NAME=DRIVER,MODEL … --picture F [--raw F.jsonl] [--doc docs/performance.md --title T] [--with COMMAND]

A round runs every system once, each in a process of its own, so that all see the same disturbances of the machine: what
counts is the ratio inside a round, and the table shows the median of those ratios with its least and largest.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Key, heading, and whether more is better.
QUANTITIES = [
    ("vision_ms", "vision, ms", False), ("prefill_tps", "prompt, tok/s", True), ("decode1_tps", "decode 1 row, tok/s", True),
    ("decode8_tps", "decode 8 rows, tok/s", True), ("ttft_ms", "first token, ms", False), ("request_ms", "picture → all tokens, ms", False),
    ("second_ttft_ms", "second question, first token, ms", False), ("load_ms", "load, ms", False), ("peak_mb", "peak memory, MB", False),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", action="append", required=True, help="NAME=DRIVER,MODEL; the first is what the others are compared with")
    parser.add_argument("--picture", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=614)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one system in one round")
    parser.add_argument("--with", dest="prefix", default="", help="command that every measurement is run with")
    parser.add_argument("--raw", help="file that gets every measurement, a JSON object a line; what it holds already counts too")
    parser.add_argument("--doc", help="page whose section TITLE is replaced")
    parser.add_argument("--title", default="Compared")
    o = parser.parse_args()
    systems = [parse_system(s) for s in o.system]
    runs = read_raw(o.raw)
    first = 1 + max((r["round"] for r in runs), default=0)
    for number in range(first, first + o.rounds):
        for name, driver, model in systems:
            run = measure(o, name, driver, model) | {"system": name, "round": number}
            runs.append(run)
            if o.raw:
                with open(o.raw, "a") as f:
                    f.write(json.dumps(run) + "\n")
    names = [s[0] for s in systems]
    text = section(o, names, [r for r in runs if r["system"] in names])
    print(text)
    if o.doc:
        replace(Path(o.doc), o.title, text)


def parse_system(text: str):
    name, _, rest = text.partition("=")
    driver, _, model = rest.partition(",")
    if not (name and driver and model):
        raise SystemExit(f"--system {text}: want NAME=DRIVER,MODEL")
    return name, driver, model


def read_raw(path):
    if not path or not os.path.exists(path):
        return []
    return [json.loads(line) for line in open(path) if line.strip()]


def measure(o, name: str, driver: str, model: str) -> dict:
    """One system's numbers; what went wrong is printed and counts as not measured."""
    command = [*shlex.split(o.prefix), sys.executable, "-W", "ignore", str(HERE / f"peer_{driver}.py"), model, o.picture, str(o.prompt_tokens), str(o.new_tokens), str(o.threads)]
    print(f"{datetime.datetime.now():%H:%M:%S} {name}", file=sys.stderr)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=o.timeout, env=env)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {o.timeout:.0f} s"}
    lines = run.stdout.strip().splitlines()
    if run.returncode or not lines:
        print(run.stderr[-2000:], file=sys.stderr)
        return {"error": f"exit status {run.returncode}"}
    return json.loads(lines[-1])


def spread(values, digits="{:.4g}") -> str:
    if not values:
        return "–"
    middle, low, high = statistics.median(values), min(values), max(values)
    f = digits.format
    return f(middle) if len(values) == 1 else f"{f(middle)} ({f(low)}–{f(high)})"


def section(o, names, runs) -> str:
    """The tables: each system's medians with least and largest, and the ratios round by round."""
    lines = [f"{o.prompt_tokens} prompt tokens, {o.new_tokens} new ones, {o.threads} threads; medians of {len({r['round'] for r in runs})} rounds, in brackets the least and the largest.", ""]
    head = "| | " + " | ".join(names) + " |"
    rule = "|---" * (len(names) + 1) + "|"
    lines += [head, rule]
    for key, title, _ in QUANTITIES:
        cells = [spread([r[key] for r in runs if r["system"] == n and r.get(key)]) for n in names]
        if any(c != "–" for c in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    mine, others = names[0], names[1:]
    if others:
        lines += ["", f"How many times better {mine} is, in the same round (below 1: worse):", "", "| | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
        for key, title, more in QUANTITIES:
            cells = [spread(ratios(runs, key, more, mine, other), "{:.2f}") for other in others]
            if any(c != "–" for c in cells):
                lines.append(f"| {title.split(',')[0] if key != 'second_ttft_ms' else 'second question'} | " + " | ".join(cells) + " |")
    lines += ["", machine()]
    versions = {r["system"]: r["version"] for r in runs if r.get("version")}
    lines.append("Versions: " + "; ".join(f"{n} {v}" for n, v in versions.items()) + ".")
    failed = {r["system"]: r["error"] for r in runs if r.get("error")}
    if failed:
        lines.append("Not measured in every round: " + "; ".join(f"{n}: {e}" for n, e in failed.items()) + ".")
    return "\n".join(lines) + "\n"


def ratios(runs, key, more, mine, other):
    by = {(r["system"], r["round"]): r[key] for r in runs if r.get(key)}
    rounds = sorted({n for _, n in by})
    pairs = [(by[mine, n], by[other, n]) for n in rounds if (mine, n) in by and (other, n) in by]
    return [a / b if more else b / a for a, b in pairs]


def machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20
    load = os.getloadavg()[0]
    return f"{cpu[1] if cpu else 'unknown processor'}, {os.cpu_count()} processors, {memory:.0f} GiB; {datetime.date.today():%Y-%m-%d}, load average {load:.1f} at the end."


def replace(page: Path, title: str, text: str) -> None:
    """Puts the section in the place of the one of the same title, or at the end."""
    body = page.read_text() if page.exists() else "# Performance\n"
    made = f"## {title}\n\n{text}"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.S | re.M)
    if pattern.search(body):
        body = pattern.sub(lambda _: made + "\n", body)
    else:
        body = body.rstrip() + "\n\n" + made
    page.write_text(body.rstrip() + "\n")


if __name__ == "__main__":
    main()
