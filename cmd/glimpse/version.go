// glimpse version: what this binary is, and which ONNX Runtime it finds.

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"glimpse/graphs"

	"github.com/spf13/cobra"
)

// build says what the binary was made from.
type build struct {
	Version     string `json:"version"`
	Commit      string `json:"commit,omitempty"`
	Modified    bool   `json:"modified"` // there were changes that were not committed
	Go          string `json:"go"`
	ONNXRuntime string `json:"onnxruntime,omitempty"` // "" when none is found
	Library     string `json:"library,omitempty"`
}

// buildVersion reads what the Go tool recorded. A build outside a repository has no commit.
func buildVersion() build {
	b := build{Version: "devel", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func newVersion(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Prints the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return runVersion(a, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runVersion(a *app, asJSON bool) error {
	b := buildVersion()
	if lib, err := graphs.FindLibrary(a.global.OrtLib); err == nil { // doctor says why there is none
		b.ONNXRuntime, b.Library = lib.Version, lib.Path
	}
	if asJSON {
		return writeJSON(a.stdout, b)
	}
	commit := firstOf(b.Commit, "unknown")
	if b.Modified {
		commit += ", modified"
	}
	runtimeLine := "not found (see `glimpse doctor`)"
	if b.ONNXRuntime != "" {
		runtimeLine = b.ONNXRuntime + " at " + b.Library
	}
	_, err := fmt.Fprintf(a.stdout, "glimpse %s\ncommit %s\n%s\nONNX Runtime %s\n", b.Version, commit, b.Go, runtimeLine)
	return err
}
