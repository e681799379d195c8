package checkpoint

// The safetensors format: 8 bytes of header length, a JSON header, the data.
// Source: the reference implementation (huggingface/safetensors); as there, tensors must lie one behind the other without
// holes and must fill the file.

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
)

const (
	safetensorsPrefix = 8
	maxHeaderBytes    = 100_000_000 // the reference implementation's limit
	metadataKey       = "__metadata__"
)

// headerEntry is one tensor of a header, as written there.
type headerEntry struct {
	name       string
	dtype      string
	shape      []int64
	begin, end int64 // in the data section
}

// openSafetensors reads the header of a file. On problems the file is still the caller's to close.
func openSafetensors(ctx context.Context, f *dataFile) (*part, Problems) {
	fail := func(format string, args ...any) (*part, Problems) {
		return nil, Problems{{File: f.name, Text: fmt.Sprintf(format, args...)}}
	}
	if err := ctx.Err(); err != nil {
		return nil, Problems{{File: f.name, Text: err.Error(), Err: err}}
	}
	if f.size < safetensorsPrefix {
		return fail("%d bytes are too few for a safetensors file", f.size)
	}
	var prefix [safetensorsPrefix]byte
	if err := f.readFull(prefix[:], 0); err != nil {
		return fail("%v", err)
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	if length > maxHeaderBytes {
		return fail("its header claims %d bytes, more than %d: this is not a safetensors file, or it is damaged", length, maxHeaderBytes)
	}
	if int64(length) > f.size-safetensorsPrefix {
		return fail("its header claims %d bytes, but the file has %d: the download is not complete", length, f.size)
	}
	header := make([]byte, length)
	if err := f.readFull(header, safetensorsPrefix); err != nil {
		return fail("%v", err)
	}
	entries, err := parseHeader(header)
	if err != nil {
		return fail("header: %v", err)
	}
	start := safetensorsPrefix + int64(length)
	tensors, problems := checkEntries(f.name, entries, f.size-start)
	if len(problems) > 0 {
		return nil, problems
	}
	p := &part{file: f}
	for _, t := range tensors {
		t.file, t.offset = f, t.offset+start
		p.tensors = append(p.tensors, t)
	}
	return p, nil
}

// parseHeader decodes the JSON; what the numbers mean is checked by checkEntries.
func parseHeader(header []byte) ([]headerEntry, error) {
	d, err := newStrictDecoder(header)
	if err != nil {
		return nil, err
	}
	var entries []headerEntry
	err = d.object("the header", func(name string) error {
		if name == metadataKey {
			return d.object(metadataKey, func(key string) error {
				_, err := d.string(metadataKey + " " + quoted(key))
				return err
			})
		}
		e, err := parseEntry(d, name)
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	return entries, d.end()
}

func parseEntry(d *strictDecoder, name string) (headerEntry, error) {
	e := headerEntry{name: name}
	what := "tensor " + quoted(name)
	var dtype, shape, offsets bool
	err := d.object(what, func(key string) (err error) {
		switch key {
		case "dtype":
			dtype = true
			e.dtype, err = d.string(what + ": dtype")
		case "shape":
			shape = true
			e.shape, err = d.naturals(what+": shape", maxRank)
		case "data_offsets":
			offsets = true
			var pair []int64
			pair, err = d.naturals(what+": data_offsets", 2)
			if err == nil && len(pair) != 2 {
				err = fmt.Errorf("%s: data_offsets has %d numbers, not 2", what, len(pair))
			}
			if err == nil {
				e.begin, e.end = pair[0], pair[1]
			}
		default:
			err = fmt.Errorf("%s: unknown key %s", what, quoted(key))
		}
		return err
	})
	if err == nil && !(dtype && shape && offsets) {
		err = fmt.Errorf("%s: dtype, shape and data_offsets are needed", what)
	}
	return e, err
}

// checkEntries turns a header into tensors, whose offsets count from the start of the data, or lists all that is wrong.
func checkEntries(file string, entries []headerEntry, dataBytes int64) ([]*tensor, Problems) {
	var problems Problems
	bad := func(name, format string, args ...any) {
		problems = append(problems, Problem{File: file, Tensor: name, Text: fmt.Sprintf(format, args...)})
	}
	tensors := make([]*tensor, 0, len(entries))
	for _, e := range entries {
		dtype := DType(e.dtype)
		if dtype.Size() == 0 {
			bad(e.name, "%s", unknownDType(e.dtype))
			continue
		}
		size, err := byteSize(dtype, e.shape)
		switch {
		case err != nil:
			bad(e.name, "%v", err)
		case e.begin > e.end:
			bad(e.name, "data_offsets [%d, %d] run backwards", e.begin, e.end)
		case e.end > dataBytes:
			bad(e.name, "data_offsets [%d, %d] end outside the %d bytes of data: the download is not complete", e.begin, e.end, dataBytes)
		case e.end-e.begin != size:
			bad(e.name, "data_offsets [%d, %d] hold %d bytes, but %s%v takes %d", e.begin, e.end, e.end-e.begin, dtype, e.shape, size)
		default:
			info := TensorInfo{Name: e.name, DType: dtype, Shape: e.shape}
			tensors = append(tensors, &tensor{TensorInfo: info, offset: e.begin, bytes: size})
		}
	}
	if len(problems) == 0 { // gaps beside broken tensors would be noise
		problems = checkLayout(file, tensors, dataBytes)
	}
	return tensors, problems
}

// checkLayout finds overlaps, holes and data that belongs to no tensor.
func checkLayout(file string, tensors []*tensor, dataBytes int64) Problems {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b *tensor) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.Name, b.Name))
	})
	var problems Problems
	end, before := int64(0), ""
	for _, t := range sorted {
		switch {
		case t.offset < end:
			problems = append(problems, Problem{File: file, Tensor: t.Name,
				Text: fmt.Sprintf("its bytes [%d, %d] overlap those of %s", t.offset, t.offset+t.bytes, quoted(before))})
		case t.offset > end:
			problems = append(problems, Problem{File: file, Tensor: t.Name,
				Text: fmt.Sprintf("bytes [%d, %d] before it belong to no tensor", end, t.offset)})
		}
		if t.offset+t.bytes >= end {
			end, before = t.offset+t.bytes, t.Name
		}
	}
	if end < dataBytes {
		problems = append(problems, Problem{File: file, Text: fmt.Sprintf("%d bytes at its end belong to no tensor", dataBytes-end)})
	}
	return problems
}
