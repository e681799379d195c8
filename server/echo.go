// The only file that knows Echo: routes, and the bridge from its handlers to ours.

package server

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/labstack/echo/v4"

	"glimpse/server/spec"
)

// handlerFunc answers a request, or says why not.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// route is one endpoint; the OpenAPI document is written from the same list.
type route struct {
	method, path string // the path as in OpenAPI: {id} for what varies
	open         bool   // needs no API key
	handle       handlerFunc
	doc          operation
}

func (s *Server) routes() http.Handler {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = echo.ExtractIPDirect() // headers of strangers say nothing about where they are
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		// Handlers report through s.handle; what comes here is Echo's own: no such route, wrong method.
		var he *echo.HTTPError
		if errors.As(err, &he) && !c.Response().Committed {
			routeError(he.Code, c.Request()).write(c.Response())
		}
	}
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			s.observe(c.Response().Writer, c.Request(), c.RealIP(), func(w http.ResponseWriter, r *http.Request) error {
				c.Response().Writer = w
				c.SetRequest(r)
				err := next(c)
				var he *echo.HTTPError
				if errors.As(err, &he) {
					return routeError(he.Code, r)
				}
				return err
			})
			return nil
		}
	})
	for _, rt := range s.table() {
		methods := []string{rt.method}
		if rt.method == http.MethodGet {
			methods = append(methods, http.MethodHead) // net/http leaves the body out; probes ask so
		}
		e.Match(methods, echoPath(rt.path), func(c echo.Context) error {
			r := c.Request()
			if names := c.ParamNames(); len(names) == 1 {
				id := c.Param(names[0])
				if r.URL.RawPath != "" { // Echo matches the escaped path, and clients write the slash of a name as %2F
					var err error
					if id, err = url.PathUnescape(id); err != nil {
						return invalid("id", spec.CodeValue, "the path has a broken % escape")
					}
				}
				r.SetPathValue("id", id)
			}
			return s.guard(rt, c.Response().Writer, r) // the recorder: Echo's own writer loses the errors of Flush
		})
	}
	return e
}

// echoPath rewrites a trailing {id}: model names may hold slashes.
func echoPath(path string) string {
	const id = "{id}"
	if len(path) > len(id) && path[len(path)-len(id):] == id {
		return path[:len(path)-len(id)] + "*"
	}
	return path
}

func routeError(status int, r *http.Request) *Error {
	if status == http.StatusMethodNotAllowed {
		return &Error{Status: status, Type: typeInvalid, Code: codeMethod, Message: r.Method + " is not allowed on this path"}
	}
	return &Error{Status: http.StatusNotFound, Type: typeInvalid, Code: codeNotFound, Message: "no such path: GET /openapi.json lists them"}
}
