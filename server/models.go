// The models that are served, and GET /v1/models.

package server

import (
	"fmt"
	"net/http"
	"strings"

	"glimpse/manifest"
)

// served is one model and what the server keeps about it.
type served struct {
	Model
	name    string
	created int64 // Unix seconds at which it was ready
	gate    *gate
}

type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
	// Capabilities are what the model can be asked for, beyond OpenAI's fields: "chat" (it answers), "image" (it takes
	// pictures), "video", "audio" (videos and sounds), "score" (it compares pictures with texts, and embeds them).
	Capabilities []string `json:"capabilities"`
}

type modelList struct {
	Object string        `json:"object"`
	Data   []modelObject `json:"data"`
}

func (m *served) object() modelObject {
	capabilities := []string{}
	for _, c := range []struct {
		has  bool
		name string
	}{{m.Manifest().Decoder != nil, "chat"}, {m.Manifest().Picture != nil, "image"}, {takesVideos(m.Manifest()), "video"}, {m.Manifest().Audio != nil, "audio"}, {m.Manifest().Scoring != nil, "score"}} {
		if c.has {
			capabilities = append(capabilities, c.name)
		}
	}
	return modelObject{ID: m.name, Object: "model", Created: m.created, OwnedBy: "glimpse", Capabilities: capabilities}
}

func takesVideos(m *manifest.Manifest) bool { return m.Picture != nil && m.Picture.Video != nil }

// model finds the model a request names. Where only one is served, endpoints of our own let the name be left out.
func (s *Server) model(r *http.Request, name string, optional bool) (*served, error) {
	models := s.list()
	var m *served
	names := make([]string, len(models))
	for i, other := range models {
		names[i] = other.name
		if other.name == name || name == "" && optional && len(models) == 1 {
			m = other
		}
	}
	if m == nil {
		return nil, &Error{Status: http.StatusNotFound, Type: typeInvalid, Code: codeModelNotFound, Param: "model",
			Message: fmt.Sprintf("the model %q does not exist; served: %s", clipped(name), strings.Join(names, ", "))}
	}
	exchangeOf(r).model = m.name
	return m, nil
}

func (s *Server) listModels(w http.ResponseWriter, _ *http.Request) error {
	list := modelList{Object: "list", Data: []modelObject{}}
	for _, m := range s.list() {
		list.Data = append(list.Data, m.object())
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) getModel(w http.ResponseWriter, r *http.Request) error {
	m, err := s.model(r, r.PathValue("id"), false)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, m.object())
	return nil
}

// Readier is a Model that may be served before it can answer: /readyz is 503 while one is not ready.
type Readier interface{ Ready() bool }

type status struct {
	Status string `json:"status"`
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, status{"ok"})
	return nil
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) error {
	if s.draining.Load() {
		writeJSON(w, http.StatusServiceUnavailable, status{"stopping"})
		return nil
	}
	for _, m := range s.list() {
		if r, ok := m.Model.(Readier); ok && !r.Ready() {
			writeJSON(w, http.StatusServiceUnavailable, status{"loading"})
			return nil
		}
	}
	writeJSON(w, http.StatusOK, status{"ready"})
	return nil
}
