package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tensor is one entry of a safetensors header.
type tensor struct {
	DType   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// weights is a safetensors file taken apart.
type weights struct {
	tensors map[string]tensor
	data    []byte
}

func readWeights(t *testing.T, path string) *weights {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(raw)
	var header map[string]json.RawMessage
	if err := json.Unmarshal(raw[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	w := &weights{map[string]tensor{}, raw[8+n:]}
	for name, entry := range header {
		if name == "__metadata__" {
			continue
		}
		var tt tensor
		if err := json.Unmarshal(entry, &tt); err != nil {
			t.Fatal(err)
		}
		w.tensors[name] = tt
	}
	return w
}

// remove takes a tensor and its bytes out, so that nothing but its absence is wrong.
func (w *weights) remove(name string) {
	gone := w.tensors[name]
	size := gone.Offsets[1] - gone.Offsets[0]
	w.data = slices.Delete(slices.Clone(w.data), int(gone.Offsets[0]), int(gone.Offsets[1]))
	delete(w.tensors, name)
	for n, tt := range w.tensors {
		if tt.Offsets[0] >= gone.Offsets[1] {
			tt.Offsets[0] -= size
			tt.Offsets[1] -= size
			w.tensors[n] = tt
		}
	}
}

func (w *weights) add(name string) {
	end := int64(len(w.data))
	w.tensors[name] = tensor{"F32", []int64{2}, [2]int64{end, end + 8}}
	w.data = append(w.data, make([]byte, 8)...)
}

func (w *weights) encode(t *testing.T) []byte {
	t.Helper()
	header, err := json.Marshal(w.tensors)
	if err != nil {
		t.Fatal(err)
	}
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(raw, header...), w.data...)
}

// copyCheckpoint returns a copy that may be broken.
func copyCheckpoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "checkpoint")
	if err := os.CopyFS(dir, os.DirFS(checkpoint)); err != nil {
		t.Fatal(err)
	}
	for _, name := range entries(t, dir) { // the fixtures may be read-only
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func overwrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func editJSON(t *testing.T, path string, edit func(map[string]any)) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	edit(v)
	if raw, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	overwrite(t, path, raw)
}

func TestBadCheckpoints(t *testing.T) {
	const file = "model.safetensors"
	reweigh := func(edit func(*weights)) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			w := readWeights(t, filepath.Join(dir, file))
			edit(w)
			overwrite(t, filepath.Join(dir, file), w.encode(t))
		}
	}
	names := slices.Sorted(maps.Keys(readWeights(t, filepath.Join(checkpoint, file)).tensors))
	victim := names[len(names)/2]
	for _, tc := range []struct {
		name  string
		spoil func(*testing.T, string)
		parts []string
	}{
		{"truncated", func(t *testing.T, dir string) {
			raw, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(dir, file), raw[:len(raw)-1000])
		}, []string{file}},
		{"truncated within the header", func(t *testing.T, dir string) {
			raw, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(dir, file), raw[:100])
		}, []string{file}},
		{"empty file", func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, file), nil) }, []string{file}},
		{"header length 2^60", func(t *testing.T, dir string) {
			raw, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			binary.LittleEndian.PutUint64(raw, 1<<60)
			overwrite(t, filepath.Join(dir, file), raw)
		}, []string{file, fmt.Sprint(1 << 60)}},
		{"overlapping offsets", reweigh(func(w *weights) {
			tt := w.tensors[victim]
			size := tt.Offsets[1] - tt.Offsets[0]
			if tt.Offsets[0] >= 4 {
				tt.Offsets = [2]int64{tt.Offsets[0] - 4, tt.Offsets[0] - 4 + size}
			} else {
				tt.Offsets = [2]int64{tt.Offsets[0] + 4, tt.Offsets[0] + 4 + size}
			}
			w.tensors[victim] = tt
		}), []string{victim}},
		{"unknown dtype", reweigh(func(w *weights) {
			tt := w.tensors[victim]
			tt.DType = "F7"
			w.tensors[victim] = tt
		}), []string{victim, "F7"}},
		{"wrong shape", reweigh(func(w *weights) {
			tt := w.tensors[victim]
			tt.Shape = append(tt.Shape, 3)
			w.tensors[victim] = tt
		}), []string{victim}},
		{"missing tensor", reweigh(func(w *weights) { w.remove(victim) }), []string{victim}},
		{"extra tensor", reweigh(func(w *weights) { w.add("mystery.weight") }), []string{"mystery.weight"}},
		{"unknown architecture", func(t *testing.T, dir string) {
			editJSON(t, filepath.Join(dir, "config.json"), func(v map[string]any) {
				v["architectures"], v["model_type"] = []string{"MysteryForCausalLM"}, "mystery"
			})
		}, []string{"MysteryForCausalLM"}},
		{"config is no JSON", func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "config.json"), []byte("{"))
		}, []string{"config.json"}},
		{"no config", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
				t.Fatal(err)
			}
		}, []string{"config.json"}},
		{"no weights", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
		}, []string{"checkpoint"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := copyCheckpoint(t)
			tc.spoil(t, dir)
			place := t.TempDir()
			r := glimpse(t, "convert", dir, "-o", filepath.Join(place, "model"))
			refused(t, r, tc.parts...)
			if left := entries(t, place); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestBadConvertUsage(t *testing.T) {
	place := t.TempDir()
	inPlace := func(name string) string { return filepath.Join(place, name) }
	overwrite(t, inPlace("file"), []byte("x"))
	if err := os.Mkdir(inPlace("precious"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		args  []string
		parts []string
	}{
		{"unknown flag", []string{checkpoint, "-o", inPlace("m"), "--presicion", "int4"}, []string{"--presicion"}},
		{"bad precision", []string{checkpoint, "-o", inPlace("m"), "--precision", "int3"}, []string{"int3", "int4"}},
		{"no output", []string{checkpoint}, []string{"-o"}},
		{"no checkpoint", []string{"-o", inPlace("m")}, []string{"CHECKPOINT"}},
		{"two checkpoints", []string{checkpoint, checkpoint, "-o", inPlace("m")}, []string{"(2)"}},
		{"checkpoint that does not exist", []string{inPlace("nowhere"), "-o", inPlace("m")}, []string{"nowhere"}},
		{"checkpoint that is a file", []string{inPlace("file"), "-o", inPlace("m")}, []string{"file"}},
		{"output that exists", []string{checkpoint, "-o", inPlace("precious")}, []string{"precious"}},
		{"force does not remove what is no model", []string{checkpoint, "-o", inPlace("precious"), "--force"}, []string{"precious", "model.toml"}},
		{"output in no folder", []string{checkpoint, "-o", inPlace("no/such/m")}, []string{"no/such"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refused(t, glimpse(t, append([]string{"convert"}, tc.args...)...), tc.parts...)
			if left := entries(t, place); !slices.Equal(left, []string{"file", "precious"}) {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// hugePNG is a valid signature and header of 60,000 × 60,000 pixels, and no pixels.
func hugePNG() []byte {
	chunk := func(kind string, body []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		b = append(append(b, kind...), body...)
		return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
	}
	head := binary.BigEndian.AppendUint32(nil, 60_000)
	head = binary.BigEndian.AppendUint32(head, 60_000)
	head = append(head, 8, 2, 0, 0, 0)
	return slices.Concat([]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", head), chunk("IDAT", []byte{1}), chunk("IEND", nil))
}

func TestBadQuestions(t *testing.T) {
	m := model(t)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		overwrite(t, path, []byte(content))
		return path
	}
	text := file("text.png", "this is no picture at all")
	huge := file("huge.png", string(hugePNG()))
	torn := func() string {
		raw, err := os.ReadFile(filepath.Join(media, "cat.png"))
		if err != nil {
			t.Fatal(err)
		}
		return file("torn.png", string(raw[:len(raw)/2]))
	}()
	noWeights := t.TempDir()
	if err := os.CopyFS(noWeights, os.DirFS(m)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(noWeights, "decoder.onnx")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		args  []string
		parts []string
	}{
		{"no picture", []string{m, "--image", text}, []string{text, "not a picture"}},
		{"60,000 × 60,000", []string{m, "--image", huge}, []string{huge, "60000"}},
		{"half a picture", []string{m, "--image", torn}, []string{torn}},
		{"picture that does not exist", []string{m, "--image", dir + "/none.png"}, []string{"none.png"}},
		{"picture that is a folder", []string{m, "--image", dir}, []string{dir}},
		{"prompt longer than the context", []string{m, strings.Repeat("word ", 5000)}, []string{"tokens", "context"}},
		{"model that does not exist", []string{dir + "/nowhere", "hi"}, []string{"nowhere"}},
		{"folder that is no model", []string{dir, "hi"}, []string{dir, "model.toml"}},
		{"model without its decoder", []string{noWeights, "hi"}, []string{"decoder.onnx"}},
		{"nothing to ask", []string{m}, []string{"PROMPT"}},
		{"unknown flag", []string{m, "hi", "--temprature", "1"}, []string{"--temprature"}},
		{"video", []string{m, "hi", "--video", "a.mp4"}, []string{"a.mp4", "video"}},
		{"audio", []string{m, "hi", "--audio", "a.wav"}, []string{"a.wav", "sound"}},
		{"raw without prompt", []string{m, "--raw", "--image", text}, []string{"--raw"}},
		{"messages and prompt", []string{m, "hi", "--messages", text}, []string{"--messages"}},
		{"messages that are none", []string{m, "--messages", text}, []string{text}},
		{"temperature", []string{m, "hi", "--temperature", "-1"}, []string{"--temperature"}},
		{"temperature NaN", []string{m, "hi", "--temperature", "NaN"}, []string{"--temperature"}},
		{"top-p", []string{m, "hi", "--top-p", "1.5"}, []string{"--top-p"}},
		{"max-tokens", []string{m, "hi", "--max-tokens", "-3"}, []string{"--max-tokens"}},
		{"device", []string{m, "hi", "--device", "tpu"}, []string{"tpu", "cuda"}},
		{"threads", []string{m, "hi", "--threads", "lots"}, []string{"lots"}},
		{"configuration that does not exist", []string{m, "hi", "--config", dir + "/none.toml"}, []string{"none.toml"}},
		{"configuration with an unknown key", []string{m, "hi", "--config", file("c.toml", "thread = 2\n")}, []string{"c.toml", "thread", "threads"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			refused(t, glimpse(t, append([]string{"ask"}, tc.args...)...), tc.parts...)
		})
	}
}

func TestBadUsageOfOtherCommands(t *testing.T) {
	m := model(t)
	dir := t.TempDir()
	diary := filepath.Join(dir, "diary.txt")
	overwrite(t, diary, []byte("dear diary"))
	for _, tc := range []struct {
		name  string
		args  []string
		parts []string
	}{
		{"unknown command", []string{"captoin"}, []string{"captoin", "caption"}},
		{"caption without output", []string{"caption", m, media}, []string{"-o"}},
		{"caption without inputs", []string{"caption", m, "-o", dir + "/o.jsonl"}, []string{"INPUT"}},
		{"caption of nothing", []string{"caption", m, dir + "/none.png", dir + "/*.gif", "-o", dir + "/o.jsonl"}, []string{"none.png", "*.gif"}},
		{"caption into a stranger's file", []string{"caption", m, media, "-o", diary}, []string{"diary.txt"}},
		{"verify without a set", []string{"verify", m}, []string{"--golden"}},
		{"verify with no set", []string{"verify", m, "--golden", dir}, []string{dir}},
		{"verify with an unknown case", []string{"verify", m, "--golden", goldenSet, "--case", "nope"}, []string{"nope"}},
		{"inspect of nothing", []string{"inspect", dir + "/none"}, []string{"none"}},
		{"inspect of no checkpoint", []string{"inspect", dir}, []string{dir}},
		{"score", []string{"score", m, "--image", "a.png", "--text", "a"}, []string{m, "scoring"}},
		{"embed", []string{"embed", m, "--text", "a"}, []string{m, "embedding"}},
		{"bench drawing nowhere", []string{"bench", m, "--html", filepath.Join(m, "nowhere", "b.html")}, []string{"--html", "nowhere"}},
		{"bench with no rows", []string{"bench", m, "--parallel", "1,none"}, []string{"1,none"}},
		{"serve on a taken address", []string{"serve", m, "--listen", "256.0.0.1:1"}, []string{"--listen"}},
		{"serve a model twice", []string{"serve", m, m, "--listen", "127.0.0.1:0"}, []string{filepath.Base(m)}},
		{"serve with half of TLS", []string{"serve", m, "--listen", "127.0.0.1:0", "--tls-key", "k.pem"}, []string{"TLS"}},
		{"serve with keys that do not exist", []string{"serve", m, "--listen", "127.0.0.1:0", "--keys", dir + "/none"}, []string{dir + "/none"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			refused(t, glimpse(t, tc.args...), tc.parts...)
			if raw, _ := os.ReadFile(diary); string(raw) != "dear diary" {
				t.Errorf("the diary was changed to %q", raw)
			}
			if _, err := os.Stat(dir + "/o.jsonl"); err == nil {
				t.Error("an output was made")
			}
		})
	}
}
