// glimpse worker: the process that runs one model of serve. It is started by serve and of no use by hand.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"glimpse/engine"
	"glimpse/graphs"
	"glimpse/worker"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// WorkerOptions are the flags of worker.
type WorkerOptions struct {
	ModelOptions
	Socket string
}

// AddFlags adds the flags.
func (o *WorkerOptions) AddFlags(f *pflag.FlagSet) {
	o.ModelOptions.AddFlags(f, 4)
	o.CacheOptions.AddFlags(f, true)
	f.StringVar(&o.Socket, "socket", "", "Unix socket of the serve process")
}

func newWorker(a *app) *cobra.Command {
	var o WorkerOptions
	cmd := &cobra.Command{
		Use:    "worker MODEL --socket FILE",
		Short:  "Runs a model for serve, which starts it",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWorker(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runWorker(ctx context.Context, a *app, o WorkerOptions, folder string) (err error) {
	if o.Socket == "" {
		return badInputf("worker: --socket is missing: serve starts workers")
	}
	// Signals are for the process that serves: it lets requests finish and then closes the connection, and so ends this.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	ctx = context.WithoutCancel(ctx)
	// When memory runs out, the system should end this process and not the one that serves. Other systems have no such file.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
	a.log = worker.Logger(a.stderr, a.global.LogLevel)
	conn, err := net.Dial("unix", o.Socket)
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	var rt *graphs.Runtime
	defer func() {
		if rt != nil {
			err = errors.Join(err, rt.Close())
		}
	}()
	var told error
	err = worker.Serve(ctx, conn, a.log, func(ctx context.Context) (worker.Engine, error) {
		var e *engine.Engine
		if rt, told = a.openRuntime(); told == nil {
			e, told = a.openEngine(ctx, rt, folder, o.ModelOptions)
		}
		return e, told
	})
	if told != nil {
		return errFound // serve has the error and says it
	}
	return err
}

// workerCommand prepares the worker of a folder: this program, with the settings that this process has.
func (a *app) workerCommand(o ModelOptions, level slog.Level) (func(folder, socket string) *exec.Cmd, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program to start workers: %w", err)
	}
	if _, err := os.Stat("/proc/self/exe"); err == nil {
		program = "/proc/self/exe" // the same program even when its file was replaced since
	}
	args := []string{
		"glimpse", "worker", "--config", os.DevNull, // every setting comes as a flag
		"--device", a.global.Device, "--threads", strconv.Itoa(a.global.Threads), "--log-level", strings.ToLower(level.String()),
		"--slots", strconv.Itoa(o.Slots), "--context", strconv.Itoa(o.Context), "--max-pixels", strconv.Itoa(o.MaxPixels),
		"--memory", o.Memory, "--prefill-from", strconv.Itoa(o.PrefillFrom), "--cache-dir", o.CacheDir, "--kernels", a.global.Kernels,
	}
	args = append(args, o.CacheOptions.arguments()...)
	if a.global.OrtLib != "" {
		args = append(args, "--ort-lib", a.global.OrtLib)
	}
	return func(folder, socket string) *exec.Cmd {
		return &exec.Cmd{Path: program, Args: append(args[:len(args):len(args)], "--socket", socket, "--", folder)}
	}, nil
}
