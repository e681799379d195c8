// Looking into a checkpoint: what it holds, what it would become, and what stands in the way.

package convert

import (
	"context"
	"errors"
	"sort"
	"strings"

	"glimpse/convert/blocks"
	"glimpse/convert/families"
)

// Inspection describes a checkpoint without converting it.
type Inspection struct {
	Path         string        `json:"path"`
	Architecture string        `json:"architecture"`
	ModelType    string        `json:"model_type"`
	Family       string        `json:"family"`
	Tensors      int           `json:"tensors"`
	Parameters   int64         `json:"parameters"`
	Bytes        int64         `json:"bytes"`
	Groups       []TensorGroup `json:"groups"`
	Plan         *Summary      `json:"plan,omitempty"`
	Problems     []string      `json:"problems,omitempty"`
}

// TensorGroup sums the tensors of one module.
type TensorGroup struct {
	Prefix     string           `json:"prefix"`
	Tensors    int              `json:"tensors"`
	Parameters int64            `json:"parameters"`
	Bytes      int64            `json:"bytes"`
	DTypes     map[string]int64 `json:"dtypes"` // parameters by dtype
}

// Inspect opens a checkpoint folder, .toml of pieces or inventory. A checkpoint that would not convert is described all
// the same, with its problems.
func Inspect(ctx context.Context, path string) (*Inspection, error) {
	src, err := openSource(ctx, path, true, nil)
	if err != nil {
		return nil, badInput(err)
	}
	defer src.Close()
	in := &Inspection{Path: path, Architecture: src.architecture(), ModelType: src.head.ModelType, Family: src.family.Name()}
	groups := map[string]*TensorGroup{}
	for _, name := range src.inventory.Names() {
		info, _ := src.inventory.Lookup(name)
		prefix := modulePrefix(name)
		g := groups[prefix]
		if g == nil {
			g = &TensorGroup{Prefix: prefix, DTypes: map[string]int64{}}
			groups[prefix] = g
		}
		g.Tensors++
		g.Parameters += info.Elements()
		g.Bytes += info.Bytes()
		g.DTypes[string(info.DType)] += info.Elements()
		in.Tensors++
		in.Parameters += info.Elements()
		in.Bytes += info.Bytes()
	}
	for _, g := range groups {
		in.Groups = append(in.Groups, *g)
	}
	sort.Slice(in.Groups, func(i, j int) bool { return in.Groups[i].Prefix < in.Groups[j].Prefix })
	plan, err := src.plan(families.Options{Precision: blocks.Auto})
	var problems *ProblemsError
	switch {
	case errors.As(err, &problems):
		for _, p := range problems.Problems {
			in.Problems = append(in.Problems, p.String())
		}
	case err != nil:
		in.Problems = []string{err.Error()}
	default:
		in.Plan = summarize(src, plan, Options{Checkpoint: path})
		in.Plan.Planned = true
	}
	return in, nil
}

// modulePrefix is the part of a tensor's name before the first layer number, at most two levels: the module a person
// would name.
func modulePrefix(name string) string {
	parts := strings.Split(name, ".")
	n := 0
	for n < len(parts)-1 && n < 2 && strings.Trim(parts[n], "0123456789") != "" {
		n++
	}
	if n == 0 {
		return name
	}
	return strings.Join(parts[:n], ".")
}
