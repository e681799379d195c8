package sentencepiece_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"glimpse/convert/sentencepiece"
)

// That the ids are upstream's is held in the package tokenizer's tests, which can run what is made here.

const goldens = "../../testdata/goldens"

func read(t testing.TB, parts ...string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// release reads the tokenizer's files of a golden checkpoint.
func release(t testing.TB, set string) ([]byte, sentencepiece.Files) {
	t.Helper()
	folder := filepath.Join(goldens, set, "checkpoint")
	files := sentencepiece.Files{TokenizerConfig: read(t, folder, "tokenizer_config.json"), SpecialTokensMap: read(t, folder, "special_tokens_map.json")}
	if raw, err := os.ReadFile(filepath.Join(folder, "added_tokens.json")); err == nil {
		files.AddedTokens = raw
	}
	return read(t, folder, "tokenizer.model"), files
}

var llamaSets = []string{"internvlchat10-tiny", "internvlchat11-tiny", "internvl14b-tiny"}

func TestWhatIsNotUnderstoodIsNamed(t *testing.T) {
	model, files := release(t, "internvlchat11-tiny")
	field := func(num protowire.Number, number uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), number)
	}
	message := func(num protowire.Number, body []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), body)
	}
	piece := func(text string) []byte {
		return message(1, protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), text))
	}
	with := func(more ...byte) []byte { return append(append([]byte{}, model...), more...) }
	for _, tc := range []struct {
		name, want string
		model      []byte
		config     string
	}{
		{"empty", "no pieces", nil, ""},
		{"no model", "", []byte("#version: 0.2\nĠ t\n"), ""},
		{"cut off", "damaged at byte", model[:len(model)/2], ""},
		{"piece twice", `both "<unk>"`, with(piece("<unk>")...), ""},
		{"broken UTF-8", "not valid UTF-8", with(piece("\xff\xfe")...), ""},
		{"piece without text", "0 bytes", with(piece("")...), ""},
		{"long piece", "bytes; 1 to", with(piece(strings.Repeat("x", 5000))...), ""},
		{"unknown piece out of range", "unk_id is 100000", with(message(2, field(40, 100000))...), ""},
		{"word model", "model_type is 3", with(message(2, field(3, 3))...), ""},
		{"unigram for LLaMA", "model_type is 1", with(message(2, field(3, 1))...), ""},
		{"normalises", "normalises text", with(message(3, field(4, 1))...), ""},
		{"spaces behind words", "treat_whitespace_as_suffix", with(message(2, field(24, 1))...), ""},
		{"other class", `tokenizer_class is "XLNetTokenizer"`, model, `{"tokenizer_class": "XLNetTokenizer"}`},
		{"ids with a gap", `"<late>" has id 9999`, model, `{"added_tokens_decoder": {"9999": {"content": "<late>"}}}`},
		{"another id", `"<s>" has id 7`, model, `{"added_tokens_decoder": {"7": {"content": "<s>"}}}`},
		{"no id", `"first" is no token id`, model, `{"added_tokens_decoder": {"first": {"content": "<s>"}}}`},
		{"bos nowhere", "tokenizer_config.json", model, `{"bos_token": 3}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := files
			if tc.config != "" {
				files.TokenizerConfig = json.RawMessage(tc.config)
			}
			_, err := sentencepiece.Convert(tc.model, files)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func FuzzConvert(f *testing.F) {
	for _, set := range llamaSets {
		model, _ := release(f, set)
		f.Add(model, []byte(`{"tokenizer_class": "LlamaTokenizer"}`))
	}
	f.Add(read(f, "testdata/unigram.model"), []byte(`{}`))
	f.Fuzz(func(t *testing.T, model, config []byte) {
		out, err := sentencepiece.Convert(model, sentencepiece.Files{TokenizerConfig: config})
		if err == nil && !json.Valid(out) {
			t.Error("what was made is not JSON")
		}
	})
}
