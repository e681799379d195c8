package graphstest

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"glimpse/graphs"

	"pgregory.net/rapid"
)

// The geometry of attention.onnx.
const (
	heads    = 4
	kvHeads  = 2
	headDim  = 16
	width    = heads * headDim               // of one output row
	qkvWidth = (heads + 2*kvHeads) * headDim // of one packed input row
	capacity = 40                            // tokens a slot
	slots    = 3                             // of the arena
	ropeBase = 10000.0                       // of the rotary tables
)

// decoder drives attention.onnx as the engine drives a decoder: packed tokens in
// a step, the cache in an arena, updated in place.
type decoder struct {
	suite *suite
	step  *graphs.Step
	arena *graphs.Arena

	qkv, rowMap, tokenMap, seqlens, queries, total, cos, sin, out *graphs.Tensor
	past                                                          [slots]int // tokens in each slot's cache
}

func (s *suite) decoder(t *testing.T, session *graphs.Session) *decoder {
	t.Helper()
	d := &decoder{suite: s}
	var err error
	d.arena, err = s.runtime.NewArenaIn(s.cache.memory, graphs.ArenaSpec{Layers: 1, Slots: slots, KVHeads: kvHeads, Capacity: capacity, HeadDim: headDim, DType: s.cache.dtype})
	must(t, err)
	t.Cleanup(func() { check(t, d.arena.Close()) })
	d.step, err = session.NewStep(nil, nil)
	must(t, err)
	t.Cleanup(func() { check(t, d.step.Close()) })
	most := int64(slots * capacity)
	d.qkv, d.out = s.tensor(t, graphs.Float32, most, qkvWidth), s.tensor(t, graphs.Float32, most, width)
	d.rowMap, d.tokenMap = s.tensor(t, graphs.Int64, most), s.tensor(t, graphs.Int64, most)
	must(t, d.rowMap.Reshape(slots, capacity))
	d.seqlens, d.queries = s.tensor(t, graphs.Int32, slots), s.tensor(t, graphs.Int32, slots)
	d.total = s.tensor(t, graphs.Int32)
	d.total.Int32()[0] = capacity
	d.cos, d.sin = s.tensor(t, graphs.Float32, capacity, headDim/2), s.tensor(t, graphs.Float32, capacity, headDim/2)
	for i := range d.cos.Len() {
		sin, cos := math.Sincos(angle(i/(headDim/2), i%(headDim/2)))
		d.cos.Float32()[i], d.sin.Float32()[i] = float32(cos), float32(sin)
	}
	inputs := named{"qkv": d.qkv, "row_map": d.rowMap, "token_map": d.tokenMap, "seqlens_k": d.seqlens,
		"query_seqlens": d.queries, "total_sequence_length": d.total, "rope_cos": d.cos, "rope_sin": d.sin}
	for name, tensor := range inputs {
		must(t, d.step.SetInput(d.step.Input(name), tensor))
	}
	must(t, d.step.SetOutput(d.step.Output("out"), d.out))
	return d
}

// run gives slot first+i the rows news[i], and returns the attention's output for
// each of them. A slot without rows stays idle.
func (d *decoder) run(t testing.TB, first int, news [][][]float32) ([][][]float32, error) {
	n := len(news)
	sequence, tokens := 0, 0
	for _, rows := range news {
		sequence, tokens = max(sequence, len(rows)), tokens+len(rows)
	}
	view, err := d.arena.View(first, n)
	if err != nil {
		return nil, err
	}
	for _, err := range []error{
		d.qkv.Reshape(int64(tokens), qkvWidth), d.out.Reshape(int64(tokens), width), d.tokenMap.Reshape(int64(tokens)),
		d.rowMap.Reshape(int64(n), int64(sequence)), d.seqlens.Reshape(int64(n)), d.queries.Reshape(int64(n)),
		d.step.SetInput(d.step.Input("past_key"), view.Keys[0]), d.step.SetInput(d.step.Input("past_value"), view.Values[0]),
		d.step.SetOutput(d.step.Output("present_key"), view.Keys[0]), d.step.SetOutput(d.step.Output("present_value"), view.Values[0]),
	} {
		if err != nil {
			return nil, err
		}
	}
	clear(d.rowMap.Int64())
	row := 0
	for i, rows := range news {
		for j, values := range rows {
			copy(d.qkv.Float32()[row*qkvWidth:], values)
			d.rowMap.Int64()[i*sequence+j] = int64(row)
			d.tokenMap.Int64()[row] = int64(i*sequence + j)
			row++
		}
		d.past[first+i] += len(rows)
		d.queries.Int32()[i] = int32(len(rows))
		d.seqlens.Int32()[i] = int32(max(d.past[first+i]-1, 0))
	}
	if err := d.step.Run(t.Context()); err != nil {
		return nil, err
	}
	out := make([][][]float32, n)
	row = 0
	for i, rows := range news {
		for range rows {
			out[i] = append(out[i], slices.Clone(d.out.Float32()[row*width:(row+1)*width]))
			row++
		}
	}
	return out, nil
}

// slotBytes is a copy of the cache of one slot.
func (d *decoder) slotBytes(t testing.TB, slot int) []byte {
	view, err := d.arena.View(slot, 1)
	if err != nil {
		t.Fatal(err)
	}
	size := view.Keys[0].Len() * view.Keys[0].DType().Size()
	both := make([]byte, 2*size)
	for _, err := range []error{view.Keys[0].Read(both[:size]), view.Values[0].Read(both[size:])} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return both
}

// angle is the rotary angle of a position in pair i of a head (RoFormer, arXiv
// 2104.09864).
func angle(position, i int) float64 {
	return float64(position) / math.Pow(ropeBase, float64(2*i)/headDim)
}

// reference is causal attention over a whole sequence without any cache, in
// float64: rows of packed q, k, v in, attended rows out.
func reference(sequence [][]float32) [][]float32 {
	out := make([][]float32, len(sequence))
	for i, row := range sequence {
		out[i] = make([]float32, width)
		for head := range heads {
			q := rotate(row[head*headDim:], i)
			kv := head / (heads / kvHeads)
			weights := make([]float64, i+1)
			sum, most := 0.0, math.Inf(-1)
			for j := range weights {
				k := rotate(sequence[j][(heads+kv)*headDim:], j)
				for c := range headDim {
					weights[j] += q[c] * k[c] / math.Sqrt(headDim)
				}
				most = max(most, weights[j])
			}
			for j := range weights {
				weights[j] = math.Exp(weights[j] - most)
				sum += weights[j]
			}
			for c := range headDim {
				value := 0.0
				for j, w := range weights {
					value += w / sum * float64(sequence[j][(heads+kvHeads+kv)*headDim+c])
				}
				out[i][head*headDim+c] = float32(value)
			}
		}
	}
	return out
}

func references(sequences [][][]float32) [][][]float32 {
	all := make([][][]float32, len(sequences))
	for i := range sequences {
		all[i] = reference(sequences[i])
	}
	return all
}

func rotate(head []float32, position int) [headDim]float64 {
	var rotated [headDim]float64
	for i := range headDim / 2 {
		sin, cos := math.Sincos(angle(position, i))
		a, b := float64(head[i]), float64(head[i+headDim/2])
		rotated[i], rotated[i+headDim/2] = a*cos-b*sin, b*cos+a*sin
	}
	return rotated
}

func sequence(random *rand.Rand, tokens int) [][]float32 {
	rows := make([][]float32, tokens)
	for i := range rows {
		rows[i] = make([]float32, qkvWidth)
		for j := range rows[i] {
			rows[i][j] = float32(random.NormFloat64())
		}
	}
	return rows
}

// difference is the largest between rows that should be equal.
func difference(got, want [][]float32) float64 {
	most := 0.0
	for i := range want {
		for j := range want[i] {
			most = max(most, math.Abs(float64(got[i][j])-float64(want[i][j])))
		}
	}
	return most
}

// cache is what the cache of an attention is made of.
type cache struct {
	model    string // graphs/testdata
	dtype    graphs.DType
	memory   graphs.DeviceMemory // nil: ordinary
	accuracy float64             // largest difference to the reference
}

// A float16 of keys and values that reach 4, and of what comes of them, is off by half of 2⁻¹⁰·2 at most; a result sums a few.
const (
	singleAccuracy = 1e-5
	halfAccuracy   = 8.0 / (1 << 11)
)

// attention runs the suite of a decoder's attention over a cache.
func (s *suite) attention(t *testing.T, over cache) {
	s = &suite{s.runtime, s.options, s.models, over}
	session := s.load(t, over.model)
	t.Run("mixed steps", func(t *testing.T) { s.mixedSteps(t, session) })
	t.Run("any plan", func(t *testing.T) { s.anyPlan(t, session) })
	t.Run("chunks equal one run", func(t *testing.T) { s.chunks(t, session) })
	t.Run("slot views, then all slots", func(t *testing.T) { s.slotViews(t, session) })
	t.Run("a batch equals each row alone", func(t *testing.T) { s.batch(t, session) })
}

// follow runs a plan (new tokens of each slot, by step) and compares each step
// with want, the reference of each sequence. Slots that are idle in a step must
// keep their cache.
func (s *suite) follow(t testing.TB, d *decoder, sequences, want [][][]float32, plan [][]int) error {
	done := make([]int, len(sequences))
	for number, counts := range plan {
		news := make([][][]float32, len(counts))
		before := make([][]byte, len(counts))
		for i, n := range counts {
			news[i] = sequences[i][done[i] : done[i]+n]
			before[i] = d.slotBytes(t, i)
		}
		got, err := d.run(t, 0, news)
		if err != nil {
			return fmt.Errorf("step %d: %w", number, err)
		}
		for i, n := range counts {
			if diff := difference(got[i], want[i][done[i]:done[i]+n]); diff > s.cache.accuracy {
				return fmt.Errorf("step %d, slot %d: difference %g to the reference, at most %g", number, i, diff, s.cache.accuracy)
			}
			if n == 0 && !bytes.Equal(before[i], d.slotBytes(t, i)) {
				return fmt.Errorf("step %d: the cache of idle slot %d changed", number, i)
			}
			done[i] += n
		}
	}
	return nil
}

func (s *suite) mixedSteps(t *testing.T, session *graphs.Session) {
	random := rand.New(rand.NewPCG(1, 2))
	sequences := [][][]float32{sequence(random, 9), sequence(random, 13), sequence(random, 5)}
	check(t, s.follow(t, s.decoder(t, session), sequences, references(sequences), [][]int{{3, 5, 1}, {1, 0, 2}, {1, 1, 0}, {4, 7, 2}}))
}

// anyPlan draws plans, among them slots that have not begun and steps of one
// token. A step's longest row must fit behind every slot's cache.
func (s *suite) anyPlan(t *testing.T, session *graphs.Session) {
	d := s.decoder(t, session)
	random := rand.New(rand.NewPCG(3, 4))
	pool := [][][]float32{sequence(random, capacity), sequence(random, capacity), sequence(random, capacity)}
	want := references(pool)
	rapid.Check(t, func(r *rapid.T) {
		d.past = [slots]int{} // a slot is reused over what another sequence left
		var plan [][]int
		done := [slots]int{}
		for range rapid.IntRange(1, 6).Draw(r, "steps") {
			counts := make([]int, slots)
			longest := 0
			for i := range counts {
				counts[i] = rapid.IntRange(0, 6).Draw(r, "new tokens")
				longest = max(longest, counts[i])
			}
			if longest == 0 {
				counts[0], longest = 1, 1
			}
			for i := range counts {
				done[i] += counts[i]
			}
			if slices.Max(done[:])+longest > capacity {
				break
			}
			plan = append(plan, counts)
		}
		if err := s.follow(t, d, pool, want, plan); err != nil {
			r.Fatalf("plan %v: %v", plan, err)
		}
	})
}

func (s *suite) chunks(t *testing.T, session *graphs.Session) {
	random := rand.New(rand.NewPCG(5, 6))
	prompt := sequence(random, 17)
	want := reference(prompt)
	var atOnce [][]float32
	for _, chunk := range []int{len(prompt), 1, 2, 3, 5, 8, 16} {
		d := s.decoder(t, session)
		var got [][]float32
		for part := range slices.Chunk(prompt, chunk) {
			out, err := d.run(t, 1, [][][]float32{part})
			must(t, err)
			got = append(got, out[0]...)
		}
		if atOnce == nil {
			atOnce = got
		}
		if diff := difference(got, want); diff > s.cache.accuracy {
			t.Errorf("chunks of %d: difference %g to the reference", chunk, diff)
		}
		if diff := difference(got, atOnce); diff > s.cache.accuracy {
			t.Errorf("chunks of %d: difference %g to one run", chunk, diff)
		}
	}
}

// slotViews prefills each slot through its own view and then decodes all slots
// through the view of all.
func (s *suite) slotViews(t *testing.T, session *graphs.Session) {
	random := rand.New(rand.NewPCG(7, 8))
	d := s.decoder(t, session)
	sequences := [][][]float32{sequence(random, 12), sequence(random, 7), sequence(random, 15)}
	const decoded = 4
	for slot, all := range sequences {
		others := (slot + 1) % slots
		before := d.slotBytes(t, others)
		_, err := d.run(t, slot, [][][]float32{all[:len(all)-decoded]})
		must(t, err)
		if !bytes.Equal(before, d.slotBytes(t, others)) {
			t.Errorf("prefill of slot %d changed slot %d", slot, others)
		}
	}
	for i := range decoded {
		news := make([][][]float32, slots)
		for slot, all := range sequences {
			at := len(all) - decoded + i
			news[slot] = all[at : at+1]
		}
		got, err := d.run(t, 0, news)
		must(t, err)
		for slot, all := range sequences {
			at := len(all) - decoded + i
			if diff := difference(got[slot], reference(all)[at:at+1]); diff > s.cache.accuracy {
				t.Errorf("token %d of slot %d: difference %g to the reference", at, slot, diff)
			}
		}
	}
}

func (s *suite) batch(t *testing.T, session *graphs.Session) {
	random := rand.New(rand.NewPCG(9, 10))
	sequences := [][][]float32{sequence(random, 6), sequence(random, 6), sequence(random, 6)}
	plan := []int{4, 1, 1}
	together, alone := s.decoder(t, session), [slots]*decoder{}
	for i := range alone {
		alone[i] = s.decoder(t, session)
	}
	done := 0
	for _, n := range plan {
		news := make([][][]float32, slots)
		for i := range news {
			news[i] = sequences[i][done : done+n]
		}
		got, err := together.run(t, 0, news)
		must(t, err)
		for i := range alone {
			single, err := alone[i].run(t, 0, news[i:i+1])
			must(t, err)
			if diff := difference(got[i], single[0]); diff > s.cache.accuracy {
				t.Errorf("row %d: difference %g to the row alone", i, diff)
			}
		}
		done += n
	}
}
