package tokenizer_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert/sentencepiece"
	"glimpse/tokenizer"
)

const (
	goldenSets    = testdata + "/goldens"
	pieceTestdata = "../convert/sentencepiece/testdata"
)

// expected is what transformers' own converters make of the same models (LlamaConverter, T5Converter).
type pieceExpected struct {
	Texts []string
	Sets  map[string]struct {
		Legacy, Modern conversion
		conversion
		Merges [][2]string
	}
}

type conversion struct {
	IDs     [][]int32
	Decoded []string
}

func readExpected(t *testing.T) pieceExpected {
	t.Helper()
	raw, err := os.ReadFile(pieceTestdata + "/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var e pieceExpected
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func readFile(t testing.TB, parts ...string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// release reads the tokenizer's files of a golden checkpoint.
func pieceRelease(t testing.TB, set string) ([]byte, sentencepiece.Files) {
	t.Helper()
	folder := filepath.Join(goldenSets, set, "checkpoint")
	files := sentencepiece.Files{TokenizerConfig: readFile(t, folder, "tokenizer_config.json"), SpecialTokensMap: readFile(t, folder, "special_tokens_map.json")}
	if raw, err := os.ReadFile(filepath.Join(folder, "added_tokens.json")); err == nil {
		files.AddedTokens = raw
	}
	return readFile(t, folder, "tokenizer.model"), files
}

func convertModel(t *testing.T, model []byte, files sentencepiece.Files) (*tokenizer.Tokenizer, json.RawMessage) {
	t.Helper()
	raw, err := sentencepiece.Convert(model, files)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok, raw
}

func compareConversion(t *testing.T, tok *tokenizer.Tokenizer, texts []string, want conversion, special bool) {
	t.Helper()
	for i, ids := range want.IDs {
		have, err := tok.Encode(texts[i], special)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ids, have); diff != "" && len(ids)+len(have) > 0 {
			t.Errorf("%q (-want +have):\n%s", texts[i], diff)
		}
		if have := tok.Decode(ids, false); have != want.Decoded[i] {
			t.Errorf("%v decodes to %q, want %q", ids, have, want.Decoded[i])
		}
	}
}

var llamaSets = []string{"internvlchat10-tiny", "internvlchat11-tiny", "internvl14b-tiny"}

func TestLlamaModelsEqualUpstreamsConversion(t *testing.T) {
	e := readExpected(t)
	for _, set := range llamaSets {
		t.Run(set, func(t *testing.T) {
			model, files := pieceRelease(t, set)
			tok, raw := convertModel(t, model, files)
			compareConversion(t, tok, e.Texts, e.Sets[set].Legacy, false)
			var doc struct{ Model struct{ Merges [][2]string } }
			if err := json.Unmarshal(raw, &doc); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(e.Sets[set].Merges, doc.Model.Merges); diff != "" {
				t.Errorf("merges (-upstream +ours):\n%s", diff)
			}
		})
	}
}

func TestDummyPrefixOnceWhereTheReleaseSaysSo(t *testing.T) {
	e := readExpected(t)
	for _, set := range llamaSets {
		model, files := pieceRelease(t, set)
		var config map[string]any
		if err := json.Unmarshal(files.TokenizerConfig, &config); err != nil {
			t.Fatal(err)
		}
		config["legacy"] = false
		files.TokenizerConfig, _ = json.Marshal(config)
		tok, _ := convertModel(t, model, files)
		compareConversion(t, tok, e.Texts, e.Sets[set].Modern, false)
	}
}

// TestEquivalents compares with the tokenizer.json that the golden sets carry as a help, special tokens included.
func TestEquivalents(t *testing.T) {
	e := readExpected(t)
	for _, set := range llamaSets {
		tok, _ := convertModel(t, first(pieceRelease(t, set)), second(pieceRelease(t, set)))
		want, err := tokenizer.Open(filepath.Join(goldenSets, set, "tokenizer_equivalent.json"))
		if err != nil {
			t.Fatal(err)
		}
		defer want.Close()
		for _, text := range e.Texts {
			a, errA := want.Encode(text, true)
			b, errB := tok.Encode(text, true)
			if diff := cmp.Diff(a, b); diff != "" || errA != nil || errB != nil {
				t.Errorf("%s %q (-want +have): %v %v\n%s", set, text, errA, errB, diff)
			}
		}
	}
}

func first[A, B any](a A, _ B) A  { return a }
func second[A, B any](_ A, b B) B { return b }

func TestTokenizeCasesOfTheGoldenSet(t *testing.T) {
	const set = "internvl14b-tiny"
	tok, _ := convertModel(t, first(pieceRelease(t, set)), second(pieceRelease(t, set)))
	var file struct {
		Cases []struct {
			Kind, Text string
			Expected   struct{ IDs []int32 }
		}
	}
	if err := json.Unmarshal(readFile(t, goldenSets, set, "cases.json"), &file); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range file.Cases {
		if c.Kind != "tokenize" {
			continue
		}
		n++
		have, err := tok.Encode(c.Text, true)
		if diff := cmp.Diff(c.Expected.IDs, have); diff != "" || err != nil {
			t.Errorf("%q (-want +have): %v\n%s", c.Text, err, diff)
		}
	}
	if n != 10 {
		t.Errorf("%d cases, want 10", n)
	}
}

func TestUnigramModelEqualsUpstreamsConversion(t *testing.T) {
	e := readExpected(t)
	for _, config := range []string{`{"tokenizer_class": "T5Tokenizer", "eos_token": "</s>"}`, `{}`} {
		tok, _ := convertModel(t, readFile(t, pieceTestdata, "unigram.model"), sentencepiece.Files{TokenizerConfig: json.RawMessage(config)})
		compareConversion(t, tok, e.Texts, e.Sets["unigram"].conversion, true)
		bare, _ := tok.Encode("one", false)
		whole, _ := tok.Encode("one", true)
		if diff := cmp.Diff(append(bare, 1), whole); diff != "" {
			t.Errorf("</s> (-want +have):\n%s", diff)
		}
	}
}

// A special token that no file gives an id comes behind the others, as transformers numbers it.
func TestSpecialTokensWithoutIDs(t *testing.T) {
	model, files := pieceRelease(t, "internvlchat11-tiny")
	files.SpecialTokensMap = json.RawMessage(`{"pad_token": "[PAD]", "additional_special_tokens": ["<more>"]}`)
	tok, _ := convertModel(t, model, files)
	for name, want := range map[string]int32{"[PAD]": 609, "<more>": 610, "<img>": 600} {
		if id, ok := tok.TokenID(name); !ok || id != want || !tok.IsSpecial(id) {
			t.Errorf("%s is %d (%v), want %d", name, id, ok, want)
		}
	}
}
