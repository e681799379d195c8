// Errors across the socket.

package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"glimpse/engine"
)

// Unavailable is the error of a request that a model cannot answer now: its process died with the request in flight, or
// it cannot be loaded. Its text is for the client; what happened is in Err. A server answers 503 with Retry-After.
type Unavailable struct {
	Message string
	After   time.Duration // when to ask again
	Err     error
}

func (e *Unavailable) Error() string { return e.Message }

// Unwrap returns what happened.
func (e *Unavailable) Unwrap() error { return e.Err }

// RetryAfter returns when to ask again.
func (e *Unavailable) RetryAfter() time.Duration { return e.After }

// retrySoon is when a worker that died is expected to be back.
const retrySoon = 2 * time.Second

func diedInFlight(cause error) error {
	return &Unavailable{Message: "the model's process ended while it worked on this request: try again", After: retrySoon, Err: cause}
}

// failure is an error on its way. Sentinel is an index of sentinels, plus one.
type failure struct {
	Message     string
	Request     bool // an engine.RequestError; Param and Code are its
	Param, Code string
	Sentinel    int
}

// sentinels are the errors that callers look for. New ones go to the end.
var sentinels = []error{
	engine.ErrContextTooLong, engine.ErrNoDecoder, engine.ErrNoPictures, engine.ErrNoScores, engine.ErrTextTooLong, engine.ErrPicture,
	engine.ErrBadLogits, engine.ErrClosed, context.Canceled, context.DeadlineExceeded, engine.ErrNoSounds, engine.ErrSound, engine.ErrNoSounds, engine.ErrSound,
}

func failureOf(err error) failure {
	f := failure{Message: err.Error()}
	var request *engine.RequestError
	if errors.As(err, &request) {
		f.Request, f.Message, f.Param, f.Code = true, request.Message, request.Param, request.Code
	}
	for i, s := range sentinels {
		if errors.Is(err, s) {
			f.Sentinel = i + 1
			break
		}
	}
	return f
}

// sent is an error that came from a worker: its text, and the sentinel that it wrapped.
type sent struct {
	message string
	cause   error
}

func (e *sent) Error() string { return e.message }
func (e *sent) Unwrap() error { return e.cause }

// err is the error that failureOf was given, as far as callers can tell.
func (f failure) err() error {
	var cause error
	if f.Sentinel > 0 && f.Sentinel <= len(sentinels) {
		cause = sentinels[f.Sentinel-1]
	}
	if f.Request {
		return &engine.RequestError{Param: f.Param, Code: f.Code, Message: f.Message, Err: cause}
	}
	return &sent{message: f.Message, cause: cause}
}

// LoadError says why a worker could not load its model.
type LoadError struct {
	Folder string
	Err    error
}

func (e *LoadError) Error() string { return fmt.Sprintf("load %s: %v", e.Folder, e.Err) }

// Unwrap returns the worker's own error.
func (e *LoadError) Unwrap() error { return e.Err }
