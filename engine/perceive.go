// From a prompt's media to its feature rows, through the cache.

package engine

import (
	"context"
	"slices"
	"time"
)

// perceive makes the prompt of a request and the feature rows of its pictures and sounds. preprocess is the time that the
// prompt and the tensors took.
func (e *Engine) perceive(ctx context.Context, req Request, p *Prepared) (made *stageResult, preprocess time.Duration, err error) {
	start := time.Now()
	if err := e.prepareSounds(ctx, p, nil); err != nil {
		return nil, 0, err
	}
	preprocess = time.Since(start)
	if e.vision != nil || e.scheduler.prefixCache {
		e.keyMedia(p, req.CacheScope)
	}
	if len(p.placed) == 0 || e.vision == nil {
		made, err = e.lookAt(ctx, p)
	} else {
		made, err = e.recall(ctx, p)
	}
	if err != nil {
		return nil, 0, err
	}
	if len(p.heard) > 0 {
		err = e.listen(ctx, p, made, nil)
	}
	p.Tensors, p.alone, p.heard = nil, nil, nil // not needed while the answer is generated
	return made, preprocess + made.prepared, err
}

// lookAt decodes the pictures of a prompt and runs the stages on them.
func (e *Engine) lookAt(ctx context.Context, p *Prepared) (*stageResult, error) {
	start := time.Now()
	if err := e.preparePictures(ctx, p, nil); err != nil {
		return nil, err
	}
	prepared := time.Since(start)
	made, err := e.see(ctx, p, nil)
	if err == nil {
		made.prepared = prepared
	}
	return made, err
}

// recall puts a prompt's rows together from the cache and, for what is not there, from the stages.
func (e *Engine) recall(ctx context.Context, p *Prepared) (*stageResult, error) {
	var units []mediaUnit
	for _, u := range p.media {
		if !u.sound {
			units = append(units, u)
		}
	}
	r := &stageResult{width: e.manifest.Decoder.HiddenSize}
	rows := make([]*visionRows, len(units))
	for missing := true; missing; {
		missing = false
		flights := make([]*flight, len(units))
		var own []int
		for i, u := range units {
			if rows[i] != nil {
				continue
			}
			var mine bool
			if rows[i], flights[i], mine = e.vision.get(u.key); mine {
				own = append(own, i)
			}
		}
		if err := e.fulfil(ctx, p, units, own, flights, rows, r); err != nil {
			return nil, err
		}
		for i, f := range flights {
			if f == nil || rows[i] != nil {
				continue
			}
			start := time.Now()
			select {
			case <-f.done:
				r.first += time.Since(start) // another's stages, and time of this request all the same
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			if rows[i] = f.rows; f.rows != nil {
				e.vision.count(func(s *VisionStats) { s.Shared++ })
			} else {
				missing = true
			}
		}
	}
	r.join(rows)
	return r, nil
}

// fulfil makes the rows of the units that this request took upon itself, from the disk or by the stages, all of them at
// once. Every flight is settled when it returns.
func (e *Engine) fulfil(ctx context.Context, p *Prepared, units []mediaUnit, own []int, flights []*flight, rows []*visionRows, r *stageResult) error {
	defer func() {
		for _, i := range own {
			e.vision.settle(units[i].key, flights[i], rows[i])
		}
	}()
	var unseen []int
	sub := &Prepared{instruction: p.instruction}
	for _, i := range own {
		if rows[i] = e.vision.disk.load(units[i], r.width, e.stages.deepstack); rows[i] != nil {
			e.vision.count(func(s *VisionStats) { s.DiskHits++ })
			continue
		}
		unseen = append(unseen, i)
		sub.placed = append(sub.placed, units[i].placed...)
		sub.ImageTokens += units[i].tokens
	}
	if len(unseen) == 0 {
		return nil
	}
	made, err := e.lookAt(ctx, sub)
	if err != nil {
		return err
	}
	r.first, r.rest, r.prepared = r.first+made.first, r.rest+made.rest, r.prepared+made.prepared
	at := 0
	for _, i := range unseen {
		rows[i] = made.rowsOf(at, units[i].tokens)
		at += units[i].tokens
		e.vision.count(func(s *VisionStats) { s.Misses++ })
		e.vision.disk.store(units[i].key, rows[i])
	}
	return nil
}

// rowsOf copies a medium's rows out of those of several: what is kept must not hold on to its neighbours.
func (r *stageResult) rowsOf(first, n int) *visionRows {
	out := &visionRows{width: r.width, features: slices.Clone(r.features[first*r.width : (first+n)*r.width])}
	for _, level := range r.deepstack {
		out.deepstack = append(out.deepstack, slices.Clone(level[first*r.width:(first+n)*r.width]))
	}
	return out
}

// join puts the rows of media behind each other. Those of one alone are not copied: nobody writes to them.
func (r *stageResult) join(list []*visionRows) {
	if len(list) == 1 {
		r.features, r.deepstack = list[0].features, list[0].deepstack
		return
	}
	for _, one := range list {
		r.features = append(r.features, one.features...)
		for i, level := range one.deepstack {
			if len(r.deepstack) == i {
				r.deepstack = append(r.deepstack, nil)
			}
			r.deepstack[i] = append(r.deepstack[i], level...)
		}
	}
}
