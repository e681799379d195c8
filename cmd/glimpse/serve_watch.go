// A folder of models that serve watches: what comes into it is served, what changes is loaded anew, what goes is let go.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"glimpse/manifest"
	"glimpse/server"
	"glimpse/worker"
)

// watchEvery is how often the folder is looked at: a few calls of the system for each model.
const watchEvery = time.Second

// modelsFolder serves the model folders in dir. Its models are loaded when they are first asked for.
type modelsFolder struct {
	dir    string
	pool   *worker.Pool
	server *server.Server
	log    *slog.Logger
	// By name: what was served or refused, and what was seen last. A folder is acted on when it looks the same twice, so
	// that one that is being written is left alone.
	done, seen map[string]string
	models     map[string]*worker.Model
	tasks      sync.WaitGroup
}

// watchModels adds what dir has now, and watches it until stop is called, which must be before the pool is closed.
func watchModels(ctx context.Context, a *app, dir string, pool *worker.Pool, s *server.Server) (stop func(), err error) {
	f := &modelsFolder{dir: dir, pool: pool, server: s, log: a.log.With("models", dir), done: map[string]string{}, models: map[string]*worker.Model{}}
	if f.seen, err = f.look(); err != nil {
		return nil, fmt.Errorf("--models: %w", err)
	}
	f.act(ctx, f.seen)
	ctx, cancel := context.WithCancel(ctx)
	f.tasks.Go(func() { f.watch(ctx) })
	return func() {
		cancel()
		f.tasks.Wait()
	}, nil
}

func (f *modelsFolder) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var trouble error
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := f.look()
		if err != nil { // a disk that is away for a moment is no reason to let go of everything
			if trouble == nil {
				f.log.Error("cannot look at the models folder; its models go on", "error", err)
			}
			trouble = err
			continue
		}
		trouble = nil
		f.act(ctx, now)
		f.seen = now
	}
}

// look returns what tells one state of each model folder from another.
func (f *modelsFolder) look() (map[string]string, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, fmt.Errorf("look at the models folder: %w", err)
	}
	found := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // being written
		}
		// convert puts a whole folder in its place by renaming, so the manifest stands for all of it.
		if info, err := os.Stat(filepath.Join(f.dir, e.Name(), manifest.FileName)); err == nil {
			found[e.Name()] = fmt.Sprint(info.ModTime().UnixNano(), " ", info.Size())
		}
	}
	return found, nil
}

// act serves what is new, reloads what changed and lets go of what is gone.
func (f *modelsFolder) act(ctx context.Context, now map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if f.done[name] == now[name] || f.seen[name] != now[name] {
			continue
		}
		f.done[name] = now[name]
		m := f.models[name]
		if m == nil {
			f.add(name)
			continue
		}
		f.log.Info("the model's folder has changed", "model", name)
		if err := m.Reload(ctx); err != nil && ctx.Err() == nil {
			f.log.Error("the model goes on as it was", "model", name, "error", err)
		}
	}
	for name := range f.done {
		// Twice absent as well: replacing a folder by renaming leaves a moment without one.
		_, there := now[name]
		if _, before := f.seen[name]; !there && !before {
			delete(f.done, name)
			f.remove(ctx, name)
		}
	}
}

func (f *modelsFolder) add(name string) {
	m, err := f.pool.Add(filepath.Join(f.dir, name))
	if err == nil {
		if err = f.server.AddModel(m); err != nil {
			err = errors.Join(err, m.Close())
		}
	}
	if err != nil {
		f.log.Error("a folder is not served until it changes", "folder", name, "error", err)
		return
	}
	f.models[name] = m
	f.log.Info("serving a model", "model", name)
}

func (f *modelsFolder) remove(ctx context.Context, name string) {
	m := f.models[name]
	if m == nil {
		return // it was refused
	}
	delete(f.models, name)
	f.server.RemoveModel(name)
	f.log.Info("the model's folder is gone; requests in flight may finish", "model", name)
	ended := m.Unload()
	f.tasks.Go(func() {
		select {
		case <-ended:
		case <-ctx.Done():
		}
		_ = m.Close() // it never fails
	})
}
