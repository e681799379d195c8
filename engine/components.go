// Loading a model's graphs and holding them to what the manifest says of them.

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"glimpse/graphs"
	"glimpse/manifest"
)

// loadComponent loads one graph of the folder and checks its ports. The caller closes the session.
func loadComponent(ctx context.Context, folder, name string, m *manifest.Manifest, opts Options) (*graphs.Session, error) {
	c, ok := m.Components[name]
	if !ok {
		return nil, fmt.Errorf("load component %s: %s has no such component", name, manifest.FileName)
	}
	s, ready, err := opts.preload.take(ctx, name)
	if !ready && err == nil {
		s, err = loadGraph(ctx, folder, name, m, opts)
	}
	if err != nil {
		return nil, err
	}
	err = errors.Join(comparePorts("input", c.Inputs, s.Inputs()), comparePorts("output", c.Outputs, s.Outputs()))
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("component %s is not what %s says; convert the checkpoint again: %w", name, manifest.FileName, err)
	}
	return s, nil
}

// comparePorts lists every difference between the manifest's ports and the graph's.
func comparePorts(kind string, want []manifest.Port, have []graphs.Port) error {
	var problems []error
	for _, w := range want {
		i := slices.IndexFunc(have, func(p graphs.Port) bool { return p.Name == w.Name })
		if i < 0 {
			problems = append(problems, fmt.Errorf("the graph has no %s %s", kind, w.Name))
			continue
		}
		h := have[i]
		same := h.DType.String() == w.DType && len(h.Shape) == len(w.Shape)
		for d := 0; same && d < len(w.Shape); d++ {
			if n, err := strconv.ParseInt(w.Shape[d], 10, 64); err == nil {
				same = h.Shape[d] == n
			} else {
				same = h.Shape[d] < 0
			}
		}
		if !same {
			problems = append(problems, fmt.Errorf("%s %s is %v in the graph, and %s%v in the manifest", kind, w.Name, h, w.DType, w.Shape))
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(p manifest.Port) bool { return p.Name == h.Name }) {
			problems = append(problems, fmt.Errorf("%s %s of the graph is not in the manifest", kind, h.Name))
		}
	}
	return errors.Join(problems...)
}
