// Models that come and go while the server runs.

package server

import (
	"fmt"
	"slices"
	"time"
)

// list returns the models that are served now. The slice must not be changed.
func (s *Server) list() []*served {
	s.modelsMu.RLock()
	defer s.modelsMu.RUnlock()
	return s.models
}

// AddModel serves one more model, from now on.
func (s *Server) AddModel(m Model) error {
	s.modelsMu.Lock()
	defer s.modelsMu.Unlock()
	name := m.Name()
	if name == "" || slices.ContainsFunc(s.models, func(other *served) bool { return other.name == name }) {
		return fmt.Errorf("model name %q is empty or there twice: every served model needs its own", name)
	}
	added := &served{Model: m, name: name, created: time.Now().Unix(), gate: newGate(s.limits.InFlight)}
	s.models = append(slices.Clone(s.models), added)
	return nil
}

// RemoveModel serves a model no longer: new requests for it are told that it does not exist, those in flight go on. It
// says whether there was one of that name. The model stays its owner's to close.
func (s *Server) RemoveModel(name string) bool {
	s.modelsMu.Lock()
	defer s.modelsMu.Unlock()
	before := len(s.models)
	s.models = slices.DeleteFunc(slices.Clone(s.models), func(m *served) bool { return m.name == name })
	return len(s.models) < before
}
