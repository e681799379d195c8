package checkpoint

// Fuzz targets: any bytes give an error or a checkpoint that can be read to its end, never a panic and never more memory
// than the input justifies.

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// fuzzFile opens data as a file of a name, and reads everything in it.
func fuzzFile(t *testing.T, name string, data []byte) {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := OpenFile(context.Background(), path)
	if err != nil {
		return
	}
	defer c.Close()
	for _, name := range c.Names() {
		info, ok := c.Lookup(name)
		if !ok {
			t.Fatalf("%q is listed but unknown", name)
		}
		if info.Bytes() > max(int64(len(data)), smallTensor) {
			t.Fatalf("%q claims %d bytes of a file of %d", name, info.Bytes(), len(data))
		}
		if err := c.ReadFloat32(context.Background(), name, 0, make([]float32, info.Elements())); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		raw := make([]byte, info.Bytes())
		if err := c.ReadRaw(context.Background(), name, 0, raw); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
	}
}

func FuzzSafetensors(f *testing.F) {
	var b bytes.Buffer
	if err := WriteSafetensors(&b, []TensorData{
		{TensorInfo: TensorInfo{"a", F32, []int64{2}}, Data: make([]byte, 8)},
		{TensorInfo: TensorInfo{"b", Bool, nil}, Data: make([]byte, 1)},
	}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(safetensorsFile(`{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}`, 0))
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, "m.safetensors", data) })
}

func FuzzTorchZip(f *testing.F) {
	paths, err := filepath.Glob("testdata/torch/*.pt")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no fixtures: %v", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(oneTensor([]int64{2, 3}, []int64{1, 2}, 0))
	f.Fuzz(func(t *testing.T, data []byte) { fuzzFile(t, "m.bin", data) })
}

// FuzzPickle puts a pickle beside three storages.
func FuzzPickle(f *testing.F) {
	f.Add(newPickler().raw("}").text("w").view("0", 6, 0, []int64{3, 2}, []int64{1, 3}).raw("s.").Bytes())
	f.Add(newPickler().raw("}(").text("model").raw("}").text("w").view("1", 2, 1, nil, nil).raw("su.").Bytes())
	f.Add(newPickler().raw("ccollections\nOrderedDict\n)R.").Bytes())
	f.Fuzz(func(t *testing.T, pickle []byte) {
		fuzzFile(t, "m.bin", torchZip(record{name: "data.pkl", data: pickle}, record{name: "data/0", data: make([]byte, 24)},
			record{name: "data/1", data: make([]byte, 8)}, record{name: "data/2"}))
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(index(map[string]string{"a": "m.safetensors"})))
	f.Add([]byte(`{"metadata":{"total_size":1},"weight_map":{"a":"b"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		weightMap, err := parseIndex(data)
		if err != nil {
			return
		}
		for _, shard := range weightMap {
			if filepath.Base(shard) != shard || shard == ".." || shard == "." {
				t.Fatalf("shard %q", shard)
			}
		}
	})
}

func FuzzInventory(f *testing.F) {
	f.Add([]byte(`{"tensors":{"a":["F32",[2]]},"config":{},"parameters":2,"special_tokens":{"<s>":1}}`))
	f.Add(gzipped([]byte(`{"tensors":{"a":["I64",[]]}}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		plain, err := decompress(bytes.NewReader(data), 1<<20)
		if err != nil {
			return
		}
		inventory, problems := parseInventory("i.json", plain)
		if len(problems) > 0 {
			return
		}
		for _, name := range inventory.Names() {
			if info, _ := inventory.Lookup(name); info.Bytes() < 0 {
				t.Fatalf("%v has %d bytes", info, info.Bytes())
			}
		}
		if _, err := inventory.ReleaseFiles(); err != nil {
			t.Fatal(err)
		}
		inventory.TokenIDs()
	})
}
