package checkpoint

// Torch files: what torch.save itself wrote (testdata/torch, made by fixtures.py there) is read back to the value, and
// files that are broken, or hostile, are refused with a line that says why.

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var torchDTypes = map[string]DType{
	"float64": F64, "float32": F32, "float16": F16, "bfloat16": BF16, "int64": I64, "int32": I32, "int16": I16, "int8": I8,
	"uint64": U64, "uint32": U32, "uint16": U16, "uint8": U8, "bool": Bool,
}

func TestTorchFixtures(t *testing.T) {
	data, err := os.ReadFile("testdata/torch/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var expected map[string]map[string]struct {
		DType  string
		Shape  []int64
		Values []float64
	}
	if err := json.Unmarshal(data, &expected); err != nil {
		t.Fatal(err)
	}
	if len(expected) < 6 {
		t.Fatalf("%d fixtures", len(expected))
	}
	for file, tensors := range expected {
		t.Run(file, func(t *testing.T) {
			c := mustOpen(t, filepath.Join("testdata/torch", file))
			if len(c.Names()) != len(tensors) {
				t.Errorf("names %q, want %d", c.Names(), len(tensors))
			}
			for name, want := range tensors {
				info, ok := c.Lookup(name)
				if !ok {
					t.Errorf("%s is missing", name)
					continue
				}
				if info.DType != torchDTypes[want.DType] || !slices.Equal(info.Shape, want.Shape) {
					t.Errorf("%v, want %s%v", info, want.DType, want.Shape)
				}
				for i, v := range readAll(t, c, name) {
					if v != float32(want.Values[i]) {
						t.Errorf("%s[%d] = %v, want %v", name, i, v, want.Values[i])
					}
				}
				raw := make([]byte, info.Bytes())
				if err := c.ReadRaw(context.Background(), name, 0, raw); err != nil {
					t.Fatal(err)
				}
				wide := make([]float32, info.Elements())
				widen(info.DType, wide, raw)
				if diff := cmp.Diff(readAll(t, c, name), wide); diff != "" {
					t.Errorf("%s: raw bytes differ from the values: %s", name, diff)
				}
			}
		})
	}
}

// Reading the middle of a gathered tensor, from many goroutines, before and after Release.
func TestGatherInPieces(t *testing.T) {
	c := mustOpen(t, "testdata/torch/views.pt")
	for _, name := range []string{"transposed", "permuted", "double", "expanded", "columns"} {
		whole := readAll(t, c, name)
		done := make(chan error)
		const readers = 8
		for r := range readers {
			go func() {
				defer func() { done <- nil }()
				for first := r % len(whole); first < len(whole); first++ {
					part := make([]float32, min(3, len(whole)-first))
					if err := c.ReadFloat32(context.Background(), name, int64(first), part); err != nil {
						t.Error(err)
					}
					if !slices.Equal(part, whole[first:first+len(part)]) {
						t.Errorf("%s from %d: %v, want %v", name, first, part, whole[first:])
					}
					if first%3 == 0 {
						c.Release(name)
					}
				}
			}()
		}
		for range readers {
			<-done
		}
	}
	s := c.(*store)
	if len(s.gathers) > keptGathers {
		t.Errorf("%d gathered tensors are kept", len(s.gathers))
	}
}

func TestTorchRefused(t *testing.T) {
	for file, want := range map[string]string{
		"legacy.pt": "legacy.pt: is in the format from before torch 1.6, which is not read; save it again with torch: " +
			"torch.save(torch.load(OLD, map_location='cpu'), NEW)",
		"module.pt": `module.pt: pickle, byte 2: GLOBAL: class "torch.nn.modules.linear.Linear" is not on the list of classes that ` +
			`checkpoints need, and nothing in a file is run; save the state dict alone: torch.save(model.state_dict(), …)`,
		"script.pt": "script.pt: is a TorchScript archive, not a checkpoint: save the state dict instead, torch.save(model.state_dict(), …)",
	} {
		_, err := OpenFile(context.Background(), filepath.Join("testdata/torch", file))
		expectError(t, file, err, want)
		if file == "legacy.pt" && !errors.Is(err, ErrLegacyTorch) {
			t.Error("legacy.pt: not ErrLegacyTorch")
		}
	}
}

// pickler writes pickles by hand.
type pickler struct{ bytes.Buffer }

func newPickler() *pickler {
	p := &pickler{}
	p.WriteString("\x80\x02")
	return p
}

func (p *pickler) text(s string) *pickler {
	p.WriteByte('X')
	binary.Write(p, binary.LittleEndian, uint32(len(s)))
	p.WriteString(s)
	return p
}

func (p *pickler) int(v int64) *pickler {
	p.WriteString("\x8a\x08")
	binary.Write(p, binary.LittleEndian, v)
	return p
}

func (p *pickler) raw(s string) *pickler { p.WriteString(s); return p }

func (p *pickler) ints(numbers ...int64) *pickler {
	p.raw("(")
	for _, n := range numbers {
		p.int(n)
	}
	return p.raw("t")
}

// storage is the persistent id of a storage.
func (p *pickler) storage(class, key string, elements int64) *pickler {
	p.raw("(").text("storage").raw("ctorch\n" + class + "\n").text(key).text("cpu").int(elements)
	return p.raw("tQ")
}

// view is a tensor over a storage.
func (p *pickler) view(key string, elements, offset int64, shape, strides []int64) *pickler {
	p.raw("ctorch._utils\n_rebuild_tensor_v2\n(").storage("FloatStorage", key, elements).int(offset)
	return p.ints(shape...).ints(strides...).raw("\x89N").raw("tR")
}

type record struct {
	name string
	data []byte
	zip.FileHeader
}

// torchZip is a file with records stored as torch stores them.
func torchZip(records ...record) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, r := range records {
		h := r.FileHeader
		h.Name = "m/" + r.name
		h.UncompressedSize64, h.CompressedSize64 = uint64(len(r.data)), uint64(len(r.data))
		h.CRC32 = crc32.ChecksumIEEE(r.data)
		var f io.Writer
		if h.Method == zip.Store {
			f, _ = w.CreateRaw(&h)
		} else {
			f, _ = w.CreateHeader(&zip.FileHeader{Name: h.Name, Method: h.Method})
		}
		f.Write(r.data)
	}
	w.Close()
	return b.Bytes()
}

// oneTensor is a checkpoint of the tensor "w" over a storage of 6 floats.
func oneTensor(shape, strides []int64, offset int64) []byte {
	p := newPickler().raw("}").text("w").view("0", 6, offset, shape, strides).raw("s.")
	return torchZip(record{name: "data.pkl", data: p.Bytes()}, record{name: "data/0", data: make([]byte, 24)})
}

func pickleOnly(p *pickler) []byte {
	return torchZip(record{name: "data.pkl", data: p.Bytes()}, record{name: "data/0", data: make([]byte, 24)})
}

func TestBrokenTorch(t *testing.T) {
	good := oneTensor([]int64{2, 3}, []int64{3, 1}, 0)
	deep := newPickler().raw("}").text("a").raw(strings.Repeat("}X\x01\x00\x00\x00a", 40)).view("0", 6, 0, nil, nil).raw(strings.Repeat("s", 41) + ".")
	// d0 holds a tensor; each further dict holds the one before twice: 2^60 paths.
	laughs := newPickler().raw("}").text("t").view("0", 6, 0, nil, nil).raw("sq\x00")
	for i := range byte(60) {
		laughs.raw("}").text("a").raw("h" + string([]byte{i})).raw("s").text("b").raw("h" + string([]byte{i})).raw("s").raw("q" + string([]byte{i + 1}))
	}
	laughs.raw(".")
	self := newPickler().raw("}q\x00").text("me").raw("h\x00s").text("w").view("0", 6, 0, nil, nil).raw("s.")
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"truncated":        {good[:len(good)/2], "its zip directory cannot be read (is the download complete?): zip: not a valid zip file"},
		"empty":            {nil, "is not a torch zip file (it does not start as one): the download is damaged, or it is no checkpoint"},
		"html":             {[]byte("<html>not found"), "is not a torch zip file (it does not start as one): the download is damaged, or it is no checkpoint"},
		"lfs":              {[]byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"},
		"bare pickle":      {[]byte("\x80\x02}."), "is a bare pickle, not a torch zip file: torch.save(model.state_dict(), …) makes one"},
		"other zip":        {torchZip(record{name: "x", data: []byte("x")}), "is a zip file without data.pkl: not a torch checkpoint"},
		"duplicate record": {torchZip(record{name: "data.pkl"}, record{name: "data.pkl"}), `zip record "m/data.pkl" appears twice`},
		"byte order":       {torchZip(record{name: "data.pkl"}, record{name: "byteorder", data: []byte("middle")}), `its byteorder record says "middle"`},
		"compressed": {torchZip(record{name: "data.pkl", FileHeader: zip.FileHeader{Method: zip.Deflate}}),
			`zip record "data.pkl" is compressed; torch stores records plainly, so that they can be read in place: the file was packed again by another program, unpack it and zip it with -0`},
		"no storage": {torchZip(record{name: "data.pkl", data: newPickler().raw("}").text("w").view("7", 6, 0, nil, nil).raw("s.").Bytes()}),
			`pickle, byte 101: BINPERSID: zip record "data/7" is missing`},
		"short storage": {torchZip(record{name: "data.pkl", data: newPickler().raw("}").text("w").view("0", 7, 0, nil, nil).raw("s.").Bytes()}, record{name: "data/0", data: make([]byte, 24)}),
			`pickle, byte 101: BINPERSID: storage "0": its 7 elements need 28 bytes, but its zip record has 24`},
		"huge storage": {torchZip(record{name: "data.pkl", data: newPickler().raw("}").text("w").view("0", math.MaxInt64, 0, nil, nil).raw("s.").Bytes()}, record{name: "data/0"}),
			`pickle, byte 101: BINPERSID: storage "0": 9223372036854775807 elements overflow`},
		"negative storage": {torchZip(record{name: "data.pkl", data: newPickler().raw("}").text("w").view("0", -1, 0, nil, nil).raw("s.").Bytes()}, record{name: "data/0"}),
			`pickle, byte 101: BINPERSID: storage "0": the integer -1 as the number of elements`},
		"traversing storage": {torchZip(record{name: "data.pkl", data: newPickler().raw("}").text("w").view("../../x", 6, 0, nil, nil).raw("s.").Bytes()}),
			`pickle, byte 107: BINPERSID: zip record "data/../../x" is missing`},
		"outside": {oneTensor([]int64{2, 3}, []int64{3, 1}, 1),
			`tensor "w": shape [2 3] with strides [3 1] from element 1 reaches outside its storage "0" of 6 elements`},
		"outside by stride": {oneTensor([]int64{2, 3}, []int64{1 << 62, 1}, 0),
			`tensor "w": shape [2 3] with strides [4611686018427387904 1] from element 0 reaches outside its storage "0" of 6 elements`},
		"outside by far": {oneTensor([]int64{1 << 40, 1}, []int64{1 << 40, 1}, 0),
			`tensor "w": shape [1099511627776 1] with strides [1099511627776 1] from element 0 reaches outside its storage "0" of 6 elements`},
		"overflowing shape": {oneTensor([]int64{1 << 40, 1 << 40}, []int64{1, 1}, 0), `tensor "w": shape [1099511627776 1099511627776] of F32 overflows`},
		"expanded bomb": {oneTensor([]int64{1 << 50, 1}, []int64{0, 1}, 0),
			`tensor "w": shape [1125899906842624 1] with strides [0 1] takes 4503599627370496 bytes, more than its file has`},
		"negative shape": {oneTensor([]int64{-2, 3}, []int64{3, 1}, 0),
			`pickle, byte 159: REDUCE: torch._utils._rebuild_tensor_v2: size: the integer -2 is not a dimension`},
		"ranks": {oneTensor([]int64{2, 3}, []int64{1}, 0), `pickle, byte 149: REDUCE: torch._utils._rebuild_tensor_v2: size has 2 dimensions, stride 1`},
		"os.system": {pickleOnly(newPickler().raw("cos\nsystem\n").raw("(").text("true").raw("tR.")),
			`pickle, byte 2: GLOBAL: class "os.system" is not on the list of classes that checkpoints need, and nothing in a file is run; save the state dict alone: torch.save(model.state_dict(), …)`},
		"os.system by stack": {pickleOnly(newPickler().text("os").text("system").raw("\x93.")),
			`pickle, byte 20: STACK_GLOBAL: class "os.system" is not on the list of classes that checkpoints need, and nothing in a file is run; save the state dict alone: torch.save(model.state_dict(), …)`},
		"unknown opcode":         {pickleOnly(newPickler().raw("i.")), "pickle, byte 2: opcode 0x69 is not one that checkpoints need"},
		"protocol":               {pickleOnly(&pickler{*bytes.NewBufferString("\x80\x09.")}), "pickle, byte 0: PROTO: protocol 9, not 2 to 5"},
		"no stop":                {pickleOnly(newPickler().raw("}")), "pickle, byte 3: the pickle ends too early"},
		"long string":            {pickleOnly(newPickler().raw("X\xff\xff\xff\xffa")), "pickle, byte 2: BINUNICODE: the pickle ends too early"},
		"empty stack":            {pickleOnly(newPickler().raw("R")), "pickle, byte 2: REDUCE: the stack is empty"},
		"below the mark":         {pickleOnly(newPickler().raw("}(s.")), "pickle, byte 4: SETITEM: the stack is empty"},
		"no mark":                {pickleOnly(newPickler().raw("u")), "pickle, byte 2: SETITEMS: there is no mark"},
		"no memo":                {pickleOnly(newPickler().raw("h\x05.")), "pickle, byte 2: BINGET: memo entry 5 was never made"},
		"odd items":              {pickleOnly(newPickler().raw("}(").text("a").raw("u.")), "pickle, byte 10: SETITEMS: a key without a value"},
		"not a dict":             {pickleOnly(newPickler().raw("](").text("a").text("b").raw("u.")), "pickle, byte 16: SETITEMS: a list is not a dict"},
		"called a string":        {pickleOnly(newPickler().text("a").raw(")R.")), `pickle, byte 9: REDUCE: the string "a" is not a class`},
		"called a storage class": {pickleOnly(newPickler().raw("ctorch\nFloatStorage\n)R.")), `pickle, byte 23: REDUCE: "torch.FloatStorage" cannot be applied`},
		"not a state dict":       {pickleOnly(newPickler().raw("].")), "holds a list, not a state dict: torch.save(model.state_dict(), …) makes one"},
		"no tensors":             {pickleOnly(newPickler().raw("}").text("a").int(1).raw("s.")), "holds no tensors"},
		"two of a name": {pickleOnly(newPickler().raw("}").text("a").view("0", 6, 0, nil, nil).raw("s").text("a").view("0", 6, 0, nil, nil).raw("s.")),
			`has two tensors called "a"`},
		"deep":   {pickleOnly(deep), `nests more than 16 deep at "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a"`},
		"laughs": {pickleOnly(laughs), `nests more than 16 deep at "` + strings.Repeat("a.", 16) + `a"`},
		"self":   {pickleOnly(self), `nests more than 16 deep at "` + strings.Repeat("me.", 16) + `me"`},
	} {
		path := filepath.Join(t.TempDir(), "m.bin")
		if err := os.WriteFile(path, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := OpenFile(context.Background(), path)
		expectError(t, name, err, "m.bin: "+c.want)
	}
}

// A dict that holds the one before it many times over, sixteen levels of it, describes more paths than are followed.
func TestPickleOfManyPaths(t *testing.T) {
	p := newPickler().raw("}").text("t").view("0", 6, 0, nil, nil).raw("sq\x00")
	for i := range byte(12) {
		p.raw("}")
		for j := range byte(8) {
			p.text(string([]byte{'a' + j})).raw("h" + string([]byte{i}) + "s")
		}
		p.raw("q" + string([]byte{i + 1}))
	}
	path := filepath.Join(t.TempDir(), "m.bin")
	if err := os.WriteFile(path, pickleOnly(p.raw(".")), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := OpenFile(context.Background(), path)
	expectError(t, "paths", err, "m.bin: describes more than 262144 objects or 33554432 bytes of names")
}

// Applying a callable to one large list again and again must not copy it each time.
func TestPickleOfRepeatedCalls(t *testing.T) {
	p := newPickler().raw("](")
	for range 10000 {
		p.raw("NN\x86")
	}
	p.raw("eq\x00")
	for range 10000 {
		p.raw("ccollections\nOrderedDict\nh\x00\x85R")
	}
	_, err := unpickle(p.raw(".").Bytes(), nil)
	if err == nil || !strings.HasSuffix(err.Error(), "REDUCE: more than 4194304 objects") {
		t.Errorf("got %v", err)
	}
}
