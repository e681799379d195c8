// glimpse serve: models over HTTP.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"glimpse/cmd/glimpse/internal/config"
	"glimpse/engine"
	"glimpse/manifest"
	"glimpse/server"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ServeOptions are the flags of serve.
type ServeOptions struct {
	ModelOptions
	Listen       string
	Keys         string
	TLSCert      string
	TLSKey       string
	LocalMedia   string
	MediaHosts   []string
	MaxBody      int64
	MaxMedia     int64
	MaxPictures  int
	BodyTimeout  time.Duration
	WriteTimeout time.Duration
	PrintConfig  bool
	InFlight     int
	AnswerTime   time.Duration
	DrainDelay   time.Duration
	DrainTimeout time.Duration
	Models       string // the folder that is watched; without it the named models only
	InProcess    bool
	MemoryLimit  int64
}

// AddFlags adds the flags.
func (o *ServeOptions) AddFlags(f *pflag.FlagSet) {
	o.ModelOptions.AddFlags(f, 4)
	o.CacheOptions.AddFlags(f, true)
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8080", "`address` to listen on; port 0 picks a free one")
	f.StringVar(&o.Keys, "keys", "", "`file` with hashes of the API keys; without it no key is asked for")
	f.StringVar(&o.TLSCert, "tls-cert", "", "PEM `file` of the certificate")
	f.StringVar(&o.TLSKey, "tls-key", "", "PEM `file` of the key")
	f.StringVar(&o.LocalMedia, "allow-local-media", "", "`folder` that file:// URLs of requests may name files of; without it none")
	f.StringSliceVar(&o.MediaHosts, "media-hosts", nil, "`hosts` that http(s) URLs of requests may name: images.example.com, *.example.com, host:port, or * for every public one; without it none")
	f.Var(&count{&o.InFlight, 0}, "in-flight", "answers being made or waiting, a model; 0: 64")
	f.DurationVar(&o.AnswerTime, "answer-timeout", 0, "for making one answer, waiting included; 0: 10m")
	f.DurationVar(&o.DrainDelay, "drain-delay", 0, "between \"not ready\" and closing the listener when stopping")
	f.DurationVar(&o.DrainTimeout, "drain-timeout", 0, "for requests in flight when stopping; 0: 30s")
	f.Var(&byteCount{&o.MaxBody}, "max-body", "largest request body in `bytes`; 0: 32MiB")
	f.Var(&byteCount{&o.MaxMedia}, "max-media", "largest picture, video or sound of a request in `bytes`, encoded; 0: 20MiB")
	f.Var(&count{&o.MaxPictures, 0}, "max-pictures", "pictures, videos and sounds of a request; 0: 16")
	f.DurationVar(&o.BodyTimeout, "body-timeout", 0, "for a request's body to arrive; 0: 1m")
	f.DurationVar(&o.WriteTimeout, "write-timeout", 0, "for a client to take what is written to it; 0: 30s")
	f.BoolVar(&o.InProcess, "in-process", false, "run the models in this process; a crash of one is then a crash of all")
	f.Var(&byteCount{&o.MemoryLimit}, "memory-limit", "`bytes` that the models may hold together (12GiB, 800MB); they are then loaded when asked for")
	f.BoolVar(&o.PrintConfig, "print-config", false, "print all settings and where each comes from, as a glimpse.toml, and end")
}

func newServe(a *app) *cobra.Command {
	var o ServeOptions
	cmd := &cobra.Command{
		Use:     "serve [MODEL...] [--models DIR]",
		Short:   "Serves models over HTTP, with OpenAI's API",
		Long:    "Serves the models under the names of their folders; MODEL may be the name of one in the models folder. Without MODEL all in\nthe models folder are served, and it is watched: models may come, change and go. The first signal drains: requests in flight may finish.",
		Example: "  glimpse serve llava/ --listen 127.0.0.1:8080",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !a.global.logGiven {
				a.global.LogLevel = slog.LevelInfo // a server that says nothing at all looks hung
				a.setLogLevel(a.global.LogLevel)
			}
			if o.PrintConfig {
				return config.Print(a.stdout, cmd.Flags(), a.sources)
			}
			return runServe(cmd.Context(), a, o, args)
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runServe(ctx context.Context, a *app, o ServeOptions, folders []string) (err error) {
	folders, err = o.served(a, folders)
	if err != nil {
		return err
	}
	if err := o.check(folders); err != nil {
		return badInput(err)
	}
	// The port is taken before models are loaded: that it is in use should not be news after minutes.
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return badInputf("--listen: %w", err)
	}
	defer ln.Close() // Serve closes it too
	spans, closeTraces, err := openTraces(ctx, a)
	if err != nil {
		return err
	}
	defer closeTraces()
	opened, err := openModels(ctx, a, o, folders)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.close()) }()
	fetcher, err := o.fetcher()
	if err != nil {
		return badInput(err)
	}
	s, err := server.New(server.Options{
		Models: opened.models, ModelsLater: o.Models != "", Logger: a.log, KeyFile: o.Keys, TLSCert: o.TLSCert, TLSKey: o.TLSKey, LocalMedia: o.LocalMedia, Fetcher: fetcher, FFmpeg: a.global.FFmpeg, Traces: spans,
		Limits: server.Limits{InFlight: o.InFlight, AnswerTimeout: o.AnswerTime, DrainDelay: o.DrainDelay, DrainTimeout: o.DrainTimeout,
			BodyBytes: o.MaxBody, MediaBytes: o.MaxMedia, Pictures: o.MaxPictures, BodyTimeout: o.BodyTimeout, WriteTimeout: o.WriteTimeout},
	})
	if err != nil {
		return badInput(err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if o.Models != "" {
		unwatch, err := watchModels(ctx, a, o.Models, opened.pool, s)
		if err != nil {
			return badInput(err)
		}
		defer unwatch()
	}
	serving := func() { fmt.Fprintf(a.stderr, "glimpse: serving %s on %s\n", o.what(opened.models), address(o, ln)) }
	if opened.load == nil {
		serving()
		return s.Serve(ctx, ln)
	}
	// While models load, requests wait for them, and /readyz says so.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	loaded := make(chan error, 1)
	go func() {
		err := opened.load(ctx)
		if err == nil {
			serving()
		} else {
			stop(err)
		}
		loaded <- err
	}()
	err = s.Serve(ctx, ln)
	stop(err) // a server that failed waits for nothing
	if failed := <-loaded; failed != nil && !errors.Is(failed, context.Canceled) {
		return failed
	}
	return err
}

// served turns the named models into their folders. Where none is named, all of the models folder are served.
func (o *ServeOptions) served(a *app, models []string) ([]string, error) {
	if len(models) == 0 {
		dir, err := a.modelsDir()
		if _, there := os.Stat(dir); err == nil && a.global.Models == "" && there != nil {
			err = badInputf("serve: no model: name model folders, pull models, or name a folder of them with --models (%s is not there)", dir)
		}
		o.Models = dir
		return nil, err
	}
	folders := make([]string, len(models))
	for i, m := range models {
		var err error
		if folders[i], err = a.modelFolder(m); err != nil {
			return nil, err
		}
	}
	return folders, nil
}

// check finds what would end the server at its start, before models are loaded for nothing.
func (o *ServeOptions) check(folders []string) error {
	seen := map[string]string{}
	for _, folder := range folders {
		if _, err := manifest.Read(folder); err != nil {
			return err
		}
		path, err := filepath.Abs(folder)
		if err != nil {
			return err
		}
		name := filepath.Base(path) // as the engine names itself
		if other, ok := seen[name]; ok {
			return fmt.Errorf("%s and %s would both be served as %q: rename one folder", other, folder, name)
		}
		seen[name] = folder
	}
	if o.InProcess && (o.MemoryLimit > 0 || o.Models != "") {
		return errors.New("--memory-limit and a folder of models (--models, or no MODEL) need a process for each model: leave --in-process out")
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		return errors.New("TLS needs both --tls-cert and --tls-key")
	}
	if o.TLSCert != "" {
		if _, err := tls.LoadX509KeyPair(o.TLSCert, o.TLSKey); err != nil {
			return fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
	}
	if _, err := o.fetcher(); err != nil {
		return err
	}
	if o.Keys != "" {
		if _, err := server.LoadKeys(o.Keys); err != nil {
			return fmt.Errorf("--keys: %w", err)
		}
	}
	return nil
}

// fetcher is what gets media by URL; nil where no host is allowed.
func (o *ServeOptions) fetcher() (server.Fetcher, error) {
	if len(o.MediaHosts) == 0 {
		return nil, nil
	}
	f, err := server.NewFetcher(server.FetcherOptions{Hosts: o.MediaHosts})
	if err != nil {
		return nil, fmt.Errorf("--media-hosts: %w", err)
	}
	return f, nil
}

// what names what is served.
func (o *ServeOptions) what(models []server.Model) string {
	var words []string
	for _, m := range models {
		words = append(words, m.Name())
	}
	if o.Models != "" {
		words = append(words, "the models in "+o.Models)
	}
	return strings.Join(words, ", ")
}

func address(o ServeOptions, ln net.Listener) string {
	if o.TLSCert != "" {
		return "https://" + ln.Addr().String()
	}
	return "http://" + ln.Addr().String()
}

var _ server.Model = (*engine.Engine)(nil)
