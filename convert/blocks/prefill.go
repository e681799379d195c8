// The second graph of a decoder: int4 is the fastest for a few rows, because it reads the fewest bytes, and int8 with
// activations by row for prompts and wide batches, because it computes fastest (docs/performance.md), and closer to fp32.

package blocks

import (
	"maps"

	"glimpse/convert/onnx"
)

// blockwise is a Linear that was lowered to MatMulNBits.
type blockwise struct {
	layer  Linear
	format string
	bias   *onnx.Value
}

// Prefill returns the builder of the same decoder with the blockwise linears of its layers as int8 by row, and nil where
// there are none. Ports, and all weights that both graphs hold (norms, biases, the head), are the same.
func (b *Builder) Prefill(name string) *Builder {
	wide := false
	for _, l := range b.blockwise {
		wide = wide || l.layer.Kind != Head
	}
	if !wide {
		return nil
	}
	p := new(Builder)
	*p = *b
	p.formats, p.derived = maps.Clone(b.formats), true
	b.Derive(name, func(g *onnx.Graph, node *onnx.Node) bool {
		p.Graph = g
		l, ok := b.blockwise[node]
		if !ok || l.layer.Kind == Head { // one row a sequence: as many as the decoder's graph has
			return false
		}
		p.formats[l.format] -= l.layer.W.Elements()
		if p.formats[l.format] == 0 {
			delete(p.formats, l.format)
		}
		p.parameters -= l.layer.W.Elements()
		g.Become(p.int8Rows(node.Inputs[0], l.layer.W, l.bias), node.Outputs[0])
		return true
	})
	return p
}
