// Package blocks turns layers (Linear, norms, attention, rotary decoders) into graph fragments, from symbolic weights
// and under a precision policy. Families compose these; they never see operators' target or precision.
//
// This file keeps account of the checkpoint's tensors: each is used exactly once, used again where a layer says that
// it shares it, or ignored by a rule that says why. Whatever remains is a problem with a name.
package blocks

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"glimpse/convert/checkpoint"
)

// Problem is something in a checkpoint or its configuration that a family cannot place.
type Problem struct {
	Subject string // the tensor's or field's name
	Message string
}

func (p Problem) String() string { return p.Subject + ": " + p.Message }

// Tensors is a checkpoint's inventory with the account of what was used.
type Tensors struct {
	Guide *Guide // what the plan knows besides; never nil

	inventory checkpoint.Inventory
	stored    map[string]string     // where a layout is renamed: the checkpoint's name of a tensor
	reader    checkpoint.Checkpoint // nil while planning
	used      map[string]bool
	ignored   map[string]bool
	problems  []Problem
	wanted    []checkpoint.TensorInfo // while listing what a plan asks for
	listing   bool
	dtype     checkpoint.DType
}

// NewTensors starts an account over an inventory. Nothing can be read until Bind.
func NewTensors(inv checkpoint.Inventory) *Tensors {
	return &Tensors{Guide: &Guide{}, inventory: inv, used: map[string]bool{}, ignored: map[string]bool{}}
}

// NewListing starts an account without a checkpoint that notes every tensor a plan asks for, under the first of its
// names, as stored in dtype. It answers what a complete release would: every optional weight is there.
func NewListing(dtype checkpoint.DType) *Tensors {
	t := NewTensors(noTensors{})
	t.listing, t.dtype = true, dtype
	return t
}

// noTensors is the inventory of a listing.
type noTensors struct{}

func (noTensors) Names() []string                             { return nil }
func (noTensors) Lookup(string) (checkpoint.TensorInfo, bool) { return checkpoint.TensorInfo{}, false }

// Wanted returns what was asked for.
func (t *Tensors) Wanted() []checkpoint.TensorInfo { return t.wanted }

// Bind gives the account a checkpoint to read from, with the same tensors as its inventory.
func (t *Tensors) Bind(cp checkpoint.Checkpoint) { t.reader = cp }

// Rename lets the plan see the checkpoint under other names: rename gives a stored tensor's name in the layout that the
// family builds from. Problems name both. It must come before anything else is asked.
func (t *Tensors) Rename(rename func(stored string) string) {
	var list []checkpoint.TensorInfo
	t.stored = map[string]string{}
	for _, name := range t.inventory.Names() {
		info, _ := t.inventory.Lookup(name)
		info.Name = rename(name)
		if first, twice := t.stored[info.Name]; twice {
			t.Problem(name, fmt.Sprintf("and %s are the same tensor (%s)", first, info.Name))
			continue
		}
		t.stored[info.Name] = name
		list = append(list, info)
	}
	renamed, err := checkpoint.NewList(list)
	if err != nil {
		t.Problem("the renamed layout", err.Error())
		return
	}
	t.inventory = renamed
}

// storedName is the checkpoint's name of a tensor.
func (t *Tensors) storedName(name string) string {
	if s, ok := t.stored[name]; ok {
		return s
	}
	return name
}

// Has reports whether the checkpoint holds a tensor of this name.
func (t *Tensors) Has(name string) bool {
	if t.listing {
		return true
	}
	_, ok := t.inventory.Lookup(name)
	return ok
}

// Prefix returns the first candidate that begins a tensor's name: releases, later saves and the authors' layouts call
// the same module by different paths. Without a match it returns the first, so that what is missing is named as released.
func (t *Tensors) Prefix(candidates ...string) string {
	names := t.inventory.Names()
	for _, c := range candidates {
		i, _ := slices.BinarySearch(names, c)
		if i < len(names) && strings.HasPrefix(names[i], c) {
			return c
		}
	}
	return candidates[0]
}

// Elements counts the stored elements of all tensors whose names begin with prefix.
func (t *Tensors) Elements(prefix string) int64 {
	var n int64
	for _, name := range t.inventory.Names() {
		if strings.HasPrefix(name, prefix) {
			info, _ := t.inventory.Lookup(name)
			n += info.Elements()
		}
	}
	return n
}

// Dim returns the size of a dimension of a stored tensor, or 0 when it has no such tensor or dimension.
func (t *Tensors) Dim(name string, axis int) int64 {
	info, ok := t.inventory.Lookup(name)
	if !ok || axis >= len(info.Shape) {
		return 0
	}
	return info.Shape[axis]
}

// Weight uses the tensor, which must have this shape. A missing or mis-shaped tensor is noted as a problem and stands
// in the graph with the shape it should have.
func (t *Tensors) Weight(name string, shape ...int64) Weight {
	if t.used[name] {
		t.Problem(name, "is used by two layers")
	}
	return t.Shared(name, shape...)
}

// Shared uses the tensor as Weight does, without objecting to another use (a tied output head).
func (t *Tensors) Shared(name string, shape ...int64) Weight {
	if t.listing && !t.used[name] {
		t.wanted = append(t.wanted, checkpoint.TensorInfo{Name: name, DType: t.dtype, Shape: shape})
	}
	t.used[name] = true
	info, ok := t.inventory.Lookup(name)
	switch {
	case t.listing:
	case !ok:
		t.Problem(name, fmt.Sprintf("is missing (a tensor of shape %v is needed)", shape))
	case !slices.Equal(info.Shape, shape):
		t.Problem(name, fmt.Sprintf("has shape %v where the configuration asks for %v", info.Shape, shape))
	case !slices.Contains([]checkpoint.DType{"F32", "F16", "BF16", "F64"}, info.DType):
		t.Problem(name, fmt.Sprintf("has dtype %s where floating point weights are needed", info.DType))
	}
	return Weight{src: stored{t, name}, shape: shape}
}

// Optional uses the tensor when the checkpoint holds it.
func (t *Tensors) Optional(name string, shape ...int64) (Weight, bool) {
	if !t.Has(name) {
		return Weight{}, false
	}
	return t.Weight(name, shape...), true
}

// Unused names a tensor that releases store and upstream never runs.
func (t *Tensors) Unused(name string, shape ...int64) {
	if t.listing {
		t.wanted = append(t.wanted, checkpoint.TensorInfo{Name: name, DType: t.dtype, Shape: shape})
	}
	t.ignored[name] = true
}

// Ignore leaves out every tensor that matches one of the patterns (path.Match; "*" does not cross "/"). Families name
// here what upstream stores and does not use.
func (t *Tensors) Ignore(patterns ...string) {
	for _, name := range t.inventory.Names() {
		for _, p := range patterns {
			if ok, err := path.Match(p, name); err != nil {
				panic("blocks: bad ignore pattern " + p)
			} else if ok {
				t.ignored[name] = true
			}
		}
	}
}

// Problem notes something that cannot be placed.
func (t *Tensors) Problem(subject, message string) {
	t.problems = append(t.problems, Problem{subject, message})
}

// Problems returns everything noted, and the tensors that nothing used.
func (t *Tensors) Problems() []Problem {
	list := slices.Clone(t.problems)
	for _, name := range t.inventory.Names() {
		if !t.used[name] && !t.ignored[name] {
			info, _ := t.inventory.Lookup(name)
			list = append(list, Problem{t.storedName(name), fmt.Sprintf("(%s %v) belongs to no layer of this architecture", info.DType, info.Shape)})
		}
	}
	return list
}

// stored is a tensor of the checkpoint as a weight's source.
type stored struct {
	tensors *Tensors
	name    string
}

func (s stored) read(ctx context.Context, first int64, dst []float32) error {
	if s.tensors.reader == nil {
		return fmt.Errorf("read %s: the plan has no checkpoint bound to it", s.name)
	}
	return s.tensors.reader.ReadFloat32(ctx, s.tensors.storedName(s.name), first, dst)
}

func (s stored) String() string { return s.name }

func (s stored) release() {
	if s.tensors.reader != nil {
		s.tensors.reader.Release(s.tensors.storedName(s.name))
	}
}

// Inventory returns the tensors under the names that the plan sees.
func (t *Tensors) Inventory() checkpoint.Inventory { return t.inventory }

// StoredName returns the checkpoint's own name of a tensor.
func (t *Tensors) StoredName(name string) string { return t.storedName(name) }

// Noted returns the problems noted so far, without the tensors that nothing used.
func (t *Tensors) Noted() []Problem { return slices.Clone(t.problems) }
