"""Gives a checkpoint's tokenizer the token that stands for a picture, where the shape's tokenizer is of its language model alone.

    image_token.py CHECKPOINT
"""

import json
import sys
from pathlib import Path

NAMES = {"internvl": "<IMG_CONTEXT>"}

checkpoint = Path(sys.argv[1])
config = json.loads((checkpoint / "config.json").read_text())
name, number = NAMES.get(config["model_type"]), config.get("image_token_id")
path = checkpoint / "tokenizer.json"
tokenizer = json.loads(path.read_text())
if name and all(t["content"] != name for t in tokenizer["added_tokens"]):
    kept = [t for t in tokenizer["added_tokens"] if t["id"] != number]
    made = {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] = sorted([*kept, made], key=lambda t: t["id"])
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))
