package checkpoint

// The classes and functions that a checkpoint's pickle may name, and what our machine makes of them. Everything else is
// refused by name. None of it is ever called: each entry below is Go code that builds an inert value.

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// pickleStorage is a record of the zip file that holds elements. Its bytes are not read here.
type pickleStorage struct {
	key   string // the record is data/<key>
	dtype DType  // empty: bytes whose dtype the tensor says
	bytes int64
}

// pickleTensor is a view of a storage.
type pickleTensor struct {
	storage        *pickleStorage
	dtype          DType
	offset         int64 // in elements
	shape, strides []int64
}

// pickleDType is a torch.dtype.
type pickleDType DType

// storageClasses are the typed storages. UntypedStorage counts bytes.
var storageClasses = map[pickleClass]DType{
	"torch.DoubleStorage": F64, "torch.FloatStorage": F32, "torch.HalfStorage": F16, "torch.BFloat16Storage": BF16,
	"torch.LongStorage": I64, "torch.IntStorage": I32, "torch.ShortStorage": I16, "torch.CharStorage": I8,
	"torch.ByteStorage": U8, "torch.BoolStorage": Bool,
	"torch.storage.UntypedStorage": "", "torch.UntypedStorage": "",
}

// dtypeNames are the torch.dtype objects, which a pickle names like classes.
var dtypeNames = map[pickleClass]DType{
	"torch.float64": F64, "torch.float32": F32, "torch.float16": F16, "torch.bfloat16": BF16,
	"torch.int64": I64, "torch.int32": I32, "torch.int16": I16, "torch.int8": I8,
	"torch.uint64": U64, "torch.uint32": U32, "torch.uint16": U16, "torch.uint8": U8, "torch.bool": Bool,
}

// callables are what REDUCE may apply to arguments.
var callables = map[pickleClass]func(args pickleTuple) (any, error){
	"collections.OrderedDict":                    makeOrderedDict,
	"torch._utils._rebuild_tensor_v2":            rebuildTensor,
	"torch._utils._rebuild_tensor_v3":            rebuildUntypedTensor,
	"torch._utils._rebuild_parameter":            rebuildParameter,
	"torch._utils._rebuild_parameter_with_state": rebuildParameter,
	"torch._tensor._rebuild_from_type_v2":        rebuildFromType,
	"torch.Size":                                 makeSize,
	"torch.device":                               inert("a torch.device"),
	"torch.storage.TypedStorage":                 makeTypedStorage,
	"torch.storage._TypedStorage":                makeTypedStorage,
	"argparse.Namespace":                         inert("an argparse.Namespace"),
	"builtins.set":                               inert("a set"),
	"__builtin__.set":                            inert("a set"),
}

// passiveClasses are only ever arguments.
var passiveClasses = []pickleClass{"torch.nn.parameter.Parameter", "torch.Tensor"}

func inert(what string) func(pickleTuple) (any, error) {
	return func(pickleTuple) (any, error) { return pickleInert{what}, nil }
}

// global reads "module\nname\n".
func (m *pickleMachine) global() error {
	var parts [2]string
	for i := range parts {
		n := bytes.IndexByte(m.data[m.pos:], '\n')
		if n < 0 {
			return errPickleShort
		}
		line, _ := m.take(uint64(n) + 1)
		parts[i] = string(line[:n])
	}
	return m.pushClass(parts[0], parts[1])
}

func (m *pickleMachine) stackGlobal() error {
	items, err := m.popN(2)
	if err != nil {
		return err
	}
	module, ok1 := items[0].(string)
	name, ok2 := items[1].(string)
	if !ok1 || !ok2 {
		return errors.New("module and name are not strings")
	}
	return m.pushClass(module, name)
}

func (m *pickleMachine) pushClass(module, name string) error {
	class := pickleClass(module + "." + name)
	if dtype, ok := dtypeNames[class]; ok {
		return m.push(pickleDType(dtype))
	}
	_, storage := storageClasses[class]
	_, callable := callables[class]
	if storage || callable || slices.Contains(passiveClasses, class) {
		return m.push(class)
	}
	return fmt.Errorf("class %s is not on the list of classes that checkpoints need, and nothing in a file is run; "+
		"save the state dict alone: torch.save(model.state_dict(), …)", quoted(string(class)))
}

func (m *pickleMachine) reduce() error {
	items, err := m.popN(2)
	if err != nil {
		return err
	}
	args, ok := items[1].(pickleTuple)
	if !ok {
		return fmt.Errorf("%s as arguments", describe(items[1]))
	}
	if m.objects += weight(args); m.objects > maxPickleObjects {
		return fmt.Errorf("more than %d objects", maxPickleObjects)
	}
	v, err := call(items[0], args)
	if err != nil {
		return err
	}
	return m.push(v)
}

// weight counts what a callable may copy, so that applying it to a large shared argument again and again is not free.
func weight(args pickleTuple) int {
	n := len(args)
	for _, a := range args {
		switch a := a.(type) {
		case pickleTuple:
			n += len(a)
		case *pickleList:
			n += len(a.items)
		}
	}
	return n
}

// call makes what class(*args) stands for.
func call(class any, args pickleTuple) (any, error) {
	name, ok := class.(pickleClass)
	if !ok {
		return nil, fmt.Errorf("%s is not a class", describe(class))
	}
	f, ok := callables[name]
	if !ok {
		return nil, fmt.Errorf("%s cannot be applied", quoted(string(name)))
	}
	v, err := f(args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// newObject is class.__new__(class, *args), to protocol 2 what REDUCE is to protocol 1.
func (m *pickleMachine) newObject() error { return m.reduce() }

// build sets attributes. Those of a dict (_metadata with the versions of modules) and of inert objects are not wanted.
func (m *pickleMachine) build() error {
	if _, err := m.pop(); err != nil {
		return err
	}
	target, err := m.top()
	if err != nil {
		return err
	}
	switch target.(type) {
	case *pickleDict, pickleInert, *pickleTensor:
		return nil
	}
	return fmt.Errorf("%s takes no attributes", describe(target))
}

func makeOrderedDict(args pickleTuple) (any, error) {
	dict := &pickleDict{}
	if len(args) == 0 {
		return dict, nil
	}
	pairs, ok := args[0].(*pickleList)
	if !ok || len(args) != 1 {
		return nil, errors.New("its argument is not one list of pairs")
	}
	dict.entries = make([]pickleEntry, 0, len(pairs.items))
	for _, p := range pairs.items {
		var pair []any
		switch p := p.(type) {
		case pickleTuple:
			pair = p
		case *pickleList:
			pair = p.items
		}
		if len(pair) != 2 {
			return nil, errors.New("its argument is not one list of pairs")
		}
		dict.entries = append(dict.entries, pickleEntry{pair[0], pair[1]})
	}
	return dict, nil
}

func makeSize(args pickleTuple) (any, error) {
	if len(args) == 1 {
		switch items := args[0].(type) {
		case pickleTuple:
			return items, nil
		case *pickleList:
			return pickleTuple(items.items), nil
		}
	}
	return nil, errors.New("its argument is not a tuple")
}

// makeTypedStorage unwraps a storage that was pickled as an object.
func makeTypedStorage(args pickleTuple) (any, error) {
	if len(args) >= 1 {
		if s, ok := args[0].(*pickleStorage); ok {
			if len(args) >= 2 {
				if dtype, ok := args[1].(pickleDType); ok {
					return &pickleStorage{key: s.key, dtype: DType(dtype), bytes: s.bytes}, nil
				}
			}
			return s, nil
		}
	}
	return nil, errors.New("its argument is not a storage")
}

// rebuildTensor: (storage, storage_offset, size, stride, requires_grad, backward_hooks[, metadata]).
func rebuildTensor(args pickleTuple) (any, error) {
	t, err := tensorView(args)
	if err != nil {
		return nil, err
	}
	if t.storage.dtype == "" {
		return nil, errors.New("the storage has no dtype")
	}
	t.dtype = t.storage.dtype
	return t, nil
}

// rebuildUntypedTensor: (storage, storage_offset, size, stride, requires_grad, backward_hooks, dtype[, metadata]).
func rebuildUntypedTensor(args pickleTuple) (any, error) {
	t, err := tensorView(args)
	if err != nil {
		return nil, err
	}
	if len(args) < 7 {
		return nil, fmt.Errorf("%d arguments, not 7", len(args))
	}
	dtype, ok := args[6].(pickleDType)
	if !ok {
		return nil, fmt.Errorf("%s as dtype", describe(args[6]))
	}
	t.dtype = DType(dtype)
	return t, nil
}

func tensorView(args pickleTuple) (*pickleTensor, error) {
	if len(args) < 4 {
		return nil, fmt.Errorf("%d arguments are too few", len(args))
	}
	storage, ok := args[0].(*pickleStorage)
	if !ok {
		return nil, fmt.Errorf("%s as storage", describe(args[0]))
	}
	offset, ok := args[1].(int64)
	if !ok || offset < 0 {
		return nil, fmt.Errorf("%s as storage offset", describe(args[1]))
	}
	shape, err := integers(args[2])
	if err != nil {
		return nil, fmt.Errorf("size: %w", err)
	}
	strides, err := integers(args[3])
	if err != nil {
		return nil, fmt.Errorf("stride: %w", err)
	}
	if len(shape) != len(strides) {
		return nil, fmt.Errorf("size has %d dimensions, stride %d", len(shape), len(strides))
	}
	return &pickleTensor{storage: storage, offset: offset, shape: shape, strides: strides}, nil
}

func integers(v any) ([]int64, error) {
	items, ok := v.(pickleTuple)
	if !ok {
		return nil, fmt.Errorf("%s is not a tuple", describe(v))
	}
	if len(items) > maxRank {
		return nil, fmt.Errorf("%d dimensions, more than %d", len(items), maxRank)
	}
	numbers := make([]int64, len(items))
	for i, item := range items {
		n, ok := item.(int64)
		if !ok || n < 0 {
			return nil, fmt.Errorf("%s is not a dimension", describe(item))
		}
		numbers[i] = n
	}
	return numbers, nil
}

// rebuildParameter: (data, requires_grad, backward_hooks[, state]).
func rebuildParameter(args pickleTuple) (any, error) {
	if len(args) > 0 {
		if t, ok := args[0].(*pickleTensor); ok {
			return t, nil
		}
	}
	return nil, errors.New("its first argument is not a tensor")
}

// rebuildFromType: (function, type, args, state), a tensor with attributes.
func rebuildFromType(args pickleTuple) (any, error) {
	if len(args) < 3 {
		return nil, fmt.Errorf("%d arguments are too few", len(args))
	}
	inner, ok := args[2].(pickleTuple)
	function, isClass := args[0].(pickleClass)
	if ok && isClass {
		switch function {
		case "torch._utils._rebuild_tensor_v2":
			return rebuildTensor(inner)
		case "torch._utils._rebuild_tensor_v3":
			return rebuildUntypedTensor(inner)
		}
	}
	return nil, errors.New("its arguments do not make a tensor")
}
