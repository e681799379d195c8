// Which files of a release are read: what is fetched from a hub, and nothing else.

package convert

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

// Needs picks from the names of a release's files (slash-separated, from its root) those that Convert reads. Of weights it
// takes one form only, the one that Convert would open. read returns the text of a file: the configuration, which may name
// another checkpoint that lies in the release, and the index of the weights, which names the shards.
func Needs(names []string, read func(name string) ([]byte, error)) ([]string, error) {
	needed, err := needsOf(names, "", read)
	if err != nil {
		return nil, err
	}
	config, err := read("config.json")
	if err != nil {
		return nil, err
	}
	family, head, err := families.Find(config)
	if err != nil {
		return nil, badInput(fmt.Errorf("config.json: %w", err)) // before gigabytes are fetched for nothing
	}
	parts := families.PartsOf(family, head, config)
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		folder := path.Base(parts[part]) + "/"
		if !slices.Contains(names, folder+"config.json") {
			continue // another release, which convert will name
		}
		more, err := needsOf(names, folder, read)
		if err != nil {
			return nil, err
		}
		needed = append(needed, more...)
	}
	return needed, nil
}

// NeedsPart does the same for a release that is a part of another, and no model by itself.
func NeedsPart(names []string, read func(name string) ([]byte, error)) ([]string, error) {
	return needsOf(names, "", read)
}

// needsOf picks the files of one checkpoint, in a folder of the release that is empty or ends with a slash.
func needsOf(names []string, folder string, read func(name string) ([]byte, error)) ([]string, error) {
	has := func(name string) bool { return slices.Contains(names, folder+name) }
	if !has("config.json") {
		return nil, badInput(fmt.Errorf("the release has no %sconfig.json: it is no checkpoint in the transformers layout%s", folder, otherForms(names)))
	}
	wanted := append([]string{"chat_template.jinja", "chat_template.json"}, extraFiles...)
	for _, f := range sideFiles(&families.Release{}) {
		wanted = append(wanted, f.name)
	}
	if !has("tokenizer.json") {
		wanted = append(append(wanted, sentencePieceFiles...), "added_tokens.json")
	}
	var needed []string
	for _, name := range wanted {
		if has(name) {
			needed = append(needed, folder+name)
		}
	}
	weights, ok := checkpoint.Choose(has)
	if !ok {
		return nil, badInput(fmt.Errorf("the release has no weights in safetensors or torch files%s", otherForms(names)))
	}
	needed = append(needed, folder+weights)
	if !strings.HasSuffix(weights, ".json") {
		return needed, nil
	}
	index, err := read(folder + weights)
	if err != nil {
		return nil, err
	}
	shards, err := checkpoint.Shards(index)
	if err != nil {
		return nil, badInput(fmt.Errorf("%s%s: %w", folder, weights, err))
	}
	for _, shard := range shards {
		if !has(shard) {
			return nil, badInput(fmt.Errorf("%s%s names %s, which the release does not have", folder, weights, shard))
		}
		needed = append(needed, folder+shard)
	}
	return needed, nil
}

// otherForms names a few weight files in forms that are not read, which say what kind of release it is.
func otherForms(names []string) string {
	var found []string
	for _, name := range names {
		if slices.Contains([]string{".gguf", ".onnx", ".msgpack", ".h5", ".pth", ".pt", ".bin", ".safetensors", ".npz"}, path.Ext(name)) {
			found = append(found, name)
		}
	}
	const most = 3
	switch {
	case len(found) == 0:
		return ""
	case len(found) > most:
		return "; it has " + strings.Join(found[:most], ", ") + ", …"
	}
	return "; it has " + strings.Join(found, ", ")
}
