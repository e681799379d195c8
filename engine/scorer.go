// Running a model's heads that compare pictures with texts: the manifest's scoring section.

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"glimpse/graphs"
	"glimpse/manifest"
)

// maxPairsOfRun bounds the pairs that go through a head at once.
const maxPairsOfRun = 64

// scorer holds the graphs of manifest.Scoring. It is safe for many goroutines.
type scorer struct {
	spec    manifest.Scoring
	runtime *graphs.Runtime
	text    *textInput
	vision  *stages          // the model's picture stages alone; the engine's
	whole   *stages          // those, and then ImageStages
	reader  *stages          // TextStages
	heads   map[string]stage // components of pair scores
	owned   []stage          // what Close closes
}

// openScorer loads the graphs of m.Scoring; vision are the picture stages, which stay the caller's.
func openScorer(ctx context.Context, folder string, m *manifest.Manifest, vision *stages, opts Options) (_ *scorer, err error) {
	s := &scorer{spec: *m.Scoring, runtime: opts.Runtime, vision: vision, heads: map[string]stage{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.text, err = openTextInput(folder, s.spec.Text); err != nil {
		return nil, err
	}
	load := func(name string) (stage, error) {
		session, err := loadComponent(ctx, folder, name, m, opts)
		if err != nil {
			return stage{}, err
		}
		s.owned = append(s.owned, stage{name, session})
		return stage{name, session}, nil
	}
	s.whole = vision.over(slices.Clone(vision.list), vision.batch)
	s.reader = vision.over(nil, maxPairsOfRun)
	for _, part := range []struct {
		to    *stages
		names []string
	}{{s.whole, s.spec.ImageStages}, {s.reader, s.spec.TextStages}} {
		for _, name := range part.names {
			st, err := load(name)
			if err != nil {
				return nil, err
			}
			part.to.list = append(part.to.list, st)
		}
	}
	for _, score := range s.spec.Scores {
		if _, there := s.heads[score.Component]; there || score.Kind != manifest.KindPair {
			continue
		}
		if s.heads[score.Component], err = load(score.Component); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// encode returns the ids of each text; param is the request's name for the list.
func (s *scorer) encode(param string, texts []string) ([][]int32, error) {
	ids := make([][]int32, len(texts))
	for i, text := range texts {
		var err error
		if ids[i], err = s.text.encode(fmt.Sprintf("%s[%d]", param, i), text, false); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// pictureTensors lists the tensors of pictures that similarities and pair heads take.
func (s *scorer) pictureTensors(similar, paired bool) []string {
	var names []string
	for _, score := range s.spec.Scores {
		switch {
		case score.Kind == manifest.KindSimilarity && similar:
			image, _ := s.spec.Embeds(score)
			names = append(names, image)
		case score.Kind == manifest.KindPair && paired:
			for _, port := range s.heads[score.Component].session.Inputs() {
				if port.Name != manifest.ImageIndex && port.Name != s.spec.Text.IDs && port.Name != s.spec.Text.Mask {
					names = append(names, port.Name)
				}
			}
		}
	}
	return names
}

// textTensors lists the tensors of texts that similarities take.
func (s *scorer) textTensors() []string {
	var names []string
	for _, score := range s.spec.Scores {
		if score.Kind == manifest.KindSimilarity {
			_, text := s.spec.Embeds(score)
			names = append(names, text)
		}
	}
	return names
}

// alsoKept keeps the wanted names and what keep keeps.
func alsoKept(wanted []string, keep keeping) keeping {
	return func(name string) bool { return slices.Contains(wanted, name) || keep != nil && keep(name) }
}

// pictures runs the picture stages, and those after them only where something wanted comes from there.
func (s *scorer) pictures(ctx context.Context, tensors map[string]Array, wanted []string, keep keeping) (map[string]Array, error) {
	run := s.vision
	for _, name := range wanted {
		if _, given := tensors[name]; !given && !s.vision.makes(name) {
			run = s.whole
		}
	}
	r, err := run.run(ctx, tensors, alsoKept(wanted, keep))
	if err != nil {
		return nil, fmt.Errorf("run the picture graphs: %w", err)
	}
	return r.arrays, nil
}

// texts runs the text stages.
func (s *scorer) texts(ctx context.Context, ids [][]int32, wanted []string, keep keeping) (map[string]Array, error) {
	if len(s.reader.list) == 0 {
		return map[string]Array{}, nil
	}
	r, err := s.reader.run(ctx, s.text.tensors(ids), alsoKept(wanted, keep))
	if err != nil {
		return nil, fmt.Errorf("run the text graphs: %w", err)
	}
	return r.arrays, nil
}

// matrix returns one score of every picture and every text.
func (s *scorer) matrix(ctx context.Context, score manifest.Score, pictures, texts map[string]Array, ids [][]int32, t *ScoreTrace, keep keeping) ([][]float32, error) {
	if score.Kind == manifest.KindSimilarity {
		image, text := s.spec.Embeds(score)
		return similarities(score, pictures[image], texts[text], int(pictures[image].Shape[0]), len(ids))
	}
	out, n, err := s.pairs(ctx, score, pictures, ids, keep)
	if err != nil {
		return nil, err
	}
	for name, a := range out {
		a.Shape = append([]int64{int64(n), int64(len(ids))}, a.Shape[1:]...)
		t.keep(keep, name, a)
	}
	values := newMatrix(n, len(ids))
	for i := range values {
		copy(values[i], out[score.Output].Data[i*len(ids):])
	}
	return values, nil
}

// pairs runs a head on every picture with every text and returns its outputs by name, [pictures·texts, …] picture by
// picture: score.Output [pictures·texts], and those that keep wants. A run has a group of pictures and a chunk of texts,
// so that what the head computes of a picture alone is computed once a run.
func (s *scorer) pairs(ctx context.Context, score manifest.Score, pictures map[string]Array, ids [][]int32, keep keeping) (map[string]Array, int, error) {
	inputs := map[string]Array{}
	for _, port := range s.heads[score.Component].session.Inputs() {
		if a, ok := pictures[port.Name]; ok {
			inputs[port.Name] = a
		}
	}
	n, err := commonTiles(inputs)
	if err != nil {
		return nil, 0, err
	}
	leave, err := s.vision.enter(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer leave()
	out := map[string]Array{}
	wanted := alsoKept([]string{score.Output}, keep)
	for first := 0; first < n; first += s.vision.batch {
		group := min(s.vision.batch, n-first)
		chunk := max(1, maxPairsOfRun/group)
		for text := 0; text < len(ids); text += chunk {
			b := pairBatch{first, group, text, min(chunk, len(ids)-text)}
			if err := s.runPairs(ctx, s.heads[score.Component], inputs, ids, b, wanted, out, n); err != nil {
				return nil, 0, err
			}
		}
	}
	if a, ok := out[score.Output]; !ok || len(a.Shape) != 1 {
		return nil, 0, fmt.Errorf("%s gives %s the shape %v; it must be one value a pair", score.Component, score.Output, a.Shape)
	}
	return out, n, nil
}

// pairBatch is pictures first..first+pictures−1 with texts text..text+texts−1.
type pairBatch struct{ first, pictures, text, texts int }

// runPairs runs a head on a batch and puts what it makes in its place in out.
func (s *scorer) runPairs(ctx context.Context, head stage, inputs map[string]Array, ids [][]int32, b pairBatch, wanted keeping, out map[string]Array, n int) error {
	live := map[string]*graphs.Tensor{}
	defer closeAll(live)
	add := func(name string, a Array, first, rows int) error {
		t, err := a.tensor(s.runtime, first, rows)
		if err == nil {
			live[name] = t
		}
		return err
	}
	for name, a := range inputs {
		if err := add(name, a, b.first, b.pictures); err != nil {
			return err
		}
	}
	pairs := b.pictures * b.texts
	index := Array{Shape: []int64{int64(pairs)}, Int64: make([]int64, 0, pairs)}
	var texts [][]int32
	for i := range b.pictures {
		for range b.texts {
			index.Int64 = append(index.Int64, int64(i))
		}
		texts = append(texts, ids[b.text:b.text+b.texts]...)
	}
	if err := add(manifest.ImageIndex, index, 0, pairs); err != nil {
		return err
	}
	for name, a := range s.text.tensors(texts) {
		if err := add(name, a, 0, pairs); err != nil {
			return err
		}
	}
	made, err := head.run(ctx, s.runtime, live)
	if err != nil {
		return fmt.Errorf("run %s: %w", head.name, err)
	}
	defer closeAll(made)
	for name, t := range made {
		if wanted(name) {
			if err := place(out, name, t, b, n, len(ids)); err != nil {
				return fmt.Errorf("run %s: %w", head.name, err)
			}
		}
	}
	return nil
}

// place copies the rows of a batch of pairs into [pictures·texts, …].
func place(out map[string]Array, name string, t *graphs.Tensor, b pairBatch, pictures, texts int) error {
	shape := t.Shape()
	if len(shape) == 0 || shape[0] != int64(b.pictures*b.texts) {
		return fmt.Errorf("its output %s is %v for %d pairs", name, shape, b.pictures*b.texts)
	}
	row := t.Len() / (b.pictures * b.texts)
	a, ok := out[name]
	if !ok {
		shape[0] = int64(pictures * texts)
		a = Array{Shape: shape, Data: make([]float32, pictures*texts*row)}
		out[name] = a
	}
	data := t.Float32()
	for i := range b.pictures {
		at := ((b.first+i)*texts + b.text) * row
		copy(a.Data[at:at+b.texts*row], data[i*b.texts*row:(i+1)*b.texts*row])
	}
	return nil
}

// Close closes the graphs that are the scorer's own. It is idempotent.
func (s *scorer) Close() error {
	if s == nil {
		return nil
	}
	problems := []error{s.text.Close()}
	for _, st := range s.owned {
		problems = append(problems, st.session.Close())
	}
	return errors.Join(problems...)
}
