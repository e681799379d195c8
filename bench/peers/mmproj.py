"""The vision tower and projector of a LLaVA-1.5 checkpoint as llama.cpp's mmproj file, which its converter does not make.

    mmproj.py CHECKPOINT OUT.gguf

Names and keys are those that llama.cpp's clip loader reads; matrices are float16, the rest float32. The tower has as many
layers as are computed: what lies behind vision_feature_layer is left out.
"""

import json
import re
import sys
from pathlib import Path

import gguf
import numpy
import torch
from safetensors import safe_open

LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}
OTHER = {
    "embeddings.class_embedding": "v.class_embd", "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight", "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}


def name_of(key: str, layers: int):
    """The name in the file, or None for what llama.cpp does not read."""
    if found := re.fullmatch(r"multi_modal_projector\.linear_([12])\.(weight|bias)", key):
        return f"mm.{(int(found[1]) - 1) * 2}.{found[2]}"
    inner = key.removeprefix("vision_tower.").removeprefix("vision_model.")
    if inner == key:
        return None
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inner):
        return f"v.blk.{found[1]}.{LAYER[found[2]]}.{found[3]}" if int(found[1]) < layers else None
    return OTHER.get(inner)


def main(checkpoint: Path, out: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    vision = config["vision_config"]
    picture = json.loads((checkpoint / "preprocessor_config.json").read_text())
    layers = vision["num_hidden_layers"] + 1 + config["vision_feature_layer"]
    writer = gguf.GGUFWriter(out, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", vision["hidden_act"] == "gelu")
    for key, value in {
        "image_size": vision["image_size"], "patch_size": vision["patch_size"], "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"], "projection_dim": config["text_config"]["hidden_size"],
        "attention.head_count": vision["num_attention_heads"], "block_count": layers,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", picture["image_mean"])
    writer.add_array("clip.vision.image_std", picture["image_std"])
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        for key in tensors.keys():
            if name := name_of(key, layers):
                value = tensors.get_tensor(key).to(torch.float32).numpy()
                matrix = value.ndim >= 2 and "position" not in name
                writer.add_tensor(name, value.astype(numpy.float16) if matrix else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
