// Pictures that go through the graphs one by one: those of models that take pictures at their own size, whose tensors
// count the rows of their own picture; and videos whose frames are seen together.

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"glimpse/graphs"
	"glimpse/manifest"
	"glimpse/preprocess"
)

// pixelValues is the tensor that every recipe makes, and the one that may be given in its place.
const pixelValues = "pixel_values"

// alone reports whether the recipe's pictures go through the graphs one by one.
func (p *pictures) alone() bool { return p.spec.Patches != nil || p.whole() }

// prepareAlone makes the tensors of each picture by itself. Given pixel_values take the place of the recipe's.
func (e *Engine) prepareAlone(ctx context.Context, p *Prepared, given map[string]Array) error {
	if e.instruction != nil {
		return fmt.Errorf("picture.recipe %q and an instruction are not supported together", e.pictures.spec.Recipe)
	}
	prepared, err := e.pictures.each(ctx, p.placed)
	if err != nil {
		return err
	}
	if !e.pictures.whole() { // whose frames are tiles of one run each, and joined below
		if prepared, err = e.pictures.joinVideos(p.placed, prepared); err != nil {
			return err
		}
	}
	var pixels Array
	for i, one := range prepared {
		tensors := map[string]Array{}
		for name, t := range one.Tensors {
			tensors[name] = Array{Shape: slices.Clone(t.Shape), Data: t.Float32, Int64: t.Int64}
		}
		if p.placed[i].frame > 1 && e.pictures.whole() {
			last := p.alone[len(p.alone)-1]
			for name, more := range tensors {
				last[name] = last[name].join(more)
			}
		} else {
			p.alone = append(p.alone, tensors)
		}
		own := tensors[pixelValues]
		if pixels.Shape == nil {
			pixels.Shape = slices.Clone(own.Shape)
		} else {
			pixels.Shape[0] += own.Shape[0]
		}
		pixels.Data = append(pixels.Data, own.Data...)
	}
	p.Tensors = map[string]Array{pixelValues: pixels}
	if given == nil {
		return nil
	}
	return p.replacePixels(given)
}

// replacePixels deals given pixel_values out to the pictures.
func (p *Prepared) replacePixels(given map[string]Array) error {
	have, want := given[pixelValues], p.Tensors[pixelValues]
	if len(given) != 1 || !slices.Equal(have.Shape, want.Shape) || len(have.Data) != len(want.Data) {
		return fmt.Errorf("tensors were given in place of the pictures'; pixel_values of shape %v are due and nothing else, not shape %v", want.Shape, have.Shape)
	}
	rest := have.Data
	for _, tensors := range p.alone {
		own := tensors[pixelValues]
		own.Data, rest = rest[:len(own.Data)], rest[len(own.Data):]
		tensors[pixelValues] = own
	}
	p.Tensors[pixelValues] = have
	return nil
}

// runAlone runs the stages on one picture after the other. joined are the tensors that a trace shows of all pictures.
func (p *stages) runAlone(ctx context.Context, list []map[string]Array, joined map[string]Array, keep keeping) (*stageResult, error) {
	leave, err := p.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	r := newStageResult(joined, keep)
	for i, tensors := range list {
		live := map[string]*graphs.Tensor{}
		for name, a := range tensors {
			t, err := a.tensor(p.runtime, 0, int(a.Shape[0]))
			if err != nil {
				closeAll(live)
				return nil, fmt.Errorf("copy tensor %s of picture %d: %w", name, i, err)
			}
			live[name] = t
		}
		if err := p.runLive(ctx, live, []share{{r, 1}}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// locate gives each token of the prompt its time, row and column, where the decoder's positions have three axes.
func (e *Engine) locate(p *Prepared) error {
	if e.manifest.Decoder == nil || e.manifest.Decoder.Positions == "" {
		return nil
	}
	var maps []preprocess.TokenMap
	for _, pic := range p.placed {
		if pic.layout.Tokens > 0 { // other frames of a video have no rows of their own
			maps = append(maps, preprocess.TokenMap{Grid: pic.layout.Map, Steps: pic.layout.Steps, Interval: pic.interval})
		}
	}
	var err error
	p.positions, p.delta, err = preprocess.Positions(p.ids, e.prompter.isImageToken, maps)
	return err
}

// positionArray is position_ids as upstream makes them: [4, 1, tokens], the place in the sequence and the three axes.
func positionArray(positions []preprocess.Position) Array {
	n := len(positions)
	a := Array{Shape: []int64{4, 1, int64(n)}, Int64: make([]int64, 4*n)}
	for i, p := range positions {
		a.Int64[i], a.Int64[n+i], a.Int64[2*n+i], a.Int64[3*n+i] = int64(i), int64(p.Time), int64(p.Row), int64(p.Column)
	}
	return a
}

// secondsBetweenFrames is assumed of videos whose frames come without times: what upstream samples.
const secondsBetweenFrames = 0.5

// inTime gives the i-th frame of a video the time of its step and holds it to the size of the first; list ends with the
// frames before it.
func (p *placed) inTime(spec manifest.Patches, m medium, i int, list []placed) error {
	if i > 0 {
		if first := list[len(list)-i]; first.width != p.width || first.height != p.height {
			return fmt.Errorf("the frame has %d×%d pixels and the video's first %d×%d: frames of a video have one size", p.width, p.height, first.width, first.height)
		}
	}
	at := func(k int) float64 {
		if k = min(k, len(m.pictures)-1); m.seconds != nil {
			return m.seconds[k]
		}
		return float64(k) * secondsBetweenFrames
	}
	p.seconds, p.interval = (at(i)+at(i+spec.Temporal-1))/2, 1
	if spec.Video != nil && spec.Video.TokensPerSecond > 0 {
		between := secondsBetweenFrames
		if len(m.pictures) > 1 {
			between = at(1) - at(0)
		}
		p.interval = spec.Video.TokensPerSecond * between * float64(spec.Temporal)
	}
	if !(p.interval >= 0) || p.seconds != p.seconds {
		return errors.New("the times of the video's frames are not in order")
	}
	return nil
}

// joinVideos makes one of the frames of each video.
func (p *pictures) joinVideos(list []placed, prepared []*preprocess.Prepared) ([]*preprocess.Prepared, error) {
	var out []*preprocess.Prepared
	for i := 0; i < len(list); i++ {
		if list[i].frame == 0 {
			out = append(out, prepared[i])
			continue
		}
		from := i
		for !list[i].last {
			i++
		}
		video, err := preprocess.JoinFrames(p.spec, prepared[from:i+1])
		if err != nil {
			return nil, pictureError(list[from].number, list[from].Picture, err)
		}
		out = append(out, video)
	}
	return out, nil
}
