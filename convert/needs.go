// Which files of a release are read: what is fetched from a hub, and nothing else.

package convert

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

// Needs picks from the names of a release's files (slash-separated, from its root) those that Convert reads. Of weights it
// takes one form only, the one that Convert would open; read returns the text of an index, which names the shards.
func Needs(names []string, read func(name string) ([]byte, error)) ([]string, error) {
	if !slices.Contains(names, "config.json") {
		return nil, badInput(fmt.Errorf("the release has no config.json: it is no checkpoint in the transformers layout%s", otherForms(names)))
	}
	wanted := append([]string{"chat_template.jinja", "chat_template.json"}, extraFiles...)
	for _, f := range sideFiles(&families.Release{}) {
		wanted = append(wanted, f.name)
	}
	if !slices.Contains(names, "tokenizer.json") {
		wanted = append(append(wanted, sentencePieceFiles...), "added_tokens.json")
	}
	var needed []string
	for _, name := range wanted {
		if slices.Contains(names, name) {
			needed = append(needed, name)
		}
	}
	weights, ok := checkpoint.Choose(names)
	if !ok {
		return nil, badInput(fmt.Errorf("the release has no weights in safetensors or torch files%s", otherForms(names)))
	}
	needed = append(needed, weights)
	if !strings.HasSuffix(weights, ".json") {
		return needed, nil
	}
	index, err := read(weights)
	if err != nil {
		return nil, err
	}
	shards, err := checkpoint.Shards(index)
	if err != nil {
		return nil, badInput(fmt.Errorf("%s: %w", weights, err))
	}
	for _, shard := range shards {
		if !slices.Contains(names, shard) {
			return nil, badInput(fmt.Errorf("%s names %s, which the release does not have", weights, shard))
		}
	}
	return append(needed, shards...), nil
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
