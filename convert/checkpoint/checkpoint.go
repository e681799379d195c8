package checkpoint

// The types that the rest of convert sees, and the errors. Readers of single formats are in safetensors.go and torch.go;
// store.go holds what they share.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// TensorInfo is what is known of a tensor without its values.
type TensorInfo struct {
	Name  string
	DType DType
	Shape []int64 // empty for a scalar
}

// Elements is the product of the shape; 1 for a scalar. Shapes of opened files are checked not to overflow.
func (t TensorInfo) Elements() int64 {
	n := int64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Bytes is the size of the tensor as stored.
func (t TensorInfo) Bytes() int64 { return t.Elements() * t.DType.Size() }

func (t TensorInfo) String() string {
	return fmt.Sprintf("%s %s%v", t.Name, t.DType, t.Shape)
}

// Inventory is a list of tensors: of a checkpoint, of an inventory file or made up by a plan.
type Inventory interface {
	Names() []string // sorted; not to be changed by the caller
	Lookup(name string) (TensorInfo, bool)
}

// Checkpoint is an Inventory with values. All methods may be called from many goroutines at once.
type Checkpoint interface {
	Inventory

	// ReadFloat32 fills dst with the elements first, first+1, … of the named tensor in row-major order, widened to
	// float32: exactly for F32, F16, BF16, BOOL and integers up to 24 bits, rounded to nearest even for F64 and larger integers.
	ReadFloat32(ctx context.Context, name string, first int64, dst []float32) error

	// ReadRaw fills dst with the tensor's bytes from offset on: row-major, little-endian, in the stored dtype.
	ReadRaw(ctx context.Context, name string, offset int64, dst []byte) error

	// Release says that the tensor is not wanted soon, and drops what is kept in memory for it. It may be read again.
	Release(name string)

	// Files are the weight files, sorted by name.
	Files() []File

	// Close gives back the files; reading afterwards is an error. Closing twice is not.
	Close() error
}

// File is one weight file of a checkpoint.
type File struct {
	Name  string // relative to the checkpoint's folder
	Path  string
	Bytes int64
}

// Errors that callers tell apart with errors.Is.
var (
	ErrUnknownTensor = errors.New("no such tensor in the checkpoint")
	ErrNoWeights     = errors.New("no weights found")
	ErrLegacyTorch   = errors.New("legacy torch file")
	ErrRange         = errors.New("outside the tensor")
)

// Problem is one thing that is wrong with a file or with a tensor in it.
type Problem struct {
	File   string
	Tensor string // empty when the whole file is meant
	Text   string
	Err    error // a sentinel from above, or what the system said; may be nil
}

// Error is one line: the file, the tensor, what is wrong.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	b.WriteString(": ")
	if p.Tensor != "" {
		fmt.Fprintf(&b, "tensor %s: ", quoted(p.Tensor))
	}
	b.WriteString(p.Text)
	return b.String()
}

func (p Problem) Unwrap() error { return p.Err }

// Problems is the error of every reader here: all that was found wrong, one line each.
type Problems []Problem

// shownProblems bounds the text of an error about a file in which everything is wrong.
const shownProblems = 40

func (p Problems) Error() string {
	lines := make([]string, 0, min(len(p), shownProblems+1))
	for i, problem := range p {
		if i == shownProblems {
			lines = append(lines, fmt.Sprintf("… and %d more problems", len(p)-i))
			break
		}
		lines = append(lines, problem.Error())
	}
	return strings.Join(lines, "\n")
}

func (p Problems) Unwrap() []error {
	all := make([]error, len(p))
	for i := range p {
		all[i] = p[i]
	}
	return all
}

// err is the problems as an error, in an order that does not depend on how they were found.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Tensor, b.Tensor))
	})
	return p
}

// quoted shows a name from a file in an error: escaped, and cut when someone made it absurdly long.
func quoted(name string) string {
	const most = 200
	if len(name) > most {
		return fmt.Sprintf("%.*q…", most, name)
	}
	return fmt.Sprintf("%q", name)
}

// List is an Inventory in memory.
type List struct {
	names   []string
	tensors map[string]TensorInfo
}

// NewList makes an Inventory. Duplicate names, unknown dtypes and impossible shapes are errors, all named.
func NewList(tensors []TensorInfo) (*List, error) {
	l, problems := newList("tensor list", tensors)
	return l, problems.err()
}

func newList(file string, tensors []TensorInfo) (*List, Problems) {
	l := &List{tensors: make(map[string]TensorInfo, len(tensors))}
	var problems Problems
	for _, t := range tensors {
		if _, twice := l.tensors[t.Name]; twice {
			problems = append(problems, Problem{File: file, Tensor: t.Name, Text: "is listed twice"})
			continue
		}
		if t.DType.Size() == 0 {
			problems = append(problems, Problem{File: file, Tensor: t.Name, Text: unknownDType(string(t.DType))})
			continue
		}
		if _, err := byteSize(t.DType, t.Shape); err != nil {
			problems = append(problems, Problem{File: file, Tensor: t.Name, Text: err.Error()})
			continue
		}
		l.tensors[t.Name] = t
		l.names = append(l.names, t.Name)
	}
	slices.Sort(l.names)
	return l, problems
}

// Names implements Inventory.
func (l *List) Names() []string { return l.names }

// Lookup implements Inventory.
func (l *List) Lookup(name string) (TensorInfo, bool) {
	t, ok := l.tensors[name]
	return t, ok
}
