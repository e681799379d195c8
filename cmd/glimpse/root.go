// The root command and what the verbs share: global options, the log, ONNX Runtime, an open model.

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"

	"glimpse/cmd/glimpse/internal/config"
	"glimpse/engine"
	"glimpse/graphs"
	"glimpse/manifest"
	"glimpse/preprocess"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// GlobalOptions are the flags of every command.
type GlobalOptions struct {
	Config   string
	Device   string
	Threads  int
	OrtLib   string
	Kernels  string
	FFmpeg   string
	Models   string
	LogLevel slog.Level
	logGiven bool
}

// AddFlags adds the global flags.
func (o *GlobalOptions) AddFlags(f *pflag.FlagSet) {
	o.Device, o.LogLevel = "cpu", slog.LevelWarn
	f.StringVar(&o.Config, "config", "", "`file` with settings (default: glimpse.toml in the working directory, if there is one)")
	f.Var(&deviceName{&o.Device}, "device", "where graphs run: cpu, cuda, cuda:N for GPU N, or auto")
	f.Var(&count{&o.Threads, 0}, "threads", "threads of one operator; 0: the physical cores")
	o.Kernels = kernelsAuto
	f.Var(&choice{&o.Kernels, []string{kernelsAuto, kernelsStock}}, "kernels", "auto: glimpse's own kernels where the processor has what they need; stock: ONNX Runtime's alone")
	f.StringVar(&o.OrtLib, "ort-lib", "", "ONNX Runtime's shared `library`, or the folder it is in")
	f.StringVar(&o.FFmpeg, "ffmpeg", "", "`program` that decodes videos and sounds (default: ffmpeg from PATH); ffprobe is beside it")
	f.StringVar(&o.Models, "models", "", "`folder` that models are found in by their names (default: glimpse/models in the user's data folder)")
	f.Var(&logLevel{&o.LogLevel, &o.logGiven}, "log-level", "what is logged to standard error: debug, info, warn, error")
}

// Words of --kernels.
const (
	kernelsAuto  = "auto"
	kernelsStock = "stock"
)

// graphsOptions say how this command opens ONNX Runtime.
func (a *app) graphsOptions() graphs.Options {
	return graphs.Options{LibraryPath: a.global.OrtLib, Logger: a.log, StockKernels: a.global.Kernels == kernelsStock}
}

// ModelOptions are the flags of the commands that run a model.
type ModelOptions struct {
	Slots        int
	Context      int
	MaxPixels    int
	Memory       string
	PrefillFrom  int
	CacheDir     string
	CacheOptions // has flags of its own: commands without them keep nothing between requests
}

// Words of --memory.
const (
	memoryNormal = "normal"
	memoryLow    = "low"
)

// AddFlags adds the flags; slots is the default of --slots.
func (o *ModelOptions) AddFlags(f *pflag.FlagSet, slots int) {
	o.Slots, o.MaxPixels = slots, preprocess.DefaultMaxPixels
	f.Var(&count{&o.Slots, 1}, "slots", "requests that decode together")
	f.Var(&count{&o.Context, 0}, "context", "prompt and answer tokens of one request; 0: what the model allows, at most 4096")
	f.Var(&count{&o.MaxPixels, 1}, "max-pixels", "largest width × height of a picture")
	o.Memory = memoryNormal
	f.Var(&choice{&o.Memory, []string{memoryNormal, memoryLow}}, "memory", "low: without the graph that reads prompts faster, where the model has one")
	f.Var(&count{&o.PrefillFrom, 0}, "prefill-from", "tokens of a step from which on the prefill graph runs it; 0: measured once on this machine")
	f.StringVar(&o.CacheDir, "cache-dir", "", "`folder` for what is measured or made once; default: glimpse in the user's cache folder")
}

// app is what every command gets.
type app struct {
	stdout, stderr io.Writer
	global         GlobalOptions
	log            *slog.Logger
	sources        config.Sources // of the settings
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "glimpse",
		Short: "Converts multimodal checkpoints to ONNX graphs and runs them",
		Long: "glimpse converts multimodal checkpoints to ONNX graphs, and captions pictures and answers about them with ONNX Runtime.\n\n" +
			"Exit status: 0 done, 1 ran but found differences or failed items, 2 bad usage or bad input, 130 interrupted.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.configure(cmd)
		},
	}
	a.global.AddFlags(root.PersistentFlags())
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return badInputf("%w (see `%s --help`)", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(
		newConvert(a), newPull(a), newList(a), newRemove(a), newAsk(a), newCaption(a), newQueue(a), newVerify(a), newInspect(a), newSynth(a),
		newServe(a), newBench(a), newScore(a), newEmbed(a), newDoctor(a), newVersion(a), newWorker(a),
	)
	for _, c := range root.Commands() {
		markUsage(c)
	}
	markUsage(root)
	return root
}

// markUsage makes wrong numbers of arguments and unknown commands bad usage.
func markUsage(c *cobra.Command) {
	check := c.Args
	c.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		if !cmd.HasParent() {
			near := ""
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				near = "; did you mean " + strings.Join(s, " or ") + "?"
			}
			return badInputf("unknown command %q%s (see `glimpse --help`)", args[0], near)
		}
		return badInputf("%s: wrong number of arguments (%d); usage: %s", cmd.Name(), len(args), cmd.UseLine())
	}
}

// configure lays the environment and the file under the flags and opens the log.
func (a *app) configure(cmd *cobra.Command) error {
	path := a.global.Config
	if path == "" {
		path = os.Getenv("GLIMPSE_CONFIG")
	}
	file, err := config.Read(path)
	if err != nil {
		return err
	}
	if a.sources, err = config.Apply(cmd.Flags(), os.LookupEnv, file); err != nil {
		return err
	}
	a.setLogLevel(a.global.LogLevel)
	for _, strange := range config.Strange(os.Environ()) {
		a.log.Warn(strange)
	}
	return nil
}

func (a *app) setLogLevel(level slog.Level) {
	a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

// openRuntime opens ONNX Runtime.
func (a *app) openRuntime() (*graphs.Runtime, error) {
	return graphs.Open(a.graphsOptions())
}

// withEngine opens a model folder, runs f, and closes what it opened.
func (a *app) withEngine(ctx context.Context, folder string, o ModelOptions, f func(*engine.Engine) error) (err error) {
	// The folder is judged first: without a model there is no point in looking for a library.
	if _, err := manifest.Read(folder); err != nil {
		return badInput(err)
	}
	rt, err := a.openRuntime()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	e, err := a.openEngine(ctx, rt, folder, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	return f(e)
}

// openEngine opens a model folder on an ONNX Runtime that is there.
func (a *app) openEngine(ctx context.Context, rt *graphs.Runtime, folder string, o ModelOptions) (*engine.Engine, error) {
	e, err := engine.Open(ctx, folder, engine.Options{
		Runtime: rt, Device: a.global.Device, Threads: a.global.Threads,
		Slots: o.Slots, Capacity: o.Context, LowMemory: o.Memory == memoryLow, WideRows: o.PrefillFrom, CacheDir: o.CacheDir,
		VisionCache: o.Vision, VisionCacheDir: o.VisionDir, VisionCacheDisk: o.VisionDisk, PrefixCache: o.Prefix, Speculation: o.Speculation,
		Limits: preprocess.Limits{MaxPixels: int64(o.MaxPixels)}, Logger: a.log,
	})
	if err != nil && ctx.Err() == nil {
		return nil, badInput(err) // the library is there, so it is the folder, or what was asked of it
	}
	return e, err
}

// isTerminal reports whether w is a terminal that a progress bar can be drawn on.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width > 0 && height > 0 // one without a size, as some recorders are, shows no bar
}
