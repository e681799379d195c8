"""Writes small files as torch.save writes them, and expected.json with what is in them. Needs torch (2.15 was used).

Run in this folder. See torch_test.go.
"""
import argparse
import collections
import json
import zipfile

import torch

expected = {}


def save(name, obj, tensors, **options):
    torch.save(obj, name, **options)
    expected[name] = {
        n: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "values": t.detach().double().flatten().tolist()}
        for n, t in tensors.items()}


def ramp(*shape, dtype=torch.float32):
    n = 1
    for d in shape:
        n *= d
    return ((torch.arange(n) * 7 % 23 - 11) / 4).to(dtype).reshape(shape)


# Every dtype, a scalar, an empty tensor.
dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
          torch.uint16, torch.uint32, torch.uint64]
plain = {f"t.{str(d).removeprefix('torch.')}": ramp(2, 3).abs().to(d) for d in dtypes}
plain["scalar"] = torch.tensor(3.5)
plain["empty"] = torch.zeros(0, 4)
save("dtypes.pt", plain, plain)

# Views: transposed, sliced, permuted, expanded, and storages that tensors share.
base = ramp(6, 5)
half = ramp(4, 3, 2, dtype=torch.float16)
views = {
    "base": base, "tied": base, "transposed": base.T, "rows": base[2:4], "columns": base[:, 1:3], "step": base[::2, ::2],
    "permuted": half.permute(2, 0, 1), "expanded": ramp(3, 1).expand(3, 4), "double": ramp(3, 4, dtype=torch.float64).T,
    "bytes": ramp(3, 4).abs().to(torch.uint8).T, "one": base[1:2].T,
}
save("views.pt", views, views)

# What training loops write: a wrapped state dict with parameters and metadata, beside it an optimizer and options.
model = torch.nn.Sequential(collections.OrderedDict(proj=torch.nn.Linear(3, 2), norm=torch.nn.LayerNorm(2)))
optimizer = torch.optim.AdamW(model.parameters())
model(ramp(1, 3)).sum().backward()
optimizer.step()
save("trainer.pt", {
    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": 1e-4, "config": {"run": {"amp": True, "name": "ä"}},
    "args": argparse.Namespace(seed=1), "shape": torch.Size([1, 2]), "device": torch.device("cpu"), "none": None, "big": 1 << 80, "minus": -5,
}, model.state_dict())

# Parameters, number keys, nesting, lists; a newer pickle protocol.
nested = {"layers": {0: {"w": torch.nn.Parameter(ramp(2))}, 1: {"w": ramp(3)}}, "list": [ramp(1), {"x": ramp(2, 2)}], "tags": {"a", "b"}}
names = {"layers.0.w": nested["layers"][0]["w"], "layers.1.w": nested["layers"][1]["w"], "list.0": nested["list"][0], "list.1.x": nested["list"][1]["x"]}
save("nested.pt", nested, names, pickle_protocol=4)

# A tensor with attributes, and one with its storage as bytes.
tagged = ramp(2, 2)
tagged.tag = "x"
save("tagged.pt", {"tagged": tagged}, {"tagged": tagged})

# The other byte order: the same archive with swapped records.
big = {"f": ramp(2, 3), "h": ramp(3, dtype=torch.bfloat16), "t": ramp(2, 3).T, "b": ramp(3).abs().to(torch.uint8)}
save("big.pt", big, big)
sizes = {torch.float32: 4, torch.bfloat16: 2, torch.uint8: 1}
with zipfile.ZipFile("big.pt") as z:
    records = {i.filename: z.read(i) for i in z.infolist()}
storages = [4, 2, 4, 1]
with zipfile.ZipFile("big.pt", "w", zipfile.ZIP_STORED) as z:
    for name, data in records.items():
        if name.endswith("byteorder"):
            data = b"big"
        if "/data/" in name:
            size = storages[int(name.rsplit("/", 1)[1])]
            data = b"".join(data[i:i + size][::-1] for i in range(0, len(data), size))
        z.writestr(zipfile.ZipInfo(name), data)

torch.save({"w": ramp(2)}, "legacy.pt", _use_new_zipfile_serialization=False)
torch.save(torch.nn.Linear(2, 2), "module.pt")
torch.jit.script(torch.nn.Linear(2, 2)).save("script.pt")
json.dump(expected, open("expected.json", "w"))
