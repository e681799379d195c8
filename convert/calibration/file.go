package calibration

// The file: safetensors. For each layer NAME ("decoder/layers.0.mlp.down_proj") it holds NAME:rows [1], NAME:maximum [k],
// NAME:square [k] and, where it was gathered, NAME:hessian [k, k], all F32; docs/convert.md says what they are.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"glimpse/convert/checkpoint"
)

// maxWidth bounds k, so that a file's own word is not taken for how much memory a layer needs.
const maxWidth = 1 << 20

// Write puts the statistics into a new file at path, whole or not at all.
func (s *Statistics) Write(path string) (err error) {
	var list []checkpoint.TensorData
	for _, key := range s.Keys() {
		l := s.layers[key]
		k := int64(len(l.Square))
		add := func(part string, values []float32, shape ...int64) {
			list = append(list, checkpoint.TensorData{
				TensorInfo: checkpoint.TensorInfo{Name: key + ":" + part, DType: "F32", Shape: shape},
				Stream:     func(w io.Writer) error { return writeFloats(w, values) },
			})
		}
		add("rows", []float32{float32(l.Rows)}, 1)
		add("maximum", l.Maximum, k)
		add("square", l.Square, k)
		if l.Hessian != nil {
			add("hessian", l.Hessian, k, k)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".calibration-")
	if err != nil {
		return fmt.Errorf("write calibration: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write calibration %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(checkpoint.WriteSafetensors(f, list), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func writeFloats(w io.Writer, values []float32) error {
	buf := make([]byte, 0, 1<<16)
	for len(values) > 0 {
		n := min(len(values), cap(buf)/4)
		buf = buf[:0]
		for _, v := range values[:n] {
			buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(v))
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		values = values[n:]
	}
	return nil
}

// Read reads the file that Write wrote. Hessians are read too: memory is what the file takes.
func Read(ctx context.Context, path string) (*Statistics, error) {
	s, err := read(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("read calibration %s: %w", path, err)
	}
	return s, nil
}

func read(ctx context.Context, path string) (_ *Statistics, err error) {
	cp, err := checkpoint.OpenFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cp.Close()) }()
	s := &Statistics{layers: map[string]*Layer{}}
	for _, name := range cp.Names() {
		at := strings.LastIndexByte(name, ':')
		if at < 0 {
			return nil, fmt.Errorf("%q is no statistic of a layer", name)
		}
		key, part := name[:at], name[at+1:]
		info, _ := cp.Lookup(name)
		if err := checkShape(part, info.Shape); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		values := make([]float32, info.Elements())
		if err := cp.ReadFloat32(ctx, name, 0, values); err != nil {
			return nil, err
		}
		l := s.layers[key]
		if l == nil {
			l = &Layer{}
			s.layers[key] = l
		}
		switch part {
		case "rows":
			if !(values[0] >= 1 && values[0] < 1<<40) {
				return nil, fmt.Errorf("%s is %v", name, values[0])
			}
			l.Rows = int64(values[0])
		case "maximum":
			l.Maximum = values
		case "square":
			l.Square = values
		case "hessian":
			l.Hessian = values
		}
	}
	for _, key := range s.Keys() {
		if err := s.layers[key].check(); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	if len(s.layers) == 0 {
		return nil, errors.New("it holds no layers")
	}
	return s, nil
}

func checkShape(part string, shape []int64) error {
	ok := false
	switch part {
	case "rows":
		ok = len(shape) == 1 && shape[0] == 1
	case "maximum", "square":
		ok = len(shape) == 1 && shape[0] >= 1 && shape[0] <= maxWidth
	case "hessian":
		ok = len(shape) == 2 && shape[0] == shape[1] && shape[0] >= 1 && shape[0] <= maxWidth
	default:
		return fmt.Errorf("%q is no statistic", part)
	}
	if !ok {
		return fmt.Errorf("shape %v", shape)
	}
	return nil
}
