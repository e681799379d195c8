package checkpoint

// From the object in a torch file to named tensors.
//
// The rule: when the outermost dict has, under "model", "state_dict", "model_state_dict" or "module" (the first of these
// counts), a dict with tensors in it, that dict is the state dict and what is beside it (optimizer, config, epoch) is
// ignored; this is repeated once, for trainers that wrap twice. Then every tensor gets the path of keys that leads to it,
// joined with dots; whole-number keys and places in lists are written in decimal. Anything that is no tensor is ignored.

import (
	"errors"
	"fmt"
	"strconv"
)

var wrapperKeys = []string{"model", "state_dict", "model_state_dict", "module"}

const (
	maxWrappers   = 2
	maxNesting    = 16
	maxNameLength = 4096
	maxVisits     = 1 << 18 // dicts that share dicts can describe exponentially many paths
	maxNameBytes  = 32 << 20
)

type namedTensor struct {
	name   string
	tensor *pickleTensor
}

type flattener struct {
	named     []namedTensor
	seen      map[string]bool
	visits    int
	nameBytes int
}

func flatten(root any) ([]namedTensor, error) {
	for range maxWrappers {
		inner := unwrap(root)
		if inner == nil {
			break
		}
		root = inner
	}
	if _, ok := root.(*pickleDict); !ok {
		return nil, fmt.Errorf("holds %s, not a state dict: torch.save(model.state_dict(), …) makes one", describe(root))
	}
	f := &flattener{seen: map[string]bool{}}
	if err := f.walk("", root, 0); err != nil {
		return nil, err
	}
	if len(f.named) == 0 {
		return nil, errors.New("holds no tensors")
	}
	return f.named, nil
}

// unwrap is the state dict inside of a trainer's dict, or nil.
func unwrap(root any) any {
	dict, ok := root.(*pickleDict)
	if !ok {
		return nil
	}
	for _, key := range wrapperKeys {
		for _, e := range dict.entries {
			if inner, ok := e.value.(*pickleDict); ok && e.key == any(key) && hasTensors(inner) {
				return inner
			}
		}
	}
	return nil
}

// hasTensors looks two levels deep: a state dict, or a dict that wraps one.
func hasTensors(dict *pickleDict) bool {
	for _, e := range dict.entries {
		switch v := e.value.(type) {
		case *pickleTensor:
			return true
		case *pickleDict:
			for _, e := range v.entries {
				if _, ok := e.value.(*pickleTensor); ok {
					return true
				}
			}
		}
	}
	return false
}

func (f *flattener) walk(name string, v any, depth int) error {
	f.visits++
	f.nameBytes += len(name)
	switch {
	case f.visits > maxVisits || f.nameBytes > maxNameBytes:
		return fmt.Errorf("describes more than %d objects or %d bytes of names", maxVisits, maxNameBytes)
	case depth > maxNesting:
		return fmt.Errorf("nests more than %d deep at %s", maxNesting, quoted(name))
	case len(name) > maxNameLength:
		return fmt.Errorf("has a tensor name of more than %d bytes", maxNameLength)
	}
	switch v := v.(type) {
	case *pickleTensor:
		if f.seen[name] {
			return fmt.Errorf("has two tensors called %s", quoted(name))
		}
		f.seen[name] = true
		f.named = append(f.named, namedTensor{name, v})
	case *pickleDict:
		for _, e := range v.entries {
			if err := f.child(name, e.key, e.value, depth); err != nil {
				return err
			}
		}
	case *pickleList:
		return f.items(name, v.items, depth)
	case pickleTuple:
		return f.items(name, v, depth)
	}
	return nil
}

func (f *flattener) items(name string, items []any, depth int) error {
	for i, item := range items {
		if err := f.child(name, int64(i), item, depth); err != nil {
			return err
		}
	}
	return nil
}

// child walks on to a value that can hold tensors. Keys that are neither text nor numbers occur in no state dict; what is
// below them has no name and is ignored.
func (f *flattener) child(name string, key, value any, depth int) error {
	switch value.(type) {
	case *pickleTensor, *pickleDict, *pickleList, pickleTuple:
	default:
		return nil
	}
	var text string
	switch k := key.(type) {
	case string:
		text = k
	case int64:
		text = strconv.FormatInt(k, 10)
	default:
		return nil
	}
	if name != "" {
		text = name + "." + text
	}
	return f.walk(text, value, depth+1)
}
