// Loading a model's graphs at the same time.
//
// Nearly all of the time that a graph takes to load is ONNX Runtime packing its weights for its kernels, which it does on
// one thread: two graphs load in the time of the larger one where there are two processors. What ONNX Runtime offers to
// keep packed weights on disk saves none of it: it packs all the same, and compares (docs/performance.md).

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"glimpse/graphs"
	"glimpse/manifest"
)

// preload is the graphs of a folder while they are loaded, for loadComponent to take. A nil one has none.
type preload struct {
	cancel context.CancelFunc

	mu     sync.Mutex
	graphs map[string]*graphLoad // those that nobody has taken
}

// graphLoad is a graph that is being loaded.
type graphLoad struct {
	name    string
	done    chan struct{} // closed when session or err is set
	session *graphs.Session
	err     error
}

// startPreload begins to load every graph that the engine will want, the largest first and as many at once as an operator
// may have threads. close must be called when all that is wanted has been taken.
func startPreload(ctx context.Context, folder string, m *manifest.Manifest, opts Options) *preload {
	names := preloadNames(m, opts)
	if len(names) < 2 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &preload{cancel: cancel, graphs: make(map[string]*graphLoad, len(names))}
	queue := make(chan *graphLoad, len(names))
	for _, name := range names {
		load := &graphLoad{name: name, done: make(chan struct{})}
		p.graphs[name] = load
		queue <- load
	}
	close(queue)
	threads := opts.Threads
	if threads == 0 {
		threads = graphs.DefaultThreads()
	}
	for range min(threads, len(names)) {
		go func() {
			for load := range queue {
				load.session, load.err = loadGraph(ctx, folder, load.name, m, opts)
				close(load.done)
			}
		}()
	}
	return p
}

// preloadNames lists the components that are loaded whatever is asked of the model, the largest first.
func preloadNames(m *manifest.Manifest, opts Options) []string {
	var names []string
	for name := range m.Components {
		if opts.LowMemory && m.Decoder != nil && name == m.Decoder.Prefill {
			continue
		}
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(m.Components[b].Bytes, m.Components[a].Bytes), cmp.Compare(a, b))
	})
	return names
}

// take hands a graph over, once it is loaded; ok is false when there is none of that name, or it was taken before.
func (p *preload) take(ctx context.Context, name string) (session *graphs.Session, ok bool, err error) {
	if p == nil {
		return nil, false, nil
	}
	p.mu.Lock()
	load := p.graphs[name]
	delete(p.graphs, name)
	p.mu.Unlock()
	if load == nil {
		return nil, false, nil
	}
	<-load.done // soon when ctx ends, of which the load's context is a child
	return load.session, true, load.err
}

// close stops what is still being loaded and closes what nobody has taken.
func (p *preload) close() error {
	if p == nil {
		return nil
	}
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for name, load := range p.graphs {
		<-load.done
		err = errors.Join(err, load.session.Close())
		delete(p.graphs, name)
	}
	return err
}

// loadGraph loads one graph of the folder as its part in the model wants.
func loadGraph(ctx context.Context, folder, name string, m *manifest.Manifest, opts Options) (*graphs.Session, error) {
	s, err := opts.Runtime.Load(ctx, filepath.Join(folder, m.Components[name].File), graphs.SessionOptions{
		Device: graphs.Device(opts.Device), DeviceID: opts.DeviceID, Threads: opts.Threads,
		// The picture graphs, and the one for prompts, run now and then beside a decoder that is always busy.
		StopSpinning: m.Decoder == nil || name != m.Decoder.Component,
		// What is read as it comes should not stutter because somebody else has sent a picture.
		Background: m.Decoder != nil && name != m.Decoder.Component && name != m.Decoder.Prefill,
		// A decoder reads all its weights for every token; the copy costs memory while both are there.
		PackWeights: m.Decoder != nil && name == m.Decoder.Component && !opts.LowMemory,
	})
	if err != nil {
		return nil, fmt.Errorf("load component %s: %w", name, err)
	}
	return s, nil
}
