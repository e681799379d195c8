package tiktoken_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert/tiktoken"
)

// model is what matters of a tokenizer.json here.
type model struct {
	Model struct {
		Vocab  map[string]int
		Merges [][2]string
	}
	Added []struct {
		ID      int
		Content string
		Special bool
	} `json:"added_tokens"`
}

// bytesAnd returns ranks of the 256 bytes and then of the tokens.
func bytesAnd(tokens ...string) []byte {
	var b strings.Builder
	for i := range 256 {
		fmt.Fprintf(&b, "%s %d\n", base64.StdEncoding.EncodeToString([]byte{byte(i)}), i)
	}
	for i, t := range tokens {
		fmt.Fprintf(&b, "%s %d\n", base64.StdEncoding.EncodeToString([]byte(t)), 256+i)
	}
	return []byte(b.String())
}

// The vocabulary of the golden set gives the tokenizer that its reference has beside it: vocabulary, merges and ids of
// special tokens.
func TestConvertEqualsTheReference(t *testing.T) {
	folder := filepath.Join("..", "..", "testdata", "goldens", "qwenvl-tiny")
	ranks, err := os.ReadFile(filepath.Join(folder, "checkpoint", "qwen.tiktoken"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(folder, "tokenizer_equivalent.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Model struct {
			Vocab  map[string]int
			Merges []string
		}
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	out, err := tiktoken.Convert(ranks, tiktoken.Spec{Pattern: `\s+`, Normalize: "NFC", Specials: []tiktoken.Special{{Text: "<end>"}, {Text: "<ref>", Plain: true}}})
	if err != nil {
		t.Fatal(err)
	}
	var got model
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Model.Vocab, got.Model.Vocab); diff != "" {
		t.Errorf("vocabulary: %s", diff)
	}
	merges := make([]string, len(got.Model.Merges))
	for i, m := range got.Model.Merges {
		merges[i] = m[0] + " " + m[1]
	}
	if diff := cmp.Diff(want.Model.Merges, merges); diff != "" {
		t.Errorf("merges: %s", diff)
	}
	n := len(got.Model.Vocab)
	if len(got.Added) != 2 || got.Added[0].ID != n || !got.Added[0].Special || got.Added[1].ID != n+1 || got.Added[1].Special {
		t.Errorf("added tokens: %+v", got.Added)
	}
}

// A token's merge is the pair that lower ranks leave of it, whatever other pairs would give the same bytes.
func TestMergesFollowTheRanks(t *testing.T) {
	out, err := tiktoken.Convert(bytesAnd("bc", "ab", "abc"), tiktoken.Spec{Pattern: "."})
	if err != nil {
		t.Fatal(err)
	}
	var got model
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][2]string{{"b", "c"}, {"a", "b"}, {"a", "bc"}}, got.Model.Merges); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefusesWhatIsNoVocabulary(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":        "",
		"words":          "hello world\n",
		"no rank":        "IQ==\n",
		"a negative one": "IQ== -1\n",
		"a huge one":     "IQ== 99999999999\n",
		"rank twice":     "IQ== 0\nIg== 0\n",
		"token twice":    "IQ== 0\nIQ== 1\n",
		"a gap":          "IQ== 0\nIg== 2\n",
		"no byte 0x21":   "Ig== 0\n",
	} {
		if _, err := tiktoken.Parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := tiktoken.Convert(bytesAnd("abc"), tiktoken.Spec{}); err == nil || !strings.Contains(err.Error(), "3 parts") {
		t.Errorf("a token that no two others make: %v", err)
	}
}

func FuzzConvert(f *testing.F) {
	f.Add([]byte("IQ== 0\n"))
	f.Add(bytesAnd("ab", "abc"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		out, err := tiktoken.Convert(raw, tiktoken.Spec{Pattern: "."})
		if err == nil && !json.Valid(out) {
			t.Error("no JSON")
		}
	})
}
