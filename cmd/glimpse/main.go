// Command glimpse converts multimodal checkpoints to ONNX graphs and runs them. docs/cli.md describes the commands.
//
// A verb is a file: its options, AddFlags, and a run function that takes a context. Results go to standard output,
// everything else to standard error. What a failure means to the shell is decided in one place, exitCode in errors.go.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first signal asks every command to stop cleanly; after it the default action is back, so a second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program without the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := exitCode(ctx, err)
	report(stderr, ctx, err)
	return code
}
