// Graphs for CUDA: float16 arithmetic, and caches in float16.
//
// What stays float32 is what upstream computes in float32, or what leaves float16's range: norms are float16 operators whose sums
// are float32 inside; layers of kind Wide, and with them everything that is added to what they make; masks, logarithms and
// positions. Ports other than caches stay float32, so that whoever feeds a graph need not know.

package blocks

import (
	"strings"

	"glimpse/convert/onnx"
	"glimpse/convert/quantize"
)

// cachePorts begin the names of ports that hold keys and values of a cache.
var cachePorts = []string{"past_key.", "past_value.", "present_key.", "present_value."}

// crossPorts begin the names of ports that hold what cross attention reads.
var crossPorts = []string{"cross_key.", "cross_value."}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// WideResidual says that the sums of the component's layers leave float16's range: they and their norms stay float32.
func (b *Builder) WideResidual() { b.residual = true }

// residuals are the operators that add to the sums of the layers, or read them.
var residuals = map[string]bool{"LayerNormalization": true, "SkipLayerNormalization": true, "SimplifiedLayerNormalization": true,
	"SkipSimplifiedLayerNormalization": true}

// halves reports whether the graph will compute in float16.
func (b *Builder) halves() bool { return b.Policy.Target == CUDA && b.Policy.resolved() != FP32 }

// ForCUDA turns the finished graph into one that CUDA computes. In fp32 that is attention over the cache in float16, for which
// ONNX Runtime's CUDA provider has no other kernel; in the other precisions all but what must not be.
func (b *Builder) ForCUDA() error {
	if !b.halves() {
		return b.Narrow(onnx.Narrowing{
			Keep:  func(node *onnx.Node, _ bool) bool { return node.Op != "GroupQueryAttention" },
			Port:  func(name string) bool { return hasPrefix(name, cachePorts) },
			Round: roundHalf,
		})
	}
	wide := b.residual || len(b.kept) > 0
	return b.Narrow(onnx.Narrowing{
		Keep: func(node *onnx.Node, single bool) bool {
			return b.kept[node] || wide && (residuals[node.Op] || node.Op == "Add" && single)
		},
		Port:  func(name string) bool { return hasPrefix(name, cachePorts) || hasPrefix(name, crossPorts) },
		Round: roundHalf,
	})
}

func roundHalf(dst []byte, values []float32) { quantize.Float16(dst, values) }
