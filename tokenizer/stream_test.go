package tokenizer_test

import (
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"glimpse/tokenizer"
)

// tokenizers of every kind: BPE with byte fallback (with and without a Metaspace), byte-level BPE, WordPiece, Unigram.
func tokenizers(t *testing.T) map[string]*tokenizer.Tokenizer {
	files, err := filepath.Glob(testdata + "/tokenizers/*.json")
	if err != nil || len(files) < 8 {
		t.Fatalf("found %d tokenizers, %v", len(files), err)
	}
	all := map[string]*tokenizer.Tokenizer{"llava15-tiny": openTokenizer(t, llavaCheckpoint)}
	for _, file := range files {
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = openTokenizer(t, file)
	}
	return all
}

// checkStream pushes ids and compares the pieces with the text of the whole.
func checkStream(t rapid.TB, tok *tokenizer.Tokenizer, ids []int32, skipSpecial bool) {
	whole := tok.Decode(ids, skipSpecial)
	stream := tokenizer.NewStream(tok, skipSpecial)
	var told strings.Builder
	for i, id := range ids {
		piece := stream.Push(id)
		told.WriteString(piece)
		if !utf8.ValidString(piece) {
			t.Fatalf("piece %d %q of %v is not UTF-8", i, piece, ids)
		}
		if strings.ContainsRune(piece, utf8.RuneError) && !strings.ContainsRune(whole, utf8.RuneError) {
			t.Fatalf("piece %d %q of %v has a replacement character that %q has not", i, piece, ids, whole)
		}
		if !strings.HasPrefix(whole, told.String()) {
			t.Fatalf("after piece %d of %v (skip %v): told %q, which does not begin %q", i, ids, skipSpecial, told.String(), whole)
		}
	}
	last := stream.Flush()
	if !utf8.ValidString(last) {
		t.Fatalf("flushed %q of %v is not UTF-8", last, ids)
	}
	if told.WriteString(last); told.String() != whole {
		t.Fatalf("ids %v (skip %v): told %q, whole %q", ids, skipSpecial, told.String(), whole)
	}
}

// Any ids, also such as no encoder would make.
func TestStreamOfRandomIDs(t *testing.T) {
	for name, tok := range tokenizers(t) {
		t.Run(name, func(t *testing.T) {
			size := int32(tok.VocabSize())
			rapid.Check(t, func(t *rapid.T) {
				// The first few hundred ids are where single bytes and special tokens live.
				id := rapid.OneOf(rapid.Int32Range(0, size+2), rapid.Int32Range(0, 300))
				checkStream(t, tok, rapid.SliceOfN(id, 0, 40).Draw(t, "ids"), rapid.Bool().Draw(t, "skip"))
			})
		})
	}
}

// Ids of real text in many scripts.
func TestStreamOfText(t *testing.T) {
	for name, tok := range tokenizers(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				word := rapid.SampledFrom([]string{"the ", "cat", " sat", "Café", "你好", "😀", "👩‍👩‍👧", "مرحبا", "\n\n", "  ", "don't", "3.14", "\uFFFD", "é", "."})
				text := strings.Join(rapid.SliceOfN(rapid.OneOf(word, rapid.StringN(0, 6, -1)), 0, 12).Draw(t, "words"), "")
				ids, err := tok.Encode(strings.ReplaceAll(text, "\x00", ""), rapid.Bool().Draw(t, "special"))
				if err != nil {
					t.Fatal(err)
				}
				checkStream(t, tok, ids, rapid.Bool().Draw(t, "skip"))
			})
		})
	}
}

// A stream must not wait for the end of the answer to tell what is certain.
func TestStreamTellsWordsAtOnce(t *testing.T) {
	tok := openTokenizer(t, testdata+"/tokenizers/qwen25vl-tiny.json")
	ids, err := tok.Encode("Hello 😀!", false)
	if err != nil {
		t.Fatal(err)
	}
	stream := tokenizer.NewStream(tok, true)
	var pieces []string
	for _, id := range ids {
		if piece := stream.Push(id); piece != "" {
			pieces = append(pieces, piece)
		}
	}
	if rest := stream.Flush(); rest != "" || strings.Join(pieces, "") != "Hello 😀!" || len(pieces) < 4 {
		t.Errorf("pieces %q, flushed %q", pieces, rest)
	}
}
