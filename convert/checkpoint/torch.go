package checkpoint

// The zip format of torch.save (torch 1.6 and later): data.pkl describes the objects, each storage is a stored (never
// compressed) record data/<key>, so that a tensor is a range of the file and is read from there when it is wanted.
// Source: torch/serialization.py, caffe2/serialize/inline_container.cc.

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// torchFile is a zip file under inspection.
type torchFile struct {
	file     *dataFile
	prefix   string // the folder inside of the archive
	records  map[string]*zip.File
	swap     bool
	storages map[*pickleStorage]storageSpan
	byKey    map[string]*pickleStorage
}

// storageSpan is where a storage lies in the file.
type storageSpan struct{ offset, bytes int64 }

// openTorch reads the directory and the pickle of a file. On problems the file is still the caller's to close.
func openTorch(ctx context.Context, f *dataFile) (*part, Problems) {
	fail := func(err error) (*part, Problems) {
		return nil, Problems{{File: f.name, Text: err.Error(), Err: err}}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	t := &torchFile{file: f, storages: map[*pickleStorage]storageSpan{}, byKey: map[string]*pickleStorage{}}
	if err := t.openArchive(); err != nil {
		return fail(err)
	}
	data, err := t.readRecord("data.pkl", maxPickleBytes)
	if err != nil {
		return fail(err)
	}
	root, err := unpickle(data, t.storage)
	if err != nil {
		return fail(err)
	}
	named, err := flatten(root)
	if err != nil {
		return fail(err)
	}
	p := &part{file: f}
	var problems Problems
	for _, n := range named {
		located, err := t.locate(n.name, n.tensor)
		if err != nil {
			problems = append(problems, Problem{File: f.name, Tensor: n.name, Text: err.Error()})
			continue
		}
		p.tensors = append(p.tensors, located)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return p, nil
}

// openArchive reads the zip directory and the small records that say how to read the rest.
func (t *torchFile) openArchive() error {
	archive, err := zip.NewReader(t.file, t.file.size)
	if err != nil {
		return fmt.Errorf("its zip directory cannot be read (is the download complete?): %w", err)
	}
	t.records = make(map[string]*zip.File, len(archive.File))
	for _, record := range archive.File {
		if _, twice := t.records[record.Name]; twice {
			return fmt.Errorf("zip record %s appears twice", quoted(record.Name))
		}
		t.records[record.Name] = record
	}
	var pickles []string
	for name := range t.records {
		if path.Base(name) == "data.pkl" && strings.Count(name, "/") <= 1 {
			pickles = append(pickles, name)
		}
	}
	switch len(pickles) {
	case 0:
		return errors.New("is a zip file without data.pkl: not a torch checkpoint")
	case 1:
		t.prefix = strings.TrimSuffix(pickles[0], "data.pkl")
	default:
		slices.Sort(pickles)
		return fmt.Errorf("holds several data.pkl: %s", strings.Join(pickles, ", "))
	}
	if t.records[t.prefix+"constants.pkl"] != nil {
		return errors.New("is a TorchScript archive, not a checkpoint: save the state dict instead, torch.save(model.state_dict(), …)")
	}
	return t.readByteOrder()
}

// readByteOrder: files without the record are older, and little-endian.
func (t *torchFile) readByteOrder() error {
	if t.records[t.prefix+"byteorder"] == nil {
		return nil
	}
	order, err := t.readRecord("byteorder", 16)
	if err != nil {
		return err
	}
	switch string(order) {
	case "little":
	case "big":
		t.swap = true
	default:
		return fmt.Errorf("its byteorder record says %s", quoted(string(order)))
	}
	return nil
}

// record finds a record's bytes in the file.
func (t *torchFile) record(name string) (storageSpan, error) {
	r := t.records[t.prefix+name]
	if r == nil {
		return storageSpan{}, fmt.Errorf("zip record %s is missing", quoted(name))
	}
	const encrypted = 1
	switch {
	case r.Flags&encrypted != 0:
		return storageSpan{}, fmt.Errorf("zip record %s is encrypted", quoted(name))
	case r.Method != zip.Store:
		return storageSpan{}, fmt.Errorf("zip record %s is compressed; torch stores records plainly, so that they can be read in place: "+
			"the file was packed again by another program, unpack it and zip it with -0", quoted(name))
	case r.CompressedSize64 != r.UncompressedSize64:
		return storageSpan{}, fmt.Errorf("zip record %s has two different sizes, %d and %d", quoted(name), r.CompressedSize64, r.UncompressedSize64)
	}
	offset, err := r.DataOffset()
	if err != nil {
		return storageSpan{}, fmt.Errorf("zip record %s: %w", quoted(name), err)
	}
	if offset < 0 || offset > t.file.size || r.UncompressedSize64 > uint64(t.file.size-offset) {
		return storageSpan{}, fmt.Errorf("zip record %s (%d bytes at %d) ends outside the file of %d bytes",
			quoted(name), r.UncompressedSize64, offset, t.file.size)
	}
	return storageSpan{offset: offset, bytes: int64(r.UncompressedSize64)}, nil
}

// readRecord reads a small record whole. Its checksum is not looked at: torch can be told not to compute them.
func (t *torchFile) readRecord(name string, most int64) ([]byte, error) {
	span, err := t.record(name)
	if err != nil {
		return nil, err
	}
	if span.bytes > most {
		return nil, fmt.Errorf("zip record %s has %d bytes, more than %d", quoted(name), span.bytes, most)
	}
	data := make([]byte, span.bytes)
	return data, t.file.readFull(data, span.offset)
}

// storage makes the value of a persistent id: ("storage", class, key, location, elements).
func (t *torchFile) storage(id any) (any, error) {
	fields, ok := id.(pickleTuple)
	if !ok || len(fields) != 5 || fields[0] != any("storage") {
		return nil, errors.New(`the persistent id is not ("storage", class, key, location, elements)`)
	}
	class, ok := fields[1].(pickleClass)
	dtype, known := storageClasses[class]
	if !ok || !known {
		return nil, fmt.Errorf("%s is not a storage class", describe(fields[1]))
	}
	var key string
	switch k := fields[2].(type) {
	case string:
		key = k
	case int64:
		key = strconv.FormatInt(k, 10)
	default:
		return nil, fmt.Errorf("%s as a storage's key", describe(k))
	}
	elements, ok := fields[4].(int64)
	if !ok || elements < 0 {
		return nil, fmt.Errorf("storage %s: %s as the number of elements", quoted(key), describe(fields[4]))
	}
	size, ok := multiply(elements, max(dtype.Size(), 1))
	if !ok {
		return nil, fmt.Errorf("storage %s: %d elements overflow", quoted(key), elements)
	}
	if s := t.byKey[key]; s != nil && s.dtype == dtype && s.bytes == size {
		return s, nil // named again by a tensor that shares it
	}
	span, err := t.record("data/" + key)
	if err != nil {
		return nil, err
	}
	if size != span.bytes {
		return nil, fmt.Errorf("storage %s: its %d elements need %d bytes, but its zip record has %d", quoted(key), elements, size, span.bytes)
	}
	s := &pickleStorage{key: key, dtype: dtype, bytes: size}
	t.storages[s], t.byKey[key] = span, s
	return s, nil
}

// smallTensor is what a tensor may have in bytes even if its storage is smaller (expanded views).
const smallTensor = 1 << 20

// locate checks a view against its storage.
func (t *torchFile) locate(name string, v *pickleTensor) (*tensor, error) {
	info := TensorInfo{Name: name, DType: v.dtype, Shape: v.shape}
	bytes, err := byteSize(v.dtype, v.shape)
	if err != nil {
		return nil, err
	}
	span, ok := t.storages[v.storage]
	if !ok { // wrapped by makeTypedStorage
		span = t.storages[t.byKey[v.storage.key]]
	}
	size := v.dtype.Size()
	out := &tensor{TensorInfo: info, file: t.file, offset: span.offset, bytes: bytes, swap: t.swap && size > 1}
	if bytes == 0 {
		return out, nil
	}
	last, ok := lastElement(v)
	if !ok || last >= span.bytes/size {
		return nil, fmt.Errorf("shape %v with strides %v from element %d reaches outside its storage %s of %d elements",
			v.shape, v.strides, v.offset, quoted(v.storage.key), span.bytes/size)
	}
	out.offset += v.offset * size
	out.extent = (last - v.offset + 1) * size
	if !rowMajor(v.shape, v.strides) {
		out.strides = v.strides
		if most := max(t.file.size, smallTensor); bytes > most { // an expanded view of little data
			return nil, fmt.Errorf("shape %v with strides %v takes %d bytes, more than its file has", v.shape, v.strides, bytes)
		}
	}
	return out, nil
}

// lastElement is the index in the storage of the view's last element; false when it overflows.
func lastElement(v *pickleTensor) (int64, bool) {
	last := v.offset
	for i, n := range v.shape {
		step, ok := multiply(n-1, v.strides[i])
		if !ok || last > 1<<62-step || step > 1<<62 {
			return 0, false
		}
		last += step
	}
	return last, true
}

// rowMajor is true of a view whose elements lie in the file in the order in which they are read.
func rowMajor(shape, strides []int64) bool {
	expected := int64(1)
	for i, n := range slices.Backward(shape) {
		if n == 1 {
			continue // its stride is never taken
		}
		if strides[i] != expected {
			return false
		}
		expected *= n
	}
	return true
}

// legacyMagic starts the format of torch before 1.6: a pickle of a 10-byte number.
var legacyMagic = []byte("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")

// isLegacyTorch knows the formats before zip: tar (until 0.1.10), and a row of pickles (until 1.5).
func isLegacyTorch(head []byte) bool {
	tar := len(head) >= 262 && string(head[257:262]) == "ustar"
	return tar || bytes.HasPrefix(head, legacyMagic)
}

// isPickle is true of what may be a pickle without torch's zip file around it.
func isPickle(head []byte) bool {
	return len(head) > 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5
}

const legacyText = "is in the format from before torch 1.6, which is not read; save it again with torch: " +
	"torch.save(torch.load(OLD, map_location='cpu'), NEW)"
