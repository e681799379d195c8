package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// writeFolder fills a folder; values that are a list of tensor names become safetensors files of one float each: the number
// of the file's tensor in the list.
func writeFolder(t *testing.T, files map[string]any) string {
	t.Helper()
	folder := t.TempDir()
	for name, content := range files {
		var data []byte
		switch c := content.(type) {
		case string:
			data = []byte(c)
		case []byte:
			data = c
		case []string:
			var tensors []TensorData
			for i, tensor := range c {
				b := make([]byte, 4)
				putValue(b, F32, float64(i+1))
				tensors = append(tensors, TensorData{TensorInfo: TensorInfo{Name: tensor, DType: F32, Shape: []int64{1}}, Data: b})
			}
			var b bytes.Buffer
			if err := WriteSafetensors(&b, tensors); err != nil {
				t.Fatal(err)
			}
			data = b.Bytes()
		}
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func index(weightMap map[string]string) string {
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": 1, "x": []int{1}}, "weight_map": weightMap})
	if err != nil {
		panic(err)
	}
	return string(data)
}

func TestOpenChooses(t *testing.T) {
	torch := oneTensor([]int64{6}, []int64{1}, 0)
	sharded := index(map[string]string{"s": "s.safetensors"})
	for name, c := range map[string]struct {
		files map[string]any
		want  string
	}{
		"safetensors before all": {map[string]any{"model.safetensors": []string{"a"}, "model.safetensors.index.json": sharded, "s.safetensors": []string{"s"},
			"pytorch_model.bin": torch, "consolidated.safetensors": []string{"c"}}, "a"},
		"index before torch":               {map[string]any{"model.safetensors.index.json": sharded, "s.safetensors": []string{"s"}, "pytorch_model.bin": torch}, "s"},
		"torch":                            {map[string]any{"pytorch_model.bin": torch, "pytorch_model.bin.index.json": sharded, "s.safetensors": []string{"s"}}, "w"},
		"torch index":                      {map[string]any{"pytorch_model.bin.index.json": index(map[string]string{"w": "x.bin"}), "x.bin": torch}, "w"},
		"safetensors that is torch inside": {map[string]any{"model.safetensors": torch}, "w"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := writeFolder(t, c.files)
			if got := mustOpen(t, folder).Names(); !slices.Equal(got, []string{c.want}) {
				t.Errorf("opened %q, want %s", got, c.want)
			}
		})
	}
	folder := writeFolder(t, map[string]any{"consolidated.safetensors": []string{"c"}, "config.json": "{}"})
	_, err := Open(context.Background(), folder)
	expectError(t, "nothing", err, "opening checkpoint "+folder+": no weights found: looked for model.safetensors, model.safetensors.index.json, "+
		"pytorch_model.bin, pytorch_model.bin.index.json; other weight files there, which can be named directly: consolidated.safetensors")
	if !errors.Is(err, ErrNoWeights) {
		t.Error("not ErrNoWeights")
	}
	if got := mustOpen(t, filepath.Join(folder, "consolidated.safetensors")).Names(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("opened %q", got)
	}
	if _, err := Open(context.Background(), filepath.Join(folder, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nowhere: %v", err)
	}
}

func TestShards(t *testing.T) {
	folder := writeFolder(t, map[string]any{
		"model.safetensors.index.json": index(map[string]string{"a": "1.safetensors", "b": "2.safetensors", "tied": "2.safetensors"}),
		"1.safetensors":                []string{"a", "tied", "more"}, // tied: a copy; more: not in the index, taken all the same
		"2.safetensors":                []string{"b", "tied"},
	})
	c := mustOpen(t, folder)
	got := map[string]float32{}
	for _, name := range c.Names() {
		got[name] = readAll(t, c, name)[0]
	}
	if diff := cmp.Diff(map[string]float32{"a": 1, "b": 1, "more": 3, "tied": 2}, got); diff != "" {
		t.Error(diff)
	}
	files := c.Files()
	if len(files) != 2 || files[0].Name != "1.safetensors" || files[1].Path != filepath.Join(folder, "2.safetensors") || files[1].Bytes == 0 {
		t.Errorf("files %v", files)
	}
	// Shards may be links into a download cache.
	if err := os.Rename(filepath.Join(folder, "2.safetensors"), filepath.Join(folder, "blob")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("blob", filepath.Join(folder, "2.safetensors")); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, folder)
}

func TestBrokenIndex(t *testing.T) {
	const name = "model.safetensors.index.json"
	for test, c := range map[string]struct {
		files map[string]any
		want  string
	}{
		"not JSON":    {map[string]any{name: "x"}, name + ": the JSON is broken at byte 0: invalid character 'x' looking for beginning of value"},
		"no map":      {map[string]any{name: `{"metadata":{}}`}, name + `: there is no "weight_map"`},
		"empty map":   {map[string]any{name: `{"weight_map":{}}`}, name + `: its "weight_map" is empty`},
		"duplicate":   {map[string]any{name: `{"weight_map":{"a":"x","a":"y"}}`}, name + `: weight_map: key "a" appears twice`},
		"number":      {map[string]any{name: `{"weight_map":{"a":1}}`}, name + `: weight_map "a": found 1 where a string was expected`},
		"cut":         {map[string]any{name: `{"weight_map":{"a":"x"}`}, name + `: the JSON ends too early`},
		"parent":      {map[string]any{name: index(map[string]string{"a": "../x.safetensors"})}, name + `: weight_map "a": shard "../x.safetensors" is not the plain name of a file in the same folder`},
		"absolute":    {map[string]any{name: index(map[string]string{"a": "/etc/passwd"})}, name + `: weight_map "a": shard "/etc/passwd" is not the plain name of a file in the same folder`},
		"backslash":   {map[string]any{name: index(map[string]string{"a": `..\x`})}, name + `: weight_map "a": shard "..\\x" is not the plain name of a file in the same folder`},
		"folder":      {map[string]any{name: index(map[string]string{"a": "."})}, name + `: weight_map "a": shard "." is not the plain name of a file in the same folder`},
		"empty shard": {map[string]any{name: index(map[string]string{"a": ""})}, name + `: weight_map "a": shard "" is not the plain name of a file in the same folder`},
		"all at once": {map[string]any{
			name:            index(map[string]string{"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors", "d": "3.safetensors", "e": "4.safetensors"}),
			"1.safetensors": []string{"a", "twice"}, "3.safetensors": []string{"twice"}, "4.safetensors": "hello"},
			`2.safetensors: is missing; model.safetensors.index.json wants 2 tensors from it, the first is "b"` + "\n" +
				`3.safetensors: tensor "d": is not in the file, though model.safetensors.index.json says so` + "\n" +
				`3.safetensors: tensor "twice": is in 1.safetensors too, and model.safetensors.index.json does not say which one counts` + "\n" +
				`4.safetensors: 5 bytes are too few for a safetensors file`},
	} {
		_, err := Open(context.Background(), writeFolder(t, c.files))
		expectError(t, test, err, c.want)
	}
}

func TestNotAFile(t *testing.T) {
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "model.safetensors"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), folder)
	expectError(t, "folder", err, "model.safetensors: is not a regular file")
}

func TestMerge(t *testing.T) {
	ctx := context.Background()
	open := func(folder string) Checkpoint {
		c, err := Open(ctx, folder)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	model := writeFolder(t, map[string]any{"model.safetensors": []string{"a", "b"}})
	tower := writeFolder(t, map[string]any{"model.safetensors": []string{"x", "a"}})
	merged, err := Merge(map[string]Checkpoint{"": open(model), "tower.": open(tower)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b", "tower.a", "tower.x"}, merged.Names()); diff != "" {
		t.Error(diff)
	}
	if v := readAll(t, merged, "tower.a")[0]; v != 2 {
		t.Errorf("tower.a = %v, want 2", v)
	}
	if info, ok := merged.Lookup("tower.x"); !ok || info.Name != "tower.x" {
		t.Errorf("tower.x is %v", info)
	}
	raw := make([]byte, 4)
	if err := merged.ReadRaw(ctx, "b", 0, raw); err != nil || raw[3] != 0x40 {
		t.Errorf("b: %v, %v", raw, err)
	}
	merged.Release("tower.a")
	if err := merged.ReadFloat32(ctx, "x", 0, nil); !errors.Is(err, ErrUnknownTensor) {
		t.Errorf("x: %v", err)
	}
	names := map[string]bool{}
	for _, f := range merged.Files() {
		names[f.Name] = true
	}
	want := map[string]bool{filepath.Base(model) + "/model.safetensors": true, filepath.Base(tower) + "/model.safetensors": true}
	if !maps.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	if err := errors.Join(merged.Close(), merged.Close()); err != nil {
		t.Error(err)
	}
	if err := merged.ReadFloat32(ctx, "a", 0, make([]float32, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	first := open(model)
	_, err = Merge(map[string]Checkpoint{"": first, "a": open(writeFolder(t, map[string]any{"model.safetensors": []string{""}}))})
	if err == nil || !errors.As(err, &Problems{}) {
		t.Errorf("a clash: %v", err)
	}
	if err := first.ReadFloat32(ctx, "a", 0, make([]float32, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a failed merge left its parts open: %v", err)
	}
}
