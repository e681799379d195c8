package checkpoint

// Writing safetensors: for synthetic checkpoints and for tests.

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// TensorData is a tensor to be written: either its bytes, or a function that writes them.
type TensorData struct {
	TensorInfo
	Data   []byte                  // little-endian, row-major
	Stream func(w io.Writer) error // used when Data is nil; must write exactly Bytes()
}

// WriteSafetensors writes a file as the reference implementation does: the larger elements first (so that all are
// aligned), names in order, the header padded to 8 bytes, and the metadata that transformers asks for. Nothing is written
// when the list is not sound.
func WriteSafetensors(w io.Writer, tensors []TensorData) error {
	infos := make([]TensorInfo, len(tensors))
	for i, t := range tensors {
		infos[i] = t.TensorInfo
	}
	if _, err := NewList(infos); err != nil {
		return err
	}
	for _, t := range tensors {
		if t.Name == metadataKey {
			return fmt.Errorf("writing safetensors: a tensor cannot be called %s", metadataKey)
		}
		if t.Stream == nil && int64(len(t.Data)) != t.Bytes() {
			return fmt.Errorf("writing safetensors: tensor %s has %d bytes of data, but %s%v takes %d",
				quoted(t.Name), len(t.Data), t.DType, t.Shape, t.Bytes())
		}
	}
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b TensorData) int {
		return cmp.Or(cmp.Compare(b.DType.Size(), a.DType.Size()), cmp.Compare(a.Name, b.Name))
	})
	header, err := encodeHeader(sorted)
	if err != nil {
		return fmt.Errorf("writing safetensors: %w", err)
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	if _, err := buffered.Write(header); err != nil {
		return fmt.Errorf("writing safetensors: %w", err)
	}
	for _, t := range sorted {
		if err := t.write(buffered); err != nil {
			return fmt.Errorf("writing safetensors: tensor %s: %w", quoted(t.Name), err)
		}
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("writing safetensors: %w", err)
	}
	return nil
}

func encodeHeader(sorted []TensorData) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, safetensorsPrefix))
	b.WriteString(`{"` + metadataKey + `":{"format":"pt"}`)
	offset := int64(0)
	for _, t := range sorted {
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, err
		}
		shape, err := json.Marshal(append([]int64{}, t.Shape...)) // never null
		if err != nil {
			return nil, err
		}
		end := offset + t.Bytes()
		if end < offset {
			return nil, fmt.Errorf("all tensors together overflow")
		}
		fmt.Fprintf(&b, `,%s:{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}`, name, t.DType, shape, offset, end)
		offset = end
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	header := b.Bytes()
	if len(header)-safetensorsPrefix > maxHeaderBytes {
		return nil, fmt.Errorf("the header of %d tensors is larger than %d bytes", len(sorted), maxHeaderBytes)
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-safetensorsPrefix))
	return header, nil
}

func (t *TensorData) write(w io.Writer) error {
	if t.Data != nil || t.Stream == nil {
		_, err := w.Write(t.Data)
		return err
	}
	counted := &countingWriter{w: w}
	if err := t.Stream(counted); err != nil {
		return err
	}
	if counted.n != t.Bytes() {
		return fmt.Errorf("its stream wrote %d bytes, not %d", counted.n, t.Bytes())
	}
	return nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
