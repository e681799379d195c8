// Package config layers settings under the command line's flags: a flag that was given wins, then the environment, then
// glimpse.toml, then the flag's default.
//
// Values from below are set through the flag itself, so they are parsed and checked as if they had been typed, and the
// rest of the program sees flags only. keys lists everything that can be set this way; anything else in the file is an
// error that names the nearest key, because a misspelt key that is ignored is a setting that silently does not hold.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

// FileName is the file that is read from the working directory when no other is named.
const FileName = "glimpse.toml"

// maxBytes bounds the file: real ones are a screenful.
const maxBytes = 1 << 20

// ErrConfig marks errors in the file or the environment.
var ErrConfig = errors.New("bad configuration")

// key is one setting, flat and named as in the file. The flag has dashes for its underscores, the variable is GLIMPSE_
// and the name in capitals. It applies to the commands that have the flag.
type key string

// keys is the whole list; docs/cli.md describes each.
var keys = []key{
	"device", "threads", ortLib, ffmpeg, "log_level", "slots", "context", "max_pixels",
	"vision_cache", "vision_cache_dir", "vision_cache_dir_bytes", "prefix_cache", "speculation",
	"memory", "prefill_from", "cache_dir",
	"listen", "keys", "tls_cert", "tls_key", "allow_local_media", mediaHosts, "in_flight", "drain_delay", "drain_timeout",
	"answer_timeout", "in_process", "memory_limit", "models",
	"max_body", "max_media", "max_pictures", "body_timeout", "write_timeout",
}

const (
	// Keys that name code.
	ortLib key = "ort_lib"
	ffmpeg key = "ffmpeg"
	// Keys that are lists.
	mediaHosts key = "media_hosts"
)

func (k key) flag() string { return strings.ReplaceAll(string(k), "_", "-") }
func (k key) env() string  { return "GLIMPSE_" + strings.ToUpper(string(k)) }

// File is a glimpse.toml.
type File struct {
	path   string
	named  bool // by flag or environment, as opposed to found in the working directory
	values map[key]string
}

// Read reads the file at path. An empty path means FileName in the working directory, if there is one.
func Read(path string) (*File, error) {
	named := path != ""
	if !named {
		path = FileName
	}
	info, err := os.Stat(path)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return &File{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if info.Size() > maxBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than the %d a configuration may have", ErrConfig, path, info.Size(), maxBytes)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	values, err := parse(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	return &File{path: path, named: named, values: values}, nil
}

// parse returns the file's values by key, as text that a flag takes.
func parse(raw string) (map[key]string, error) {
	var tree map[string]any
	if _, err := toml.Decode(raw, &tree); err != nil {
		var perr toml.ParseError
		if errors.As(err, &perr) { // its long form draws the line over several
			return nil, fmt.Errorf("line %d: %s", perr.Position.Line, perr.Message)
		}
		return nil, err
	}
	values := map[key]string{}
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		if err := check(name); err != nil {
			wrong = append(wrong, err)
			continue
		}
		switch v := tree[name].(type) {
		case string, int64, float64, bool:
			values[key(name)] = fmt.Sprint(v)
		case []any:
			list, err := texts(name, v)
			if err != nil {
				wrong = append(wrong, err)
				continue
			}
			values[key(name)] = list
		default:
			wrong = append(wrong, fmt.Errorf("%s must be a text, a number or a truth value", name))
		}
	}
	return values, errors.Join(wrong...)
}

// texts is a list as a flag takes it. Only keys that are lists take one.
func texts(name string, list []any) (string, error) {
	if key(name) != mediaHosts {
		return "", fmt.Errorf("%s takes one value, not a list", name)
	}
	words := make([]string, len(list))
	for i, v := range list {
		word, ok := v.(string)
		if !ok || strings.ContainsAny(word, ",\"\n") {
			return "", fmt.Errorf("%s[%d] must be a text without commas and quotes", name, i)
		}
		words[i] = word
	}
	return strings.Join(words, ","), nil
}

func check(name string) error {
	nearest, best := "", len(name)/2+1 // farther than half the name is no suggestion
	for _, k := range keys {
		if string(k) == name {
			return nil
		}
		if d := distance(name, string(k)); d < best {
			nearest, best = string(k), d
		}
	}
	if nearest != "" {
		return fmt.Errorf("unknown key %s; did you mean %s?", name, nearest)
	}
	all := make([]string, len(keys))
	for i, k := range keys {
		all[i] = string(k)
	}
	return fmt.Errorf("unknown key %s; known are %s", name, strings.Join(all, ", "))
}

// distance is Levenshtein's: insertions, deletions and replacements that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Sources says of settings where they came from; those that are not in it have their flag's default.
type Sources map[string]string

// Apply sets the flags that were not given, from the environment and then from the file.
func Apply(flags *pflag.FlagSet, lookupEnv func(string) (string, bool), file *File) (Sources, error) {
	sources := Sources{}
	for _, k := range keys {
		flag := flags.Lookup(k.flag())
		if flag == nil {
			continue
		}
		if flag.Changed {
			sources[flag.Name] = "--" + flag.Name
			continue
		}
		value, from, err := find(k, lookupEnv, file)
		if err != nil {
			return nil, err
		}
		if from == "" {
			continue
		}
		if err := flag.Value.Set(value); err != nil {
			return nil, fmt.Errorf("%w: %s: %q is not right for %s: %w", ErrConfig, from, value, k, err)
		}
		sources[flag.Name] = from
	}
	return sources, nil
}

// find returns a setting and where it came from; "" when it is in neither layer. An empty variable counts as not set.
func find(k key, lookupEnv func(string) (string, bool), file *File) (value, from string, err error) {
	if v, ok := lookupEnv(k.env()); ok && v != "" {
		if k == ortLib {
			return "", "", nil // graphs reads this variable itself and says in its errors where the path came from
		}
		return v, k.env(), nil
	}
	v, ok := file.values[k]
	if !ok {
		return "", "", nil
	}
	if (k == ortLib || k == ffmpeg) && !file.named {
		// Libraries and programs are code. Running whatever a downloaded folder's glimpse.toml names would hand the machine over.
		return "", "", fmt.Errorf("%w: %s in the working directory may not set %s; name the file with --config to allow it", ErrConfig, file.path, k)
	}
	return v, file.path, nil
}
