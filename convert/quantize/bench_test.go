package quantize

import (
	"math/rand/v2"
	"testing"
)

// Source megabytes a second of one core on a 4096×4096 matrix.
func BenchmarkQuantize(b *testing.B) {
	const n, k = 4096, 4096
	rng := rand.New(rand.NewPCG(1, 2))
	src := make([]float32, n*k)
	for i := range src {
		src[i] = float32(rng.NormFloat64() * 0.02)
	}
	run := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(4 * n * k)
			for b.Loop() {
				f()
			}
		})
	}
	half := make([]byte, 2*n*k)
	run("float16", func() { Float16(half, src) })
	run("bfloat16", func() { BFloat16(half, src) })
	q, scale := make([]int8, n*k), make([]float32, n)
	run("int8rows", func() { Int8Rows(src, n, k, q, scale) })
	for _, c := range []struct {
		name       string
		blocks     Blocks
		asymmetric bool
	}{
		{"int4block32", Blocks{Bits: 4, Block: 32}, false},
		{"int4block32zero", Blocks{Bits: 4, Block: 32}, true},
		{"int8block32", Blocks{Bits: 8, Block: 32}, false},
		{"int4block32search8", Blocks{Bits: 4, Block: 32, Search: 8}, false},
		{"int4block32zerosearch8", Blocks{Bits: 4, Block: 32, Search: 8}, true},
	} {
		l := Sizes(n, k, c.blocks.Bits, c.blocks.Block)
		packed, scales := make([]byte, l.Packed), make([]float32, l.Scales)
		var zeros []byte
		if c.asymmetric {
			zeros = make([]byte, l.ZeroPoints)
		}
		run(c.name, func() {
			if err := c.blocks.Quantize(src, n, k, packed, scales, zeros); err != nil {
				b.Fatal(err)
			}
		})
	}
}
