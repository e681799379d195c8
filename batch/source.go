// Which pictures a run is about: files, folders and globs, in an order that does not depend on the machine.

package batch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// Item is one input.
type Item struct {
	ID   string // names the row; unique for a path
	Path string // what to open
	Err  error  // set when the input could not be listed, such as a folder without permission
}

// Extensions are the file names that are taken from folders; files named one by one are taken whatever they are called.
var Extensions = []string{".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

// Source lists the items of a run. It holds no files open and reads folders while it is iterated.
type Source struct {
	roots []string // in the order given, globs replaced by their matches
}

// NewSource checks that every input exists and expands globs. All inputs that are wrong are in the one error, which is
// an ErrInput.
func NewSource(inputs []string) (*Source, error) {
	if len(inputs) == 0 {
		return nil, fmt.Errorf("%w: no pictures named", ErrInput)
	}
	var s Source
	var wrong []error
	for _, in := range inputs {
		roots, err := expand(in)
		if err != nil {
			wrong = append(wrong, err)
		}
		s.roots = append(s.roots, roots...)
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrInput, errors.Join(wrong...))
	}
	return &s, nil
}

// expand returns the path itself when there is such a file, whatever characters its name has, and otherwise the
// matches of the glob.
func expand(in string) ([]string, error) {
	_, err := os.Stat(in)
	if err == nil {
		return []string{in}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || !strings.ContainsAny(in, `*?[`) {
		return nil, err // names the path
	}
	matches, err := filepath.Glob(in)
	if err != nil {
		return nil, fmt.Errorf("pattern %s: %w", in, err)
	}
	if !strings.HasPrefix(filepath.Base(in), ".") { // as a shell does
		matches = slices.DeleteFunc(matches, func(m string) bool { return strings.HasPrefix(filepath.Base(m), ".") })
	}
	if len(matches) == 0 {
		return nil, fmt.Errorf("pattern %s matches no files", in)
	}
	slices.Sort(matches)
	return matches, nil
}

// Items yields the inputs: roots in the order given, folders depth first by name. A path that is reached twice is
// yielded twice; the runner drops the second.
func (s *Source) Items(ctx context.Context) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		for _, root := range s.roots {
			if !walk(ctx, root, yield) {
				return
			}
		}
	}
}

// walk yields a file, or the pictures of a folder. It reports whether the iteration goes on.
func walk(ctx context.Context, root string, yield func(Item) bool) bool {
	info, err := os.Stat(root) // follows a link that was named; links inside folders are not descended into
	if err != nil || !info.IsDir() {
		// A file that vanished since NewSource is an item too: opening it says so in its row.
		return ctx.Err() == nil && yield(newItem(root, nil))
	}
	goOn := true
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			goOn = false
			return fs.SkipAll
		}
		hidden := path != root && strings.HasPrefix(d.Name(), ".")
		switch {
		case hidden && d.IsDir():
			return fs.SkipDir
		case err != nil:
			goOn = yield(newItem(path, err))
		case hidden, d.IsDir(), !isPicture(path):
			return nil
		default:
			goOn = yield(newItem(path, nil))
		}
		if !goOn {
			return fs.SkipAll
		}
		return nil
	})
	return goOn
}

func isPicture(path string) bool {
	return slices.Contains(Extensions, strings.ToLower(filepath.Ext(path)))
}

func newItem(path string, err error) Item {
	return Item{ID: printable(filepath.ToSlash(filepath.Clean(path))), Path: path, Err: err}
}

// printable writes bytes that are not UTF-8 as \xNN. JSON would make them all the same replacement character, and two
// files that differ in such a byte would then share a row.
func printable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}
