"""Writes the graphs that the tests of package graphs run. Needs onnx 1.23 or newer.

    python3 models.py FOLDER
"""

import os
import sys

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def value(name, dtype, *shape):
    return h.make_tensor_value_info(name, dtype, list(shape))


def model(graph, contrib=False):
    opsets = [h.make_opsetid("", 21)]
    if contrib:
        opsets.append(h.make_opsetid("com.microsoft", 1))
    return h.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="glimpse testdata")


def add():
    """sum = a + b, two inputs that share a free dimension."""
    nodes = [h.make_node("Add", ["a", "b"], ["sum"])]
    return model(h.make_graph(nodes, "add", [value("a", T.FLOAT, "rows", 3), value("b", T.FLOAT, "rows", 3)],
                              [value("sum", T.FLOAT, "rows", 3)]))


def cast():
    """One float32 input in every element type that package graphs knows."""
    types = {"float16": T.FLOAT16, "bfloat16": T.BFLOAT16, "int64": T.INT64, "int32": T.INT32, "int8": T.INT8,
             "uint8": T.UINT8, "bool": T.BOOL}
    nodes = [h.make_node("Cast", ["x"], [name], to=to) for name, to in types.items()]
    return model(h.make_graph(nodes, "cast", [value("x", T.FLOAT, "n")],
                              [value(name, to, "n") for name, to in types.items()]))


def scale():
    """y = x * factor with a scalar factor, and the scalar sum of y."""
    nodes = [h.make_node("Cast", ["factor"], ["f"], to=T.FLOAT), h.make_node("Mul", ["x", "f"], ["y"]),
             h.make_node("ReduceSum", ["y"], ["total"], keepdims=0)]
    return model(h.make_graph(nodes, "scale", [value("x", T.FLOAT, "n"), value("factor", T.INT32)],
                              [value("y", T.FLOAT, "n"), value("total", T.FLOAT)]))


def loop():
    """y = x multiplied by itself `trips` times: as long a run as a test wants."""
    body = h.make_graph(
        [h.make_node("MatMul", ["state", "x"], ["next"]), h.make_node("Identity", ["condition"], ["again"])], "body",
        [value("trip", T.INT64), value("condition", T.BOOL), value("state", T.FLOAT, "n", "n")],
        [value("again", T.BOOL), value("next", T.FLOAT, "n", "n")])
    nodes = [h.make_node("Loop", ["trips", "", "x"], ["y"], body=body)]
    return model(h.make_graph(nodes, "loop", [value("trips", T.INT64), value("x", T.FLOAT, "n", "n")],
                              [value("y", T.FLOAT, "n", "n")]))


def external(folder):
    """y = x @ weight with the weight in external.onnx.data."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = [h.make_node("MatMul", ["x", "weight"], ["y"])]
    proto = T(name="weight", data_type=T.FLOAT, dims=weight.shape, data_location=T.EXTERNAL)
    for key, entry in {"location": "external.onnx.data", "offset": "0", "length": str(weight.nbytes)}.items():
        proto.external_data.add(key=key, value=entry)
    weight.tofile(os.path.join(folder, "external.onnx.data"))
    return model(h.make_graph(nodes, "external", [value("x", T.FLOAT, "n", 4)], [value("y", T.FLOAT, "n", 3)], [proto]))


def attention(cache_type=T.FLOAT):
    """A decoder's attention as convert writes it: packed tokens, cache in place, rotary tables as inputs.

    For CUDA the cache is float16, and casts stand at the edges of the operator.
    """
    half = cache_type == T.FLOAT16
    query_seqlens = 16  # the operator's input that holds each slot's new tokens
    inputs = ["unpacked", "", "", "past_key", "past_value", "seqlens_k", "total_sequence_length", "rope_cos", "rope_sin"]
    if half:
        inputs = [name + "_half" if name in ("unpacked", "rope_cos", "rope_sin") else name for name in inputs]
    inputs += [""] * (query_seqlens - len(inputs)) + ["query_seqlens"]
    nodes = [
        h.make_node("Gather", ["qkv", "row_map"], ["unpacked"]),
        h.make_node("GroupQueryAttention", inputs, ["attended", "present_key", "present_value"], domain="com.microsoft",
                    num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1),
        h.make_node("Reshape", ["attended", "rows"], ["flat"]),
        h.make_node("Gather", ["flat", "token_map"], ["out"]),
    ]
    if half:
        casts = [h.make_node("Cast", [name], [name + "_half"], to=T.FLOAT16) for name in ("unpacked", "rope_cos", "rope_sin")]
        nodes[1:1] = casts
        nodes[-1].output[0] = "out_half"
        nodes.append(h.make_node("Cast", ["out_half"], ["out"], to=T.FLOAT))
    cache = ("batch", KV_HEADS, "capacity", HEAD_DIM)
    graph = h.make_graph(
        nodes, "attention",
        [value("qkv", T.FLOAT, "tokens", (HEADS + 2 * KV_HEADS) * HEAD_DIM), value("row_map", T.INT64, "batch", "sequence"),
         value("token_map", T.INT64, "tokens"), value("seqlens_k", T.INT32, "batch"), value("query_seqlens", T.INT32, "batch"),
         value("total_sequence_length", T.INT32), value("rope_cos", T.FLOAT, "positions", HEAD_DIM // 2),
         value("rope_sin", T.FLOAT, "positions", HEAD_DIM // 2), value("past_key", cache_type, *cache),
         value("past_value", cache_type, *cache)],
        [value("out", T.FLOAT, "tokens", HEADS * HEAD_DIM), value("present_key", cache_type, *cache),
         value("present_value", cache_type, *cache)],
        [h.make_tensor("rows", T.INT64, [2], [-1, HEADS * HEAD_DIM])])
    return model(graph, contrib=True)


def strings():
    """An element type that package graphs refuses."""
    nodes = [h.make_node("Identity", ["text"], ["same"])]
    return model(h.make_graph(nodes, "strings", [value("text", T.STRING, "n")], [value("same", T.STRING, "n")]))


def huge():
    """total = the sum of as many ones as are asked for, so that a run wants as much memory as a test likes."""
    nodes = [
        h.make_node("ConstantOfShape", ["count"], ["ones"], value=h.make_tensor("one", T.FLOAT, [1], [1])),
        h.make_node("ReduceSum", ["ones"], ["total"], keepdims=1),
    ]
    return model(h.make_graph(nodes, "huge", [value("count", T.INT64, 1)], [value("total", T.FLOAT, 1)]))


def main(folder):
    for name, proto in {"add": add(), "cast": cast(), "scale": scale(), "loop": loop(), "external": external(folder),
                        "attention": attention(), "attention_half": attention(T.FLOAT16), "strings": strings(), "huge": huge()}.items():
        onnx.save(proto, os.path.join(folder, name + ".onnx"))


if __name__ == "__main__":
    main(sys.argv[1])
