package tokenizer_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/tokenizer"
)

const llavaCheckpoint = testdata + "/goldens/llava15-tiny/checkpoint"

func TestOpenErrors(t *testing.T) {
	folder := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, c := range []struct {
		name, path, says string
		is               error
	}{
		{"missing folder", filepath.Join(t.TempDir(), "none"), "no such file", os.ErrNotExist},
		{"empty folder", folder(nil), "no tokenizer.json", tokenizer.ErrNoTokenizerJSON},
		{"sentencepiece only", folder(map[string]string{"tokenizer.model": "x"}), "has tokenizer.model but no tokenizer.json; it is no model folder: `glimpse convert", tokenizer.ErrNoTokenizerJSON},
		{"not JSON", folder(map[string]string{"tokenizer.json": "{"}), "not a tokenizer.json", nil},
		{"another JSON", folder(map[string]string{"tokenizer.json": `{"a": 1}`}), "not a tokenizer.json", nil},
		{"an array", folder(map[string]string{"tokenizer.json": `[]`}), "not a tokenizer.json", nil},
		{"empty vocabulary", folder(map[string]string{"tokenizer.json": `{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}`}), "vocabulary is empty", nil},
		{"merge of unknown tokens", folder(map[string]string{"tokenizer.json": `{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}`}), "not a tokenizer.json", nil},
		{"huge id", folder(map[string]string{"tokenizer.json": `{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}`}), "more than fits an int32", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, err := tokenizer.Open(c.path)
			if err == nil {
				tok.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %q is not %q", err, c.is)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	if got := tok.VocabSize(); got != 1002 {
		t.Errorf("VocabSize %d, want 1002", got)
	}
	for token, want := range map[string]int32{"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 1000, "<pad>": 1001} {
		id, ok := tok.TokenID(token)
		if !ok || id != want || !tok.IsSpecial(id) {
			t.Errorf("%s: id %d %v, special %v; want %d", token, id, ok, tok.IsSpecial(id), want)
		}
		if back, ok := tok.Token(id); !ok || back != token {
			t.Errorf("Token(%d) = %q %v", id, back, ok)
		}
	}
	if id, ok := tok.TokenID("no such token"); ok {
		t.Errorf("found %d", id)
	}
	for _, id := range []int32{-1, 1002, 1 << 30} {
		if token, ok := tok.Token(id); ok {
			t.Errorf("Token(%d) = %q", id, token)
		}
		if text := tok.Decode([]int32{id}, false); text != "" {
			t.Errorf("Decode(%d) = %q", id, text)
		}
	}
}

func TestEncodeEdges(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	if ids, err := tok.Encode("", true); err != nil || !slices.Equal(ids, []int32{1}) {
		t.Errorf("empty text: %v %v", ids, err)
	}
	if ids, err := tok.Encode("", false); err != nil || len(ids) != 0 {
		t.Errorf("empty text without BOS: %v %v", ids, err)
	}
	if _, err := tok.Encode("a\x00b", true); !errors.Is(err, tokenizer.ErrNUL) {
		t.Errorf("NUL: %v", err)
	}
	if ids, err := tok.Encode("a\xffb", false); err != nil || !strings.Contains(tok.Decode(ids, false), "\uFFFD") {
		t.Errorf("bytes that are not UTF-8: %v %v", ids, err)
	}
}

// Text after a NUL token must not be lost, in tokenizers that spell it <0x00> and in byte-level ones.
func TestDecodeNUL(t *testing.T) {
	for _, c := range []struct{ file, token string }{
		{llavaCheckpoint, "<0x00>"},
		{testdata + "/tokenizers/qwen25vl-tiny.json", "\u0100"},
	} {
		tok := openTokenizer(t, c.file)
		nul, ok := tok.TokenID(c.token)
		if !ok {
			t.Fatalf("%s has no %q", c.file, c.token)
		}
		words, err := tok.Encode("word", false)
		if err != nil {
			t.Fatal(err)
		}
		ids := slices.Concat(words, []int32{nul}, words)
		if got, want := tok.Decode(ids, true), tok.Decode(slices.Concat(words, words), true); got != want || got == "" {
			t.Errorf("%s: %q, want %q", c.file, got, want)
		}
	}
}

// A tokenizer.json saved with truncation or padding on must not cut or pad.
func TestTruncationIsIgnored(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(llavaCheckpoint, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), `"truncation": null`, `"truncation": {"direction":"Right","max_length":4,"strategy":"LongestFirst","stride":0}`, 1)
	text = strings.Replace(text, `"padding": null`, `"padding": {"strategy":{"Fixed":64},"direction":"Right","pad_to_multiple_of":null,"pad_id":1001,"pad_type_id":0,"pad_token":"<pad>"}`, 1)
	if strings.Count(text, `"max_length":4`) != 1 || strings.Count(text, `"Fixed":64`) != 1 {
		t.Fatal("the file is not spelled as this test expects")
	}
	cut, err := tokenizer.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	const prompt = "Describe the image in detail."
	got, err := cut.Encode(prompt, true)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := openTokenizer(t, llavaCheckpoint).Encode(prompt, true)
	if diff := cmp.Diff(want, got); diff != "" || len(got) <= 4 {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The Strip decoder panics on a text that it strips from both ends at once.
func TestPanicWhileDecoding(t *testing.T) {
	tok, err := tokenizer.Parse([]byte(`{"version":"1.0","added_tokens":[],"decoder":{"type":"Sequence","decoders":[{"type":"Fuse"},
		{"type":"Strip","content":"a","start":1,"stop":1}]},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if got := tok.Decode([]int32{0}, false); got != "" {
		t.Errorf("decoded %q", got)
	}
}

func TestCloseWhileInUse(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				ids, err := tok.Encode("hello there", true)
				if err != nil && !errors.Is(err, tokenizer.ErrClosed) {
					t.Error(err)
				}
				tok.Decode(ids, true)
				if _, err := tok.EncodePlain("<image>"); err != nil && !errors.Is(err, tokenizer.ErrClosed) {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	}
	group.Wait()
	if _, err := tok.Encode("a", true); !errors.Is(err, tokenizer.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Small files of each kind: the fuzzer gets nowhere with whole vocabularies.
func FuzzParseAndEncode(f *testing.F) {
	for _, file := range []string{
		`{"version":"1.0","added_tokens":[{"id":1,"content":"<b>","special":true,"normalized":false}],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`,
		`{"version":"1.0","truncation":{"direction":"Right","max_length":1,"strategy":"LongestFirst","stride":0},"added_tokens":[],
			"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
			"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"a":{"id":"a","ids":[1],"tokens":["a"]}}},
			"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
			"model":{"type":"BPE","unk_token":"▁","byte_fallback":true,"vocab":{"▁":0,"a":1,"b":2,"ab":3,"<0x00>":4},"merges":["a b"]}}`,
		`{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
			"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","vocab":{"Ā":0,"a":1,"Ġ":2},"merges":[["Ġ","a"]]}}`,
		`{"version":"1.0","added_tokens":[],"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"},"model":{"type":"Unigram","unk_id":0,"vocab":[["a",0.0],["b",-1.0]]}}`,
		`{"version":"1.0","added_tokens":[],"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1}}}`,
		`{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","unk_token":"a","vocab":{"a":0}}}`,
	} {
		f.Add(file, "a b <b>é")
	}
	f.Fuzz(func(t *testing.T, file, text string) {
		tok, err := tokenizer.Parse([]byte(file))
		if err != nil {
			return
		}
		defer tok.Close()
		ids, err := tok.Encode(text, true)
		if err != nil {
			return
		}
		tok.Decode(ids, true)
	})
}
