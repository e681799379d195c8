// Payloads: how a symbolic weight becomes bytes, a few megabytes at a time.

package blocks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"glimpse/convert/calibration"
	"glimpse/convert/onnx"
	"glimpse/convert/quantize"
)

// chunkElements is how many float32 values a payload holds at once (16 MiB).
const chunkElements = 4 << 20

// plainPayload stores the weight element by element, as float32 or float16.
type plainPayload struct {
	w     Weight
	dtype onnx.DType
}

func (p *plainPayload) String() string { return p.w.String() }

// Half is the same weight stored as float16.
func (p *plainPayload) Half() onnx.Payload { return &plainPayload{p.w, onnx.Float16} }

func (p *plainPayload) Produce(ctx context.Context, sink onnx.Sink) error {
	defer p.w.src.release()
	total, size := p.w.Elements(), p.dtype.Size()
	values := make([]float32, min(total, chunkElements))
	raw := make([]byte, int64(len(values))*size)
	for first := int64(0); first < total; first += int64(len(values)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		values = values[:min(int64(len(values)), total-first)]
		if err := p.w.src.read(ctx, first, values); err != nil {
			return err
		}
		raw = raw[:int64(len(values))*size]
		if p.dtype == onnx.Float16 {
			if n := quantize.Float16(raw, values); n > 0 {
				return fmt.Errorf("%d values do not fit float16: convert with --precision fp32", n)
			}
		} else {
			for i, v := range values {
				binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
			}
		}
		if err := sink.WriteAt(0, raw, first*size); err != nil {
			return err
		}
	}
	return nil
}

// rowsPerChunk is how many rows of k elements a chunk takes, at least one.
func rowsPerChunk(k int64) int64 { return max(1, chunkElements/max(k, 1)) }

// eachRows reads the [n, k] weight in chunks of whole rows.
func eachRows(ctx context.Context, w Weight, visit func(row int64, values []float32) error) error {
	n, k := w.shape[0], w.shape[1]
	step := rowsPerChunk(k)
	values := make([]float32, min(n, step)*k)
	for row := int64(0); row < n; row += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		values = values[:min(step, n-row)*k]
		if err := w.src.read(ctx, row*k, values); err != nil {
			return err
		}
		if err := visit(row, values); err != nil {
			return fmt.Errorf("rows %d..%d: %w", row, row+int64(len(values))/k-1, err)
		}
	}
	return nil
}

// int8RowsPayload makes [n, k] int8 and [n] scales: symmetric, one scale for each output channel.
type int8RowsPayload struct{ w Weight }

func (p *int8RowsPayload) String() string { return "int8(" + p.w.String() + ")" }

func (p *int8RowsPayload) Produce(ctx context.Context, sink onnx.Sink) error {
	defer p.w.src.release()
	n, k := p.w.shape[0], p.w.shape[1]
	rows := min(n, rowsPerChunk(k))
	levels, scales := make([]int8, rows*k), make([]float32, n)
	err := eachRows(ctx, p.w, func(row int64, values []float32) error {
		count := int64(len(values)) / k
		if err := quantize.Int8Rows(values, int(count), int(k), levels, scales[row:row+count]); err != nil {
			return err
		}
		return sink.WriteAt(0, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(levels))), count*k), row*k)
	})
	if err != nil {
		return err
	}
	return sink.WriteAt(1, float32Bytes(nil, scales), 0)
}

// float32Bytes appends the values' little-endian bytes.
func float32Bytes(raw []byte, values []float32) []byte {
	for _, v := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	return raw
}

// blockPayload makes MatMulNBits' packed weights and scales: symmetric, one scale a block. At 4 bits scales are searched;
// what is known about the layer's inputs says which errors count, and how to make up for them.
type blockPayload struct {
	w      Weight
	bits   int
	block  int
	inputs *calibration.Layer // nil for nothing
	scales onnx.DType         // float32 or float16
}

// searchedScales is quantize.Blocks.Search of 4-bit weights. 8-bit ones are close enough as they are.
const searchedScales = 12

// quantizer says how to quantize rows of the weight.
func (p *blockPayload) quantizer(ctx context.Context) (blocks quantize.Blocks, c *quantize.Compensator, err error) {
	blocks = quantize.Blocks{Bits: p.bits, Block: p.block, HalfScales: true}
	if p.bits > 4 {
		return blocks, nil, nil
	}
	blocks.Search = searchedScales
	inputs, err := inputsOf(ctx, p.w, p.inputs)
	if err != nil || inputs == nil {
		return blocks, nil, err
	}
	blocks.Importance = inputs.Square
	if inputs.Hessian != nil {
		c, err = quantize.NewCompensator(inputs.Hessian, len(inputs.Square))
	}
	return blocks, c, err
}

func (p *blockPayload) String() string {
	return fmt.Sprintf("int%d/%d(%s)", p.bits, p.block, p.w)
}

func (p *blockPayload) Produce(ctx context.Context, sink onnx.Sink) error {
	defer p.w.src.release()
	n, k := p.w.shape[0], p.w.shape[1]
	blocks := (k + int64(p.block) - 1) / int64(p.block)
	rowBytes := blocks * int64(p.block*p.bits/8)
	rows := min(n, rowsPerChunk(k))
	quantizer, compensator, err := p.quantizer(ctx)
	if err != nil {
		return err
	}
	packed := make([]byte, rows*rowBytes)
	scales := make([]float32, rows*blocks)
	raw := make([]byte, 4*len(scales))
	return eachRows(ctx, p.w, func(row int64, values []float32) error {
		count := int64(len(values)) / k
		to, scale := packed[:count*rowBytes], scales[:count*blocks]
		if compensator != nil {
			err = quantizer.QuantizeCompensated(compensator, values, int(count), int(k), to, scale, nil)
		} else {
			err = quantizer.Quantize(values, int(count), int(k), to, scale, nil)
		}
		if err != nil {
			return err
		}
		if err := sink.WriteAt(0, packed[:count*rowBytes], row*rowBytes); err != nil {
			return err
		}
		if p.scales == onnx.Float16 {
			raw = raw[:2*count*blocks]
			if quantize.Float16(raw, scale) > 0 {
				return errors.New("a scale does not fit float16: convert with --precision fp32")
			}
		} else {
			raw = float32Bytes(raw[:0], scale)
		}
		return sink.WriteAt(1, raw, p.scales.Size()*row*blocks)
	})
}
