package golden

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file builds a safetensors file from a header and its data.
func file(header string, data ...byte) []byte {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(raw, header...), data...)
}

func TestReadArrays(t *testing.T) {
	raw := file(`{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"I64","shape":[1,1],"data_offsets":[8,16]}}`,
		0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 7, 0, 0, 0, 0, 0, 0, 0)
	a, err := readHeader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]Array{
		"x": {Shape: []int64{2}, Data: []float32{1, -2}},
		"y": {Shape: []int64{1, 1}, Data: []float32{7}},
	} {
		got, err := a.Read(key)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
	}
	if _, err := a.Read("z"); err == nil || !strings.Contains(err.Error(), `"z"`) {
		t.Errorf("a missing array: %v", err)
	}
}

func TestHostileHeaders(t *testing.T) {
	for name, raw := range map[string][]byte{
		"empty":           nil,
		"length 2^60":     binary.LittleEndian.AppendUint64(nil, 1<<60),
		"length 2^64-1":   binary.LittleEndian.AppendUint64(nil, 1<<64-1),
		"not JSON":        file("{"),
		"unknown dtype":   file(`{"x":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}}`, 0),
		"beyond the end":  file(`{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 0),
		"wrong size":      file(`{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 0, 0, 0, 0),
		"negative shape":  file(`{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}`, 0, 0, 0, 0),
		"shape overflows": file(`{"x":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,0]}}`),
		"backwards":       file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}`, 0, 0, 0, 0),
	} {
		if _, err := readHeader(bytes.NewReader(raw), int64(len(raw))); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzArrays(f *testing.F) {
	f.Add(file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 0, 0, 0, 0))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<60))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := readHeader(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		for key := range a.entries {
			if _, err := a.Read(key); err != nil {
				t.Errorf("an array of an accepted header: %v", err)
			}
		}
	})
}

func TestParseCases(t *testing.T) {
	for name, raw := range map[string]string{
		"no cases":  `{"cases":[]}`,
		"no id":     `{"cases":[{}]}`,
		"same id":   `{"cases":[{"id":"a"},{"id":"a"}]}`,
		"escaping":  `{"cases":[{"id":"a","images":["../../secret"]}]}`,
		"malformed": `{"cases":`,
	} {
		if _, err := parseCases([]byte(raw)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	set, err := parseCases([]byte(`{"name":"n","cases":[
		{"id":"a","tolerance":"a sentence","messages":[{"role":"user","content":"hi"}]},
		{"id":"b","tolerance":{"pixel_values":0.15},"messages":[{"role":"user","content":[{"type":"image"},{"type":"text","text":"x"}]}],"options":{"exif":false}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := set.Cases[0].PixelTolerance(), set.Cases[1].PixelTolerance(); a != 0 || b != 0.15 {
		t.Errorf("tolerances %v, %v", a, b)
	}
	if p, err := set.Cases[0].Messages[0].Parts(); err != nil || !cmp.Equal(p, []Part{{Type: "text", Text: "hi"}}) {
		t.Errorf("string content: %v, %v", p, err)
	}
	if p, err := set.Cases[1].Messages[0].Parts(); err != nil || len(p) != 2 || p[0].Type != "image" {
		t.Errorf("list content: %v, %v", p, err)
	}
	if set.Cases[1].Options.EXIF == nil || *set.Cases[1].Options.EXIF {
		t.Error("exif: false was lost")
	}
}

func FuzzCases(f *testing.F) {
	f.Add([]byte(`{"cases":[{"id":"a","messages":[{"role":"user","content":[{"type":"text"}]}]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		set, err := parseCases(raw)
		if err != nil {
			return
		}
		for _, c := range set.Cases {
			c.PixelTolerance()
			for _, m := range c.Messages {
				m.Parts()
			}
		}
	})
}

func TestReadFolder(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Read(dir); err == nil {
		t.Error("an empty folder was accepted")
	}
	write("cases.json", []byte(`{"cases":[{"id":"a"}]}`))
	if _, err := Read(dir); err == nil {
		t.Error("a set without arrays was accepted")
	}
	write("golden.safetensors", file(`{"a.x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 9))
	set, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	if a, err := set.Arrays.Read("a.x"); err != nil || a.Data[0] != 9 {
		t.Errorf("%v, %v", a, err)
	}
	if set.Name != filepath.Base(dir) || set.Arrays.Len() != 1 {
		t.Errorf("name %q, %d arrays", set.Name, set.Arrays.Len())
	}
}
