package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// merged is several checkpoints under one roof; each name belongs to one part.
type merged struct {
	names []string
	owner map[string]owned
	parts []Checkpoint
}

type owned struct {
	part  Checkpoint
	inner string // the name in the part
	info  TensorInfo
}

// Merge puts checkpoints together whose tensors do not clash, for releases that keep a tower in a folder of its own. Each
// part's names get its key as a prefix ("" leaves them as they are). The merged checkpoint owns the parts: its Close closes
// them, and a failed Merge closes them too.
func Merge(parts map[string]Checkpoint) (Checkpoint, error) {
	m := &merged{owner: map[string]owned{}}
	var problems Problems
	for _, prefix := range slices.Sorted(maps.Keys(parts)) {
		part := parts[prefix]
		m.parts = append(m.parts, part)
		for _, inner := range part.Names() {
			info, _ := part.Lookup(inner)
			info.Name = prefix + inner
			if first, clash := m.owner[info.Name]; clash {
				text := fmt.Sprintf("is in the part %s as well, there as %s", firstFile(first.part), quoted(first.inner))
				problems = append(problems, Problem{File: firstFile(part), Tensor: info.Name, Text: text})
				continue
			}
			m.owner[info.Name] = owned{part: part, inner: inner, info: info}
			m.names = append(m.names, info.Name)
		}
	}
	if err := problems.err(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	slices.Sort(m.names)
	return m, nil
}

// firstFile stands for a part in errors.
func firstFile(part Checkpoint) string {
	if files := part.Files(); len(files) > 0 {
		return files[0].Path
	}
	return "(a part without files)"
}

func (m *merged) Names() []string { return m.names }

func (m *merged) Lookup(name string) (TensorInfo, bool) {
	o, ok := m.owner[name]
	return o.info, ok
}

func (m *merged) ReadFloat32(ctx context.Context, name string, first int64, dst []float32) error {
	o, ok := m.owner[name]
	if !ok {
		return fmt.Errorf("reading %s: %w", quoted(name), ErrUnknownTensor)
	}
	return o.part.ReadFloat32(ctx, o.inner, first, dst)
}

func (m *merged) ReadRaw(ctx context.Context, name string, offset int64, dst []byte) error {
	o, ok := m.owner[name]
	if !ok {
		return fmt.Errorf("reading %s: %w", quoted(name), ErrUnknownTensor)
	}
	return o.part.ReadRaw(ctx, o.inner, offset, dst)
}

func (m *merged) Release(name string) {
	if o, ok := m.owner[name]; ok {
		o.part.Release(o.inner)
	}
}

// Files are those of all parts. Where parts have files of the same name, the names get their folder's name in front.
func (m *merged) Files() []File {
	count := map[string]int{}
	var files []File
	for _, part := range m.parts {
		for _, f := range part.Files() {
			count[f.Name]++
			files = append(files, f)
		}
	}
	for i, f := range files {
		if count[f.Name] > 1 {
			files[i].Name = filepath.Base(filepath.Dir(absolute(f.Path))) + "/" + f.Name
		}
	}
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files
}

func (m *merged) Close() error {
	var errs []error
	for _, part := range m.parts {
		errs = append(errs, part.Close())
	}
	return errors.Join(errs...)
}
