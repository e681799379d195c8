package checkpoint

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"
)

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func TestReadInventory(t *testing.T) {
	paths, err := filepath.Glob("../../testdata/inventories/*.json.gz")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no inventories: %v", err)
	}
	for _, path := range paths {
		f, err := ReadInventory(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if len(f.Names()) < 50 || f.Parameters == 0 || f.Config == nil {
			t.Errorf("%s: %d tensors, %d parameters, config %s", path, len(f.Names()), f.Parameters, f.Config)
		}
	}
	f, err := ReadInventory("../../testdata/inventories/llava-hf--llava-1.5-7b-hf.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	info, ok := f.Lookup("language_model.lm_head.weight")
	if !ok || info.String() != "language_model.lm_head.weight F16[32064 4096]" {
		t.Errorf("the head is %v", info)
	}
	if f.Parameters != 7063427072 || f.TotalBytes != 14126854144 || len(f.Shards) != 3 || f.TokenIDs()["<image>"] != 32000 {
		t.Errorf("%d parameters, %d bytes, shards %q, tokens %v", f.Parameters, f.TotalBytes, f.Shards, f.TokenIDs())
	}
	files, err := f.ReleaseFiles()
	if err != nil || len(files) != 4 || !bytes.Contains(files["config.json"], []byte(`"image_token_index": 32000`)) {
		t.Errorf("files %q, %v", files, err)
	}
}

func TestBrokenInventory(t *testing.T) {
	bomb := gzipped(make([]byte, maxInventoryBytes+1))
	good := gzipped([]byte(`{"tensors":{"a":["F32",[2]]}}`))
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":      {nil, "the JSON ends too early"},
		"not JSON":   {[]byte("x"), "the JSON is broken at byte 0: invalid character 'x' looking for beginning of value"},
		"cut":        {good[:len(good)-9], "decompressing: unexpected EOF"},
		"damaged":    {append(bytes.Clone(good[:len(good)-6]), 1, 2, 3, 4, 5, 6), "decompressing: gzip: invalid checksum"},
		"bomb":       {bomb, "has more than 67108864 bytes when decompressed"},
		"no tensors": {[]byte(`{"config":{}}`), `there is no "tensors"`},
		"trailing":   {[]byte(`{"tensors":{}} x`), "something follows the JSON at byte 15"},
		"duplicate":  {[]byte(`{"tensors":{"a":["F32",[2]],"a":["F32",[2]]}}`), `tensors: key "a" appears twice`},
		"dtypes": {[]byte(`{"tensors":{"a":["F33",[2]],"b":["F32",[4294967296,4294967296]]}}`),
			`tensor "a": dtype "F33" is not known (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)` + "\n" +
				`i.json.gz: tensor "b": shape [4294967296 4294967296] of F32 overflows`},
		"shape":  {[]byte(`{"tensors":{"a":["F32",2]}}`), `tensor "a": shape: found 2 where [ was expected`},
		"longer": {[]byte(`{"tensors":{"a":["F32",[2],3]}}`), `tensor "a": found 3 where ] was expected`},
		"counts": {[]byte(`{"tensors":{"a":["F32",[2]]},"parameters":3}`), "parameters is 3, but its tensors make 2"},
		"sum":    {[]byte(`{"tensors":{"a":["F64",[1152921504606846975]],"b":["F64",[1152921504606846975]]}}`), "the sizes of its tensors overflow"},
		"config": {[]byte(`{"shards":1}`), `"shards": json: cannot unmarshal number into Go value of type []string`},
	} {
		path := filepath.Join(t.TempDir(), "i.json.gz")
		if err := os.WriteFile(path, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := ReadInventory(path)
		expectError(t, name, err, "i.json.gz: "+c.want)
	}
}
