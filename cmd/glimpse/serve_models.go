// The models of serve: each in a worker process, or all in this one.

package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"glimpse/server"
	"glimpse/worker"
)

// servedModels are the models of a server and what must be closed after it. load, where it is set, loads those that are to
// be there from the start, while the server answers already that it is not ready.
type servedModels struct {
	models []server.Model
	pool   *worker.Pool // nil: they are in this process
	load   func(context.Context) error
	close  func() error
}

// openModels opens the folders as the options say.
func openModels(ctx context.Context, a *app, o ServeOptions, folders []string) (*servedModels, error) {
	if o.InProcess {
		return modelsHere(ctx, a, o, folders)
	}
	return modelsInWorkers(ctx, a, o, folders)
}

// modelsHere opens engines in this process.
func modelsHere(ctx context.Context, a *app, o ServeOptions, folders []string) (_ *servedModels, err error) {
	s := &servedModels{close: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	rt, err := a.openRuntime()
	if err != nil {
		return nil, err
	}
	s.close = rt.Close
	for _, folder := range folders {
		e, err := a.openEngine(ctx, rt, folder, o.ModelOptions)
		if err != nil {
			return nil, err
		}
		rest := s.close
		s.close = func() error { return errors.Join(e.Close(), rest()) }
		s.models = append(s.models, e)
	}
	return s, nil
}

// modelsInWorkers prepares workers. Without a memory limit all models are loaded from the start and stay; with one they are
// loaded when they are asked for.
func modelsInWorkers(ctx context.Context, a *app, o ServeOptions, folders []string) (*servedModels, error) {
	command, err := a.workerCommand(o.ModelOptions, a.global.LogLevel)
	if err != nil {
		return nil, err
	}
	pool, err := worker.NewPool(worker.Options{Command: command, MemoryLimit: o.MemoryLimit, Logger: a.log})
	if err != nil {
		return nil, badInput(err)
	}
	s := &servedModels{pool: pool}
	var loaded []*worker.Model
	for _, folder := range folders {
		m, err := pool.Add(folder)
		if err != nil {
			return nil, badInput(errors.Join(err, pool.Close()))
		}
		s.models, loaded = append(s.models, m), append(loaded, m)
	}
	if o.MemoryLimit == 0 {
		s.load = func(ctx context.Context) error { return loadAll(ctx, loaded) }
	}
	stop := reloadOnSignal(ctx, a, pool)
	s.close = func() error {
		stop()
		return pool.Close()
	}
	return s, nil
}

// loadAll loads the models and returns the first error.
func loadAll(ctx context.Context, models []*worker.Model) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for _, m := range models {
		all.Go(func() {
			if err := m.Load(ctx); err != nil {
				cancel(badInput(err))
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// reloadOnSignal reloads the models on SIGHUP, until stop is called.
func reloadOnSignal(ctx context.Context, a *app, pool *worker.Pool) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			a.log.Info("reloading the models")
			if err := pool.Reload(ctx); err != nil {
				a.log.Error("some models were not reloaded, and go on as they are", "error", err)
			}
		}
	})
	return func() {
		signal.Stop(signals)
		cancel()
		ended.Wait()
	}
}

var _ interface {
	server.Model
	server.Scorer
	server.Readier
} = (*worker.Model)(nil)
