"""Runs MatMulNBits and DynamicQuantizeMatMul over packed.json and writes outputs.json beside it.

Needs onnxruntime (1.32 was used), onnx and numpy. See layout_test.go.
"""
import base64
import json
import pathlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

here = pathlib.Path(__file__).parent


def data(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def weights(case):
    """The operator, its attributes and its constant inputs."""
    n, k, bits, block = case["N"], case["K"], case["Bits"], case["Block"]
    scales = np.array(case["Scales"], np.float32)
    if bits == 0:
        return "DynamicQuantizeMatMul", {}, [data(case["Packed"], np.int8).reshape(k, n), scales]
    blocks = (k + block - 1) // block
    constants = [data(case["Packed"], np.uint8).reshape(n, blocks, block * bits // 8), scales]
    if case["ZeroPoints"]:
        constants.append(data(case["ZeroPoints"], np.uint8))
    return "MatMulNBits", {"K": k, "N": n, "bits": bits, "block_size": block}, constants


outputs = {}
for case in json.load(open(here / "packed.json")):
    operator, attributes, constants = weights(case)
    initializers = [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants)]
    node = helper.make_node(operator, ["a"] + [i.name for i in initializers], ["y"], domain="com.microsoft", **attributes)
    rows = case["Rows"]
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [rows, case["K"]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, case["N"]])],
        initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    a = np.array(case["A"], np.float32).reshape(rows, case["K"])
    outputs[case["Name"]] = session.run(None, {"a": a})[0].flatten().tolist()
json.dump(outputs, open(here / "outputs.json", "w"))
