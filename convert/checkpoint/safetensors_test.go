package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// safetensorsFile puts a header in front of data.
func safetensorsFile(header string, dataBytes int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	return append(b, make([]byte, dataBytes)...)
}

func TestBrokenSafetensors(t *testing.T) {
	entry := func(dtype, shape, offsets string) string {
		return fmt.Sprintf(`{"dtype":"%s","shape":%s,"data_offsets":%s}`, dtype, shape, offsets)
	}
	good := `{"a":` + entry("F32", "[2]", "[0,8]") + `}`
	for name, c := range map[string]struct {
		data []byte
		want string // after "m.safetensors: ", lines
	}{
		"empty":           {nil, "0 bytes are too few for a safetensors file"},
		"five bytes":      {[]byte("hello"), "5 bytes are too few for a safetensors file"},
		"header of 2^60":  {binary.LittleEndian.AppendUint64(nil, 1<<60), "its header claims 1152921504606846976 bytes, more than 100000000: this is not a safetensors file, or it is damaged"},
		"header of 2^63":  {binary.LittleEndian.AppendUint64(nil, 1<<63), "its header claims 9223372036854775808 bytes, more than 100000000: this is not a safetensors file, or it is damaged"},
		"header too long": {binary.LittleEndian.AppendUint64(nil, 99_999_999), "its header claims 99999999 bytes, but the file has 8: the download is not complete"},
		"header cut":      {safetensorsFile(good, 8)[:30], "its header claims 54 bytes, but the file has 30: the download is not complete"},
		"data cut":        {safetensorsFile(good, 7), `tensor "a": data_offsets [0, 8] end outside the 7 bytes of data: the download is not complete`},
		"not JSON":        {safetensorsFile("hello", 0), "header: the JSON is broken at byte 0: invalid character 'h' looking for beginning of value"},
		"not UTF-8":       {safetensorsFile("{\"\xff\":1}", 0), "header: the JSON is not UTF-8"},
		"JSON ends":       {safetensorsFile(`{"a":`, 0), "header: the JSON ends too early"},
		"list":            {safetensorsFile(`[]`, 0), "header: the header: found [ where { was expected"},
		"two values":      {safetensorsFile(`{} {}`, 0), "header: something follows the JSON at byte 4"},
		"duplicate":       {safetensorsFile(`{"a":`+entry("F32", "[2]", "[0,8]")+`,"a":`+entry("F32", "[2]", "[0,8]")+`}`, 8), `header: the header: key "a" appears twice`},
		"duplicate field": {safetensorsFile(`{"a":{"dtype":"F32","dtype":"F16"}}`, 8), `header: tensor "a": key "dtype" appears twice`},
		"unknown field":   {safetensorsFile(`{"a":{"type":"F32"}}`, 8), `header: tensor "a": unknown key "type"`},
		"missing field":   {safetensorsFile(`{"a":{"dtype":"F32","shape":[]}}`, 4), `header: tensor "a": dtype, shape and data_offsets are needed`},
		"metadata":        {safetensorsFile(`{"__metadata__":{"n":1}}`, 0), `header: __metadata__ "n": found 1 where a string was expected`},
		"dtype":           {safetensorsFile(`{"a":`+entry("F8_E4M3", "[2]", "[0,2]")+`}`, 2), `tensor "a": dtype "F8_E4M3" is not known (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)`},
		"dtype a number":  {safetensorsFile(`{"a":{"dtype":1}}`, 2), `header: tensor "a": dtype: found 1 where a string was expected`},
		"negative shape":  {safetensorsFile(`{"a":`+entry("F32", "[-2]", "[0,8]")+`}`, 8), `header: tensor "a": shape: -2 is not a whole number from 0 to 2^63-1`},
		"broken shape":    {safetensorsFile(`{"a":`+entry("F32", "[1.5]", "[0,8]")+`}`, 8), `header: tensor "a": shape: 1.5 is not a whole number from 0 to 2^63-1`},
		"shape of 2^63":   {safetensorsFile(`{"a":`+entry("F32", "[9223372036854775808]", "[0,8]")+`}`, 8), `header: tensor "a": shape: 9223372036854775808 is not a whole number from 0 to 2^63-1`},
		"shape overflows": {safetensorsFile(`{"a":`+entry("F32", "[4294967296,4294967296]", "[0,0]")+`}`, 0), `tensor "a": shape [4294967296 4294967296] of F32 overflows`},
		"bytes overflow":  {safetensorsFile(`{"a":`+entry("F64", "[2305843009213693952]", "[0,0]")+`}`, 0), `tensor "a": shape [2305843009213693952] of F64 overflows`},
		"rank":            {safetensorsFile(`{"a":`+entry("F32", "["+strings.Repeat("1,", 64)+"1]", "[0,4]")+`}`, 4), `header: tensor "a": shape: more than 64 numbers`},
		"three offsets":   {safetensorsFile(`{"a":`+entry("F32", "[2]", "[0,8,9]")+`}`, 8), `header: tensor "a": data_offsets: more than 2 numbers`},
		"one offset":      {safetensorsFile(`{"a":`+entry("F32", "[2]", "[0]")+`}`, 8), `header: tensor "a": data_offsets has 1 numbers, not 2`},
		"backwards":       {safetensorsFile(`{"a":`+entry("F32", "[2]", "[8,0]")+`}`, 8), `tensor "a": data_offsets [8, 0] run backwards`},
		"size":            {safetensorsFile(`{"a":`+entry("F32", "[3]", "[0,8]")+`}`, 8), `tensor "a": data_offsets [0, 8] hold 8 bytes, but F32[3] takes 12`},
		"overlap":         {safetensorsFile(`{"b":`+entry("F32", "[2]", "[0,8]")+`,"a":`+entry("F32", "[2]", "[4,12]")+`}`, 12), `tensor "a": its bytes [4, 12] overlap those of "b"`},
		"inside":          {safetensorsFile(`{"b":`+entry("F32", "[3]", "[0,12]")+`,"a":`+entry("F32", "[1]", "[4,8]")+`}`, 12), `tensor "a": its bytes [4, 8] overlap those of "b"`},
		"the same twice":  {safetensorsFile(`{"b":`+entry("F32", "[2]", "[0,8]")+`,"a":`+entry("F32", "[2]", "[0,8]")+`}`, 8), `tensor "b": its bytes [0, 8] overlap those of "a"`},
		"hole":            {safetensorsFile(`{"a":`+entry("F32", "[1]", "[4,8]")+`}`, 8), `tensor "a": bytes [0, 4] before it belong to no tensor`},
		"trailing":        {safetensorsFile(good, 9), `1 bytes at its end belong to no tensor`},
		"several": {safetensorsFile(`{"c":`+entry("F32", "[2]", "[0,9]")+`,"b":`+entry("F33", "[2]", "[0,8]")+`,"a":`+entry("F32", "[2]", "[9,17]")+`}`, 8),
			`tensor "a": data_offsets [9, 17] end outside the 8 bytes of data: the download is not complete` + "\n" +
				`m.safetensors: tensor "b": dtype "F33" is not known (known: F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL)` + "\n" +
				`m.safetensors: tensor "c": data_offsets [0, 9] end outside the 8 bytes of data: the download is not complete`},
		"control characters": {safetensorsFile(`{"a\u001b\n":`+entry("F32", "[3]", "[0,8]")+`}`, 8), `tensor "a\x1b\n": data_offsets [0, 8] hold 8 bytes, but F32[3] takes 12`},
	} {
		path := filepath.Join(t.TempDir(), "m.safetensors")
		if err := os.WriteFile(path, c.data, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := OpenFile(context.Background(), path)
		expectError(t, name, err, "m.safetensors: "+c.want)
		var problems Problems
		if !errors.As(err, &problems) {
			t.Errorf("%s: not Problems", name)
		}
	}
}

func TestManyProblemsAreCut(t *testing.T) {
	var header strings.Builder
	for i := range 100 {
		fmt.Fprintf(&header, `,"t%03d":{"dtype":"X","shape":[],"data_offsets":[0,0]}`, i)
	}
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := os.WriteFile(path, safetensorsFile("{"+header.String()[1:]+"}", 0), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := OpenFile(context.Background(), path)
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != shownProblems+1 || lines[shownProblems] != "… and 60 more problems" {
		t.Errorf("%d lines, the last is %s", len(lines), lines[len(lines)-1])
	}
}

// drawTensors makes tensors of any dtype and shape with any bytes.
func drawTensors(t *rapid.T) []TensorData {
	var tensors []TensorData
	for i := range rapid.IntRange(0, 8).Draw(t, "tensors") {
		info := TensorInfo{
			Name:  fmt.Sprintf("%s.%d", rapid.StringMatching(`[a-zé"\\<]{0,6}`).Draw(t, "name"), i),
			DType: rapid.SampledFrom(dtypes).Draw(t, "dtype"),
			Shape: rapid.SliceOfN(rapid.Int64Range(0, 7), 0, 4).Draw(t, "shape"),
		}
		data := rapid.SliceOfN(rapid.Byte(), int(info.Bytes()), int(info.Bytes())).Draw(t, "data")
		tensors = append(tensors, TensorData{TensorInfo: info, Data: data})
	}
	return tensors
}

func TestWriteAndRead(t *testing.T) {
	folder := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		tensors := drawTensors(t)
		if len(tensors) > 0 { // one of them by a stream
			last := tensors[len(tensors)-1]
			tensors[len(tensors)-1] = TensorData{TensorInfo: last.TensorInfo, Stream: func(w io.Writer) error {
				_, err := w.Write(last.Data)
				return err
			}}
			defer func() { tensors[len(tensors)-1] = last }()
		}
		var b bytes.Buffer
		if err := WriteSafetensors(&b, tensors); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, "m.safetensors")
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := OpenFile(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if len(c.Names()) != len(tensors) || !slices.IsSorted(c.Names()) {
			t.Fatalf("names %q", c.Names())
		}
		for _, want := range tensors {
			info, ok := c.Lookup(want.Name)
			if !ok || info.DType != want.DType || !slices.Equal(info.Shape, want.Shape) {
				t.Fatalf("%v, want %v", info, want.TensorInfo)
			}
			checkValues(t, c, want)
		}
	})
}

// checkValues compares ReadRaw and ReadFloat32, in pieces, with the data of a tensor.
func checkValues(t *rapid.T, c Checkpoint, want TensorData) {
	ctx := context.Background()
	data := want.Data
	if data == nil {
		var b bytes.Buffer
		if err := want.Stream(&b); err != nil {
			t.Fatal(err)
		}
		data = b.Bytes()
	}
	offset := rapid.IntRange(0, len(data)).Draw(t, "offset")
	raw := make([]byte, rapid.IntRange(0, len(data)-offset).Draw(t, "length"))
	if err := c.ReadRaw(ctx, want.Name, int64(offset), raw); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, data[offset:offset+len(raw)]) {
		t.Fatalf("%s: raw bytes from %d differ", want.Name, offset)
	}
	n := int(want.Elements())
	values := make([]float32, n)
	for first := 0; first < n; {
		count := rapid.IntRange(1, n-first).Draw(t, "count")
		if err := c.ReadFloat32(ctx, want.Name, int64(first), values[first:first+count]); err != nil {
			t.Fatal(err)
		}
		first += count
	}
	whole := make([]float32, n)
	widen(want.DType, whole, data)
	for i := range whole {
		if math.Float32bits(whole[i]) != math.Float32bits(values[i]) {
			t.Fatalf("%s[%d] = %v in pieces, %v at once", want.Name, i, values[i], whole[i])
		}
	}
}

func TestReadErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := os.WriteFile(path, safetensorsFile(`{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}`, 8), 0o644); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, path)
	ctx := context.Background()
	for _, r := range []struct {
		first int64
		n     int
	}{{-1, 1}, {0, 5}, {4, 1}, {5, 0}, {math.MaxInt64, 1}} {
		if err := c.ReadFloat32(ctx, "a", r.first, make([]float32, r.n)); !errors.Is(err, ErrRange) {
			t.Errorf("ReadFloat32 from %d, %d elements: %v", r.first, r.n, err)
		}
		if err := c.ReadRaw(ctx, "a", 2*min(r.first, 1<<61), make([]byte, 2*r.n)); !errors.Is(err, ErrRange) {
			t.Errorf("ReadRaw from %d, %d elements: %v", r.first, r.n, err)
		}
	}
	if err := c.ReadFloat32(ctx, "b", 0, nil); !errors.Is(err, ErrUnknownTensor) {
		t.Errorf("unknown tensor: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.ReadFloat32(cancelled, "a", 0, make([]float32, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.Truncate(path, 66); err != nil {
		t.Fatal(err)
	}
	err := c.ReadFloat32(ctx, "a", 0, make([]float32, 4))
	expectError(t, "truncated while open", err, `tensor "a": reading `+path+`: it became shorter while it was being read`)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadFloat32(ctx, "a", 0, make([]float32, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestWriteRefuses(t *testing.T) {
	f32 := TensorInfo{Name: "a", DType: F32, Shape: []int64{2}}
	for want, tensors := range map[string][]TensorData{
		`tensor list: tensor "a": is listed twice`:                                {{TensorInfo: f32, Data: make([]byte, 8)}, {TensorInfo: f32, Data: make([]byte, 8)}},
		`writing safetensors: tensor "a" has 7 bytes of data, but F32[2] takes 8`: {{TensorInfo: f32, Data: make([]byte, 7)}},
		`writing safetensors: tensor "a": its stream wrote 3 bytes, not 8`:        {{TensorInfo: f32, Stream: func(w io.Writer) error { _, err := w.Write([]byte("abc")); return err }}},
		`writing safetensors: a tensor cannot be called __metadata__`:             {{TensorInfo: TensorInfo{Name: "__metadata__", DType: F32, Shape: []int64{2}}, Data: make([]byte, 8)}},
		`tensor list: tensor "a": shape [-1] has a negative dimension`:            {{TensorInfo: TensorInfo{Name: "a", DType: F32, Shape: []int64{-1}}}},
	} {
		expectError(t, "write", WriteSafetensors(io.Discard, tensors), want)
	}
}

// widening is exact: every half and every bfloat16 against arithmetic, among them subnormal numbers, infinities and NaNs.
func TestWidenExactly(t *testing.T) {
	raw := make([]byte, 2<<16)
	for i := range 1 << 16 {
		binary.LittleEndian.PutUint16(raw[2*i:], uint16(i))
	}
	half, brain := make([]float32, 1<<16), make([]float32, 1<<16)
	widen(F16, half, raw)
	widen(BF16, brain, raw)
	for i := range 1 << 16 {
		sign, exponent, fraction := 1-2*float64(i>>15), i>>10&31, float64(i&1023)
		switch {
		case exponent == 31 && fraction != 0:
			if b := math.Float32bits(half[i]); half[i] == half[i] || b>>31 != uint32(i>>15) || b&0x7fffff != uint32(i&1023)<<13 {
				t.Fatalf("F16 %#04x is %#x", i, b)
			}
		case exponent == 31:
			if half[i] != float32(math.Inf(int(sign))) {
				t.Fatalf("F16 %#04x is %v", i, half[i])
			}
		default:
			want := sign * math.Ldexp(1024+fraction, exponent-25)
			if exponent == 0 {
				want = sign * math.Ldexp(fraction, -24)
			}
			if float64(half[i]) != want || math.Signbit(float64(half[i])) != (i>>15 == 1) {
				t.Fatalf("F16 %#04x is %v, want %v", i, half[i], want)
			}
			if got := halfBits(want); int(got) != i && want != 0 {
				t.Fatalf("halfBits(%v) = %#04x, want %#04x", want, got, i)
			}
		}
		if math.Float32bits(brain[i]) != uint32(i)<<16 {
			t.Fatalf("BF16 %#04x is %#x", i, math.Float32bits(brain[i]))
		}
	}
	wide := []float64{1, -2.5, math.Inf(1), 0x1p-149, 0x1.fffffep127, 1 + 0x1p-24, 1 + 0x1p-23 + 0x1p-24, 1e300}
	narrow := []float32{1, -2.5, float32(math.Inf(1)), 0x1p-149, 0x1.fffffep127, 1, 1 + 0x1p-22, float32(math.Inf(1))}
	raw = nil
	for _, v := range wide {
		raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(v))
	}
	got := make([]float32, len(wide))
	widen(F64, got, raw)
	if !slices.Equal(got, narrow) {
		t.Errorf("F64: %v, want %v", got, narrow)
	}
}

func BenchmarkReadFloat32(b *testing.B) {
	const n = 16 << 20
	for _, dtype := range []DType{F32, F16, BF16} {
		b.Run(string(dtype), func(b *testing.B) {
			info := TensorInfo{Name: "a", DType: dtype, Shape: []int64{n}}
			path := filepath.Join(b.TempDir(), "m.safetensors")
			f, err := os.Create(path)
			if err != nil {
				b.Fatal(err)
			}
			err = WriteSafetensors(f, []TensorData{{TensorInfo: info, Stream: func(w io.Writer) error {
				return fillRandom(context.Background(), w, info, 1)
			}}})
			if err := errors.Join(err, f.Close()); err != nil {
				b.Fatal(err)
			}
			c := mustOpen(b, path)
			dst := make([]float32, 1<<18)
			b.SetBytes(info.Bytes())
			for b.Loop() {
				for first := int64(0); first < n; first += int64(len(dst)) {
					if err := c.ReadFloat32(context.Background(), "a", first, dst); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
