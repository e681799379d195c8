// Package calibration holds what is known about the inputs of a model's linear layers: statistics over the rows that they
// were given while the model answered sample requests. Quantization uses them to know which input channels matter.
//
// They are gathered in the graph itself: a conversion for calibration adds an output to every layer (Port…), whose size does not
// depend on how many rows a run has, and an Accumulator sums what the runs report. So memory is bounded by the model's widths.
package calibration

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
)

// Names of the outputs that a graph has for calibration; a layer's path in its component follows.
const (
	// PortInputs: [2·k + 1] f32: the largest magnitude of each input channel, its sum of squares, and the number of rows.
	PortInputs = "statistics.inputs."
	// PortHessian: [k, k] f32: the sum of xᵀx over the rows x.
	PortHessian = "statistics.hessian."
)

// IsPort reports whether an output is one of these.
func IsPort(name string) bool {
	return strings.HasPrefix(name, PortInputs) || strings.HasPrefix(name, PortHessian)
}

// Layer is what is known about one linear layer's inputs x [rows, k].
type Layer struct {
	Rows    int64
	Maximum []float32 // [k] max |x|
	Square  []float32 // [k] mean x²
	Hessian []float32 // [k, k] mean xᵀx; nil where it was not gathered
}

// Statistics are layers by component and path: "decoder/layers.0.mlp.down_proj".
type Statistics struct {
	layers map[string]*Layer
}

// Key names a layer.
func Key(component, path string) string { return component + "/" + path }

// Layer returns what is known about a layer with k inputs, nil for nothing. It may be called on nil statistics.
func (s *Statistics) Layer(key string, k int64) *Layer {
	if s == nil {
		return nil
	}
	if l := s.layers[key]; l != nil && int64(len(l.Square)) == k {
		return l
	}
	return nil
}

// Keys lists the layers in order.
func (s *Statistics) Keys() []string {
	keys := make([]string, 0, len(s.layers))
	for key := range s.layers {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Rows is the largest number of rows that a layer of the component has seen: the tokens of a decoder.
func (s *Statistics) Rows(component string) (rows int64) {
	for key, l := range s.layers {
		if strings.HasPrefix(key, component+"/") {
			rows = max(rows, l.Rows)
		}
	}
	return rows
}

// Accumulator sums what runs report. It is safe for many goroutines.
type Accumulator struct {
	mu     sync.Mutex
	layers map[string]*sums
	err    error
}

type sums struct {
	rows    float64
	maximum []float32
	square  []float64
	hessian []float32
}

// NewAccumulator starts with nothing.
func NewAccumulator() *Accumulator { return &Accumulator{layers: map[string]*sums{}} }

// Add takes an output of a run of a component's graph. Outputs that are no statistics are left alone.
func (a *Accumulator) Add(component, port string, values []float32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if path, ok := strings.CutPrefix(port, PortInputs); ok {
		a.addInputs(a.layer(component, path), values, port)
	} else if path, ok := strings.CutPrefix(port, PortHessian); ok {
		s := a.layer(component, path)
		if s.hessian == nil {
			s.hessian = make([]float32, len(values))
		}
		for i, v := range values {
			s.hessian[i] += v
		}
	}
}

func (a *Accumulator) layer(component, path string) *sums {
	key := Key(component, path)
	if a.layers[key] == nil {
		a.layers[key] = &sums{}
	}
	return a.layers[key]
}

func (a *Accumulator) addInputs(s *sums, values []float32, port string) {
	k := len(values) / 2
	if len(values) != 2*k+1 || k == 0 || s.square != nil && len(s.square) != k {
		a.err = fmt.Errorf("the graph reports %d values at %s", len(values), port)
		return
	}
	if s.square == nil {
		s.maximum, s.square = make([]float32, k), make([]float64, k)
	}
	for i := range k {
		s.maximum[i] = max(s.maximum[i], values[i])
		s.square[i] += float64(values[k+i])
	}
	s.rows += float64(values[2*k])
}

// Statistics returns the means of what was added, which must be finite.
func (a *Accumulator) Statistics() (*Statistics, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return nil, a.err
	}
	out := &Statistics{layers: map[string]*Layer{}}
	for key, s := range a.layers {
		if s.rows < 1 {
			continue
		}
		l := &Layer{Rows: int64(s.rows), Maximum: s.maximum, Square: make([]float32, len(s.square))}
		for i, v := range s.square {
			l.Square[i] = float32(v / s.rows)
		}
		if len(s.hessian) == len(s.square)*len(s.square) {
			l.Hessian = s.hessian
			for i := range l.Hessian {
				l.Hessian[i] /= float32(s.rows)
			}
		}
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("inputs of %s: %w", key, err)
		}
		out.layers[key] = l
	}
	return out, nil
}

// check refuses what cannot be statistics of finite rows.
func (l *Layer) check() error {
	k := len(l.Square)
	if l.Rows < 1 || k == 0 || len(l.Maximum) != k || l.Hessian != nil && len(l.Hessian) != k*k {
		return fmt.Errorf("%d rows, %d maxima, %d squares, %d values of the Hessian", l.Rows, len(l.Maximum), k, len(l.Hessian))
	}
	for _, list := range [][]float32{l.Maximum, l.Square} {
		for i, v := range list {
			if !(v >= 0 && v <= math.MaxFloat32) {
				return fmt.Errorf("channel %d has %v", i, v)
			}
		}
	}
	for i, v := range l.Hessian {
		if !(v >= -math.MaxFloat32 && v <= math.MaxFloat32) {
			return fmt.Errorf("value %d of the Hessian is %v", i, v)
		}
	}
	return nil
}
