// InternLM2 (Cai et al. 2024; the authors' InternLM2ForCausalLM): LLaMA's forward pass with q, k and v interleaved by
// key-value group in one matrix, and names of its own.

package families

import (
	"fmt"

	"glimpse/convert/blocks"
)

type internLM2 struct{}

// layout names InternLM2's tensors for llamaConfig.buildFrom. wqkv is stored [kv_heads, heads/kv_heads + 2, head_dim]
// by rows: each group's queries, then its key, then its value.
func (internLM2) layout(c llamaConfig, prefix, head string) llamaLayout {
	d, groups := c.headDim(), c.kvHeads()
	per := c.Heads / groups
	var order []int64
	pick := func(first, count int64) {
		for g := range groups {
			for i := first; i < first+count; i++ {
				for r := range d {
					order = append(order, (g*(per+2)+i)*d+r)
				}
			}
		}
	}
	pick(0, per)
	pick(per, 1)
	pick(per+1, 1)
	return llamaLayout{
		norm: prefix + "norm.weight", head: head, table: prefix + "tok_embeddings.weight",
		layer: func(i int64) llamaLayerNames {
			at := fmt.Sprintf("%slayers.%d.", prefix, i)
			return llamaLayerNames{inputNorm: at + "attention_norm.weight", postNorm: at + "ffn_norm.weight",
				output: at + "attention.wo", gate: at + "feed_forward.w1", up: at + "feed_forward.w3", down: at + "feed_forward.w2",
				qkv: func(t *blocks.Tensors, suffix string, in ...int64) blocks.Weight {
					shape := append([]int64{(c.Heads + 2*groups) * d}, in...)
					return t.Weight(at+"attention.wqkv"+suffix, shape...).PermuteRows("grouped", order)
				}}
		},
		ignore: []string{prefix + "layers.*.attention.rotary_emb.inv_freq"},
	}
}
