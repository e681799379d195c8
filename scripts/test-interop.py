"""Reads what scripts/test-interop made, with the libraries that users have. Everything must agree with the JSONL parts."""

import csv
import glob
import hashlib
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds

work = sys.argv[1]


def check(ok, what):
    if not ok:
        sys.exit(f"interop: {what}")




def lines(pattern):
    return [json.loads(line) for part in sorted(glob.glob(pattern)) for line in open(part, encoding="utf-8")]


def without_nulls(value):
    """What JSON leaves out Parquet has as nulls, zeros and empty lists."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v not in (None, [], 0, False)}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


if sys.argv[2:] == ["clips"]:
    for kind, key, least in (("boxes", "boxes", 4), ("clips", "clip", 2)):
        want = lines(f"{work}/{kind}-jsonl/part-*.jsonl")
        check(sum(key in r for r in want) >= least, f"{kind}: no {key} in {len(want)} rows")
        table = pq.read_table(f"{work}/{kind}-parquet/part-00000.parquet").to_pylist()
        cells = list(csv.DictReader(open(f"{work}/{kind}-csv/part-00000.csv", encoding="utf-8", newline="")))
        samples = list(wds.WebDataset(f"{work}/{kind}-webdataset/part-00000.tar", shardshuffle=False))
        for r, t, c, s in zip(want, table, cells, samples, strict=True):
            check(without_nulls(t[key]) == without_nulls(r.get(key)) or not r.get(key) and not t[key], f"Parquet {key}: {t[key]}, want {r.get(key)}")
            check(json.loads(c[key] or "null") == r.get(key), f"CSV {key}: {c[key]}, want {r.get(key)}")
            check(json.loads(s["json"]) == r, f"WebDataset row of {r['id']}")
            inner = [without_nulls(x["boxes"]) for x in t["captions"] or []]
            check(inner == [without_nulls(x.get("boxes", [])) for x in r.get("captions", [])], f"Parquet boxes of captions {inner}")
            data = s.get("gif") or s.get("png") or s.get("frames.tar")
            check(hashlib.sha256(data).hexdigest() == r["sha256"], f"bytes of {r['id']}")
    sys.exit()

rows = [json.loads(line) for part in sorted(glob.glob(f"{work}/jsonl/part-*.jsonl")) for line in open(part, encoding="utf-8")]
good = [r for r in rows if "error" not in r]

if sys.argv[2:] == ["again"]:
    again = [json.loads(line) for line in open(f"{work}/again.jsonl", encoding="utf-8")]
    check([r["caption"] for r in again] == [r["caption"] for r in good], "captions of Python's file differ")
    check([r["sha256"] for r in again] == [r["sha256"] for r in good], "bytes of Python's file differ")
    sys.exit()

check(len(rows) > 10 and len(rows) == len(good) + 1, f"{len(rows)} rows, {len(good)} without an error")

# Parquet: every column, nulls and lists included.
table = pa.concat_tables(pq.read_table(p) for p in sorted(glob.glob(f"{work}/parquet/part-*.parquet")))
check(table.num_rows == len(rows), "Parquet has another number of rows")
for want, got in zip(rows, table.to_pylist()):
    for key in ("id", "path", "caption", "prompt", "model", "width", "height", "tokens", "sha256", "model_hash", "prompt_hash"):
        check(got[key] == want.get(key), f"Parquet {key}: {got[key]!r}, want {want.get(key)!r}")
    error = want.get("error", {})
    check((got["error_kind"], got["error_message"]) == (error.get("kind"), error.get("message")), f"Parquet error {got}")
    check(got["phash"] == want.get("phash") and got["duplicate_of"] is None and got["logprob"] is None, f"Parquet nulls {got}")
    check([c["caption"] for c in got["captions"] or []] == [c["caption"] for c in want.get("captions", [])], f"Parquet captions {got['captions']}")

# CSV.
cells = [r for p in sorted(glob.glob(f"{work}/csv/part-*.csv")) for r in csv.DictReader(open(p, encoding="utf-8", newline=""))]
for want, got in zip(rows, cells, strict=True):
    check(got["id"] == want["id"] and got["caption"] == want["caption"] and int(got["width"]) == want["width"], f"CSV {got}")
    check(got["error_kind"] == want.get("error", {}).get("kind", ""), f"CSV error {got}")

# WebDataset: samples whole and in order, the pictures' bytes untouched.
shards = sorted(glob.glob(f"{work}/webdataset/part-*.tar"))
samples = list(wds.WebDataset(shards, shardshuffle=False))
check(len(samples) == len(good), f"{len(samples)} samples of {len(good)} captions")
for want, sample in zip(good, samples):
    picture = sample.get("png") or sample.get("jpg")
    check(hashlib.sha256(picture).hexdigest() == want["sha256"], f"bytes of {want['id']}")
    check(sample["txt"].decode() == want["caption"], f"text of {want['id']}")
    check(json.loads(sample["json"]) == want, f"row of {want['id']}")
check(len({s["__key__"] for s in samples}) == len(samples), "keys repeat")

# Stats files tell the truth.
for path in glob.glob(f"{work}/*/part-*.stats.json"):
    stats = json.load(open(path))
    data = open(os.path.join(os.path.dirname(path), stats["part"]), "rb").read()
    check(len(data) == stats["bytes"] and hashlib.sha256(data).hexdigest() == stats["sha256"], f"{path} is wrong")

# What Python writes, for glimpse to read.
pictures = [open(r["path"], "rb").read() for r in good]
pq.write_table(pa.table({"image": [{"bytes": b, "path": None} for b in pictures]}), f"{work}/table.parquet", row_group_size=4)
with wds.TarWriter(f"{work}/shard.tar") as out:
    for i, (r, b) in enumerate(zip(good, pictures)):
        out.write({"__key__": f"{i:04d}", os.path.splitext(r["path"])[1][1:]: b, "cls": i})
