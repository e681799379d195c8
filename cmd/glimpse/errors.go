// What an error means to the shell, and how it is printed.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"glimpse/batch"
	"glimpse/cmd/glimpse/internal/config"
	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
	"glimpse/hub"
	"glimpse/preprocess"
)

// Exit statuses. Scripts rely on them.
const (
	exitDone        = 0
	exitFound       = 1   // it ran, but found differences or failed items, or something of ours broke
	exitUsage       = 2   // bad usage or bad input
	exitInterrupted = 130 // stopped by a signal, as shells count it
)

// errFound says that a command ran and printed what it found; the status is the message.
var errFound = errors.New("differences or failures were found")

// inputError marks what the user got wrong.
type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

func badInput(err error) error {
	if err == nil {
		return nil
	}
	return &inputError{err}
}

func badInputf(format string, args ...any) error { return &inputError{fmt.Errorf(format, args...)} }

// exitCode maps an error to the exit status.
func exitCode(ctx context.Context, err error) int {
	var (
		input   *inputError
		request *engine.RequestError
		picture *preprocess.Error
	)
	switch {
	case err == nil:
		return exitDone
	case interrupted(ctx, err):
		return exitInterrupted
	case errors.As(err, &input), errors.As(err, &request), errors.As(err, &picture),
		errors.Is(err, convert.ErrInput), errors.Is(err, batch.ErrInput), errors.Is(err, config.ErrConfig),
		errors.Is(err, hub.ErrInput), errors.Is(err, hub.ErrNotFound), errors.Is(err, hub.ErrAccess), errors.Is(err, hub.ErrAbsent):
		return exitUsage
	default:
		return exitFound
	}
}

// interrupted reports whether err is how a command ended because of a signal. The cause is the signal.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)))
}

// report prints an error as one line, with the one exception of a list of places where a library was looked for.
func report(w io.Writer, ctx context.Context, err error) {
	var library *graphs.LibraryError
	switch {
	case err == nil, errors.Is(err, errFound):
	case interrupted(ctx, err):
		fmt.Fprintln(w, "glimpse: interrupted")
	case errors.As(err, &library):
		fmt.Fprintf(w, "glimpse: %v\n", err)
	default:
		fmt.Fprintf(w, "glimpse: %s\n", oneLine(err))
	}
}

// oneLine joins the lines of joined errors and takes the program's own markers off the front, which are for errors.Is.
func oneLine(err error) string {
	text := err.Error()
	for _, marker := range []error{convert.ErrInput, batch.ErrInput, config.ErrConfig} {
		text = strings.TrimPrefix(text, marker.Error()+": ")
	}
	return oneLineText(text)
}

// oneLineText makes a text fit for one line of a terminal. Names come from files of strangers: nothing in them may steer
// the terminal.
func oneLineText(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.Join(lines, "; "))
}
