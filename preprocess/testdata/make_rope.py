"""Reference rotary frequencies from transformers for the tests of this folder's parent.

    pip install torch transformers==5.23.0
    python make_rope.py

writes rope.json: for each configuration the manifest's fields, the inverse frequencies, the attention factor, and rows
of the cos and sin tables as LlamaRotaryEmbedding makes them.
"""

import json
import pathlib

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

HERE = pathlib.Path(__file__).parent
ROWS = [1, 100, 4095]

# name, head_dim, max_position_embeddings, rope parameters, sequence length
CONFIGS = [
    ("default", 128, 4096, dict(rope_type="default", rope_theta=10000.0), 4096),
    ("default_qwen", 64, 32768, dict(rope_type="default", rope_theta=1000000.0), 4096),
    ("linear", 128, 4096, dict(rope_type="linear", rope_theta=10000.0, factor=4.0), 4096),
    ("dynamic_short", 128, 4096, dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), 4096),
    ("dynamic_long", 128, 2048, dict(rope_type="dynamic", rope_theta=10000.0, factor=2.5), 5000),
    ("yarn", 128, 131072, dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768), 4096),
    (
        "yarn_mscale", 64, 163840,
        dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096, beta_fast=32.0,
             beta_slow=1.0, mscale=1.0, mscale_all_dim=0.707),
        4096,
    ),
    (
        "yarn_no_truncate", 64, 131072,
        dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, original_max_position_embeddings=4096, beta_fast=32.0,
             beta_slow=1.0, truncate=False),
        4096,
    ),
    (
        "yarn_attention_factor", 96, 65536,
        dict(rope_type="yarn", rope_theta=500000.0, factor=8.0, original_max_position_embeddings=8192, attention_factor=1.25,
             beta_fast=64.0, beta_slow=2.0),
        4096,
    ),
    (
        "llama3", 128, 131072,
        dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=8192),
        4096,
    ),
    (
        "llama32", 64, 131072,
        dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=8192),
        4096,
    ),
    ("partial", 80, 2048, dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.4), 2048),
]

# The manifest's name for each of transformers' parameters.
FIELDS = dict(
    rope_type="Type", rope_theta="Theta", factor="Factor", low_freq_factor="LowFreqFactor", high_freq_factor="HighFreqFactor",
    original_max_position_embeddings="OriginalMaxPositions", beta_fast="BetaFast", beta_slow="BetaSlow", mscale="MScale",
    mscale_all_dim="MScaleAllDim", attention_factor="AttentionFactor",
)


def case(name, head_dim, positions, parameters, length):
    config = LlamaConfig(
        hidden_size=head_dim * 4, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=positions,
        rope_parameters=dict(parameters),
    )
    module = LlamaRotaryEmbedding(config)
    if parameters["rope_type"] == "default" and "partial_rotary_factor" in parameters:
        # Llama's own default ignores the factor; linear scaling by 1 is the shared function that reads it.
        init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["linear"]
        config.rope_parameters["factor"] = 1.0
        module.inv_freq, module.attention_scaling = init(config, torch.device("cpu"))
    rows = sorted({min(r, length - 1) for r in ROWS} | {length - 1})
    with torch.no_grad():
        x = torch.zeros(1, 1, 1)
        cos, sin = module(x, torch.arange(length)[None])
    half = module.inv_freq.shape[0]
    rope = {FIELDS[k]: v for k, v in parameters.items() if k in FIELDS}
    rope["Dim"] = 2 * half
    if parameters["rope_type"] == "dynamic":
        rope["OriginalMaxPositions"] = positions
    if "truncate" in parameters:
        rope["NoTruncate"] = not parameters["truncate"]
    return dict(
        name=name, rope=rope, length=length, inv_freq=module.inv_freq.tolist(), attention_factor=float(module.attention_scaling),
        rows=rows, cos=cos[0, rows, :half].tolist(), sin=sin[0, rows, :half].tolist(),
    )


def compact(value):
    """Lists of floats with the nine digits that a float32 needs."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [compact(v) for v in value]
    if isinstance(value, dict):
        return {k: compact(v) for k, v in value.items()}
    return value


cases = [compact(case(*c)) for c in CONFIGS]
lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
versions = dict(transformers=transformers.__version__, torch=torch.__version__.split("+")[0])
(HERE / "rope.json").write_text(f'{{"versions":{json.dumps(versions)},"cases":[\n{lines}\n]}}\n')
