// Errors in OpenAI's shape. Everything that goes wrong in a request ends here, as an *Error.

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"os"
	"strconv"
	"time"

	"glimpse/engine"
	"glimpse/server/spec"
)

// Types of an Error, as OpenAI names them.
const (
	typeInvalid    = "invalid_request_error"
	typeRateLimit  = "rate_limit_error"
	typePermission = "permission_error"
	typeServer     = "server_error"
)

// Codes of an Error that are the server's own; those of the engine and of spec pass through.
const (
	codeModelNotFound  = "model_not_found"
	codeQueueFull      = "queue_full"
	codeRateLimit      = "rate_limit_exceeded"
	codeBusy           = "server_busy"
	codeDraining       = "server_stopping"
	codeInternal       = "internal_error"
	codeUnavailable    = "model_unavailable"
	codeBodyTooLarge   = "request_too_large"
	codeSlowBody       = "request_timeout"
	codeAnswerTimeout  = "answer_timeout"
	codeMediaType      = "unsupported_media_type"
	codeCrossOrigin    = "cross_origin"
	codeInvalidKey     = "invalid_api_key"
	codeMediaRefused   = "media_url_not_allowed"
	codeInvalidMedia   = "invalid_image"
	codeNotFound       = "not_found"
	codeMethod         = "method_not_allowed"
	codeClientGone     = "client_closed_request"
	statusClientClosed = 499 // nginx's; only ever seen in logs and metrics
)

// Error is a request that failed, as the client sees it.
type Error struct {
	Status     int
	Type       string
	Code       string
	Param      string
	Message    string
	RetryAfter int // seconds; 0: no such header
	cause      error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns what is only logged.
func (e *Error) Unwrap() error { return e.cause }

type errorBody struct {
	Error errorObject `json:"error"`
}

type errorObject struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}

func (e *Error) body() errorBody {
	return errorBody{errorObject{Message: e.Message, Type: e.Type, Param: optional(e.Param), Code: optional(e.Code)}}
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func invalid(param, code, message string) *Error {
	return &Error{Status: http.StatusBadRequest, Type: typeInvalid, Code: code, Param: param, Message: message}
}

// unavailable is what a model returns when it cannot answer now and will again: its process died, or does not start. Its
// text is for the client.
type unavailable interface {
	error
	RetryAfter() time.Duration
}

// asError says what a client is told about err. Errors that are not the client's fault get an id that is in the log too,
// and none of their text.
func asError(err error) *Error {
	var (
		own      *Error
		request  *engine.RequestError
		decoding *spec.Error
		later    unavailable
	)
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &later):
		return &Error{Status: http.StatusServiceUnavailable, Type: typeServer, Code: codeUnavailable, Message: later.Error(),
			RetryAfter: max(1, int(math.Ceil(later.RetryAfter().Seconds()))), cause: err}
	case errors.As(err, &request):
		return &Error{Status: http.StatusBadRequest, Type: typeInvalid, Code: request.Code, Param: request.Param, Message: request.Message, cause: err}
	case errors.As(err, &decoding):
		first := decoding.Problems[0]
		return &Error{Status: http.StatusBadRequest, Type: typeInvalid, Code: first.Code, Param: first.Param, Message: decoding.Error()}
	case errors.Is(err, errAnswerTimeout):
		return &Error{Status: http.StatusGatewayTimeout, Type: typeServer, Code: codeAnswerTimeout, Message: "the answer took longer than this server allows: ask for fewer tokens", cause: err}
	case errors.Is(err, errCutOff), errors.Is(err, engine.ErrClosed):
		return &Error{Status: http.StatusServiceUnavailable, Type: typeServer, Code: codeDraining, Message: "the server is stopping", RetryAfter: 5, cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{Status: statusClientClosed, Type: typeInvalid, Code: codeClientGone, Message: "the client closed the request", cause: err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{Status: http.StatusRequestTimeout, Type: typeInvalid, Code: codeSlowBody, Message: "the request body did not arrive in time", cause: err}
	}
	return internalError(err)
}

func internalError(cause error) *Error {
	id := newID("err_")
	return &Error{Status: http.StatusInternalServerError, Type: typeServer, Code: codeInternal, cause: &identified{id: id, err: cause},
		Message: "internal error " + id + ": the server's log says more under this id"}
}

// identified joins an internal error with the id the client was given.
type identified struct {
	id  string
	err error
}

func (e *identified) Error() string { return e.id + ": " + e.err.Error() }
func (e *identified) Unwrap() error { return e.err }

// write sends the error as a reply of its own.
func (e *Error) write(w http.ResponseWriter) {
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(e.RetryAfter))
	}
	writeJSON(w, e.Status, e.body())
}

// encode is one line of JSON, its end included. Text stays as it is: escapes for HTML are of no use in a reply that is none.
func encode(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // only our own types come here
	}
	return buf.Bytes()
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	raw := encode(v)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw) // a client that has gone is no error of ours; its context says so
}
