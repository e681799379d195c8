package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func tensorList(t testing.TB, tensors ...TensorInfo) *List {
	t.Helper()
	l, err := NewList(tensors)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSynthesize(t *testing.T) {
	ctx := context.Background()
	list := tensorList(t,
		TensorInfo{"language_model.model.embed_tokens.weight", F16, []int64{400, 64}},
		TensorInfo{"language_model.model.layers.0.input_layernorm.weight", F16, []int64{1001}},
		TensorInfo{"language_model.model.layers.0.mlp.up_proj.weight", BF16, []int64{301, 63}},
		TensorInfo{"vision.fc1.bias", F32, []int64{1003}},
		TensorInfo{"vision.ls1", F32, []int64{1000}},
		TensorInfo{"vision.position_ids", I64, []int64{1, 50}},
		TensorInfo{"rotary_emb.inv_freq", F32, []int64{4}},
		TensorInfo{"logit_scale", F32, []int64{}},
		TensorInfo{"double", F64, []int64{7, 9}},
		TensorInfo{"empty", F32, []int64{0, 3}},
	)
	var reported int64
	out := filepath.Join(t.TempDir(), "new", "checkpoint")
	options := SynthOptions{
		Inventory: list, Seed: 5, Out: out, ShardBytes: 40000,
		Files:         map[string][]byte{"config.json": []byte(`{"image_token_index": 390, "text_config": {"vocab_size": 391, "bos_token_id": 1, "eos_token_id": [2, 7]}}`), "sub/x.json": []byte("{}")},
		SpecialTokens: map[string]int64{"<image>": 390, "[DEC]": 30522},
		Progress:      func(done, total int64) { reported = done - total },
	}
	summary, err := Synthesize(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	if reported != 0 {
		t.Errorf("progress ends %d bytes off", reported)
	}
	want := &SynthSummary{Tensors: 10, Parameters: 47685, Bytes: 100064, StandInTokens: 400, Files: []string{"config.json",
		"model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors", "model-00003-of-00004.safetensors",
		"model-00004-of-00004.safetensors", "model.safetensors.index.json", "sub/x.json", "tokenizer.json", "tokenizer_config.json"}}
	if diff := cmp.Diff(want, summary); diff != "" {
		t.Error(diff)
	}
	c := mustOpen(t, out)
	if diff := cmp.Diff(list.Names(), c.Names()); diff != "" {
		t.Error(diff)
	}
	for _, name := range list.Names() {
		got, _ := c.Lookup(name)
		want, _ := list.Lookup(name)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	for name, want := range map[string][2]float64{
		"language_model.model.embed_tokens.weight":             {0, 0.02},
		"language_model.model.layers.0.input_layernorm.weight": {1, 0.02},
		"language_model.model.layers.0.mlp.up_proj.weight":     {0, 0.02},
		"vision.fc1.bias": {0, 0.01},
		"vision.ls1":      {0.1, 0.005},
	} {
		values := readAll(t, c, name)
		mean, deviation := moments(values)
		if math.Abs(mean-want[0]) > 5*want[1]/math.Sqrt(float64(len(values))) || math.Abs(deviation/want[1]-1) > 0.1 {
			t.Errorf("%s: mean %v, deviation %v, want %v", name, mean, deviation, want)
		}
	}
	if v := readAll(t, c, "vision.position_ids"); v[0] != 0 || v[49] != 49 {
		t.Errorf("position_ids %v", v)
	}
	if v := readAll(t, c, "rotary_emb.inv_freq"); !slices.Equal(v, []float32{1, 0.1, 0.01, 0.001}) {
		t.Errorf("inv_freq %v", v)
	}
	if v := readAll(t, c, "logit_scale"); v[0] != float32(math.Log(1/0.07)) {
		t.Errorf("logit_scale %v", v)
	}

	// Another folder, other neighbours, other shards: the same values. Another seed: others.
	alone := options
	alone.Inventory = tensorList(t, TensorInfo{"language_model.model.layers.0.mlp.up_proj.weight", BF16, []int64{301, 63}})
	alone.Out, alone.ShardBytes, alone.Files = filepath.Join(t.TempDir(), "b"), 0, nil
	if _, err := Synthesize(ctx, alone); err != nil {
		t.Fatal(err)
	}
	name := alone.Inventory.Names()[0]
	if !slices.Equal(readAll(t, mustOpen(t, alone.Out), name), readAll(t, c, name)) {
		t.Error("values depend on the rest of the checkpoint")
	}
	alone.Seed, alone.Out = 6, filepath.Join(t.TempDir(), "c")
	if _, err := Synthesize(ctx, alone); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(readAll(t, mustOpen(t, alone.Out), name), readAll(t, c, name)) {
		t.Error("values do not depend on the seed")
	}
	if _, err := Synthesize(ctx, options); err == nil || !strings.HasSuffix(err.Error(), "the folder exists and is not empty; remove it or choose another") {
		t.Errorf("over an existing folder: %v", err)
	}
}

func moments(values []float32) (mean, deviation float64) {
	for _, v := range values {
		mean += float64(v)
	}
	mean /= float64(len(values))
	for _, v := range values {
		deviation += (float64(v) - mean) * (float64(v) - mean)
	}
	return mean, math.Sqrt(deviation / float64(len(values)))
}

// What is written in chunks is what would be written at once, at every length of the last chunk.
func TestRandomChunks(t *testing.T) {
	for _, dtype := range []DType{F64, F32, F16, BF16} {
		for n := range int64(9) {
			n += 2 * chunkBytes / dtype.Size()
			info := TensorInfo{Name: "w", DType: dtype, Shape: []int64{n, 1}}
			var b bytes.Buffer
			if err := fillRandom(context.Background(), &b, info, 1); err != nil {
				t.Fatal(err)
			}
			whole := make([]byte, info.Bytes())
			newNormal(info, recipeFor(info), 1).fill(whole, 0)
			if !bytes.Equal(whole, b.Bytes()) {
				t.Fatalf("%s of %d elements differs in chunks", dtype, n)
			}
		}
	}
}

// A failure leaves nothing behind.
func TestSynthesizeFailure(t *testing.T) {
	parent := t.TempDir()
	list := tensorList(t, TensorInfo{"w", F16, []int64{1 << 20}})
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Synthesize(ctx, SynthOptions{Inventory: list, Out: filepath.Join(parent, "out"), Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for want, o := range map[string]SynthOptions{
		"file name \"../x\" leads out of the folder": {Inventory: list, Files: map[string][]byte{"../x": nil}},
		"the tensor list is empty":                   {Inventory: tensorList(t)},
		"shards of -1 bytes":                         {Inventory: list, ShardBytes: -1},
		"config.json: unexpected end of JSON input":  {Inventory: list, Files: map[string][]byte{"config.json": nil}},
		"stand-in tokenizer: a vocabulary of 100 is too small for the 256 bytes and the special tokens; give a tokenizer.json": {
			Inventory: list, Files: map[string][]byte{"config.json": []byte(`{"vocab_size":100}`)}},
		"a vocabulary of 8388608 is not believable": {Inventory: list, Files: map[string][]byte{"config.json": []byte(`{"vocab_size":8388608}`)}},
		`special tokens "a" and "b" have the same id 3`: {Inventory: list, SpecialTokens: map[string]int64{"a": 3, "b": 3},
			Files: map[string][]byte{"config.json": []byte(`{"vocab_size":400}`)}},
	} {
		o.Out = filepath.Join(parent, "out")
		_, err := Synthesize(context.Background(), o)
		expectError(t, "synth", err, "making checkpoint "+o.Out+": "+want)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFolderFiles(t *testing.T) {
	folder := writeFolder(t, map[string]any{
		"config.json": "{}", "tokenizer.json.gz": gzipped([]byte(`{"a":1}`)), "chat_template.jinja": "x", "vocab.txt": "v",
		"model.safetensors": "w", "model.safetensors.index.json": "i", "pytorch_model.bin": "w", "README.md": "r",
	})
	if err := os.Mkdir(filepath.Join(folder, "qformer_tokenizer"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "qformer_tokenizer", "tokenizer.json"), []byte("q"), 0o644); err != nil {
		t.Fatal(err)
	}
	files, err := FolderFiles(folder)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"config.json": []byte("{}"), "tokenizer.json": []byte(`{"a":1}`), "chat_template.jinja": []byte("x"), "vocab.txt": []byte("v"),
		"qformer_tokenizer/tokenizer.json": []byte("q")}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Error(diff)
	}
	if _, err := decompress(bytes.NewReader(gzipped(make([]byte, 1001))), 1000); err == nil || err.Error() != "has more than 1000 bytes when decompressed" {
		t.Errorf("a bomb: %v", err)
	}
}

func TestStandInTokenizer(t *testing.T) {
	data, err := StandInTokenizer(300, map[int64]string{0: "<s>", 299: "<image>", 50: newlineToken})
	if err != nil {
		t.Fatal(err)
	}
	var tokenizer struct {
		AddedTokens []struct {
			ID      int
			Content string
			Special bool
		} `json:"added_tokens"`
		Model struct{ Vocab map[string]int }
	}
	if err := json.Unmarshal(data, &tokenizer); err != nil {
		t.Fatal(err)
	}
	vocab := tokenizer.Model.Vocab
	ids := map[int]bool{}
	for _, id := range vocab {
		ids[id] = true
	}
	if len(vocab) != 300 || len(ids) != 300 || !ids[0] || !ids[299] {
		t.Errorf("%d tokens with %d ids", len(vocab), len(ids))
	}
	for b, letter := range byteAlphabet() {
		if _, ok := vocab[letter]; !ok {
			t.Errorf("byte %d is missing", b)
		}
	}
	if vocab["<s>"] != 0 || vocab["<image>"] != 299 || vocab["Ċ"] != 50 || vocab["Ġw298"] != 298 || vocab["!"] != 33 || vocab["\u0100"] != 1 {
		t.Errorf("<s> %d, <image> %d, newline %d, w298 %d, ! %d, NUL %d", vocab["<s>"], vocab["<image>"], vocab["Ċ"], vocab["Ġw298"], vocab["!"], vocab["\u0100"])
	}
	if len(tokenizer.AddedTokens) != 2 || tokenizer.AddedTokens[1].ID != 299 || !tokenizer.AddedTokens[1].Special {
		t.Errorf("added tokens %v", tokenizer.AddedTokens)
	}
	for want, special := range map[string]map[int64]string{
		`stand-in tokenizer: special token "a" has id 300, outside a vocabulary of 300`: {300: "a"},
		`stand-in tokenizer: token "a" would have the ids 1 and 2`:                      {1: "a", 2: "a"},
	} {
		_, err := StandInTokenizer(300, special)
		expectError(t, "stand-in", err, want)
	}
}

// Every inventory that the repository keeps has files and a tokenizer that can be made, without its weights.
func TestInventoriesCanBeSynthesized(t *testing.T) {
	paths, err := filepath.Glob("../../testdata/inventories/*.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		f, err := ReadInventory(path)
		if err != nil {
			t.Fatal(err)
		}
		files, err := f.ReleaseFiles()
		if err != nil {
			t.Fatal(err)
		}
		size, err := addStandIn(files, f.TokenIDs(), f)
		if err != nil || (size > 0) != (files["tokenizer.json"] != nil) {
			t.Errorf("%s: a vocabulary of %d: %v", path, size, err)
		}
		if rows := embeddingRows(f); int64(size) < rows {
			t.Errorf("%s: a vocabulary of %d for an embedding of %d", path, size, rows)
		}
		for _, name := range f.Names() { // the recipes must not take a matrix for a norm
			info, _ := f.Lookup(name)
			if r := recipeFor(info); r.value == nil && r.mean == 1 && len(info.Shape) != 1 {
				t.Errorf("%v is taken for a norm", info)
			}
		}
	}
}

func BenchmarkSynthesize(b *testing.B) {
	for _, dtype := range []DType{F16, F32} {
		info := TensorInfo{Name: "w", DType: dtype, Shape: []int64{4096, 4096}}
		b.Run(string(dtype), func(b *testing.B) {
			b.SetBytes(info.Bytes())
			for b.Loop() {
				if err := fillRandom(context.Background(), io.Discard, info, 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
