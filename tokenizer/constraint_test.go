package tokenizer_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"glimpse/tokenizer"
)

// eosOf is the token that ends answers in a test: any will do, and it must not be found in strings.
const eosOf = 2

func grammarsOf(t testing.TB, tok *tokenizer.Tokenizer, width int) *tokenizer.Grammars {
	t.Helper()
	g, err := tok.Grammars(width, []int32{eosOf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func width(tok *tokenizer.Tokenizer) int { return tok.VocabSize() + 7 } // as models do, wider than the vocabulary

// babble draws allowed tokens at random until the answer ends, or most were drawn.
func babble(t testing.TB, c *tokenizer.Constraint, width, most int, pick func(n int) int) (ids []int32, ended bool) {
	t.Helper()
	for range most {
		mask, err := c.Mask()
		if err != nil {
			t.Fatal(err)
		}
		var allowed []int32
		for id := range int32(width) {
			if mask[id/32]&(1<<(id%32)) != 0 {
				allowed = append(allowed, id)
			}
		}
		if len(allowed) == 0 {
			t.Fatalf("nothing may follow %v", ids)
		}
		id := allowed[pick(len(allowed))]
		if id == eosOf {
			return ids, true
		}
		ids = append(ids, id)
		complete, err := c.Commit(id)
		if err != nil {
			t.Fatal(err)
		}
		if complete {
			return ids, true
		}
	}
	return ids, false
}

const person = `{"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer","minimum":0,"maximum":150},
	"likes":{"type":"array","items":{"enum":["red","blüe","日本"]},"maxItems":3},"odd":{"anyOf":[{"type":"null"},{"type":"boolean"},{"$ref":"#/$defs/number"}]}},
	"required":["name","age","likes","odd"],"additionalProperties":false,"$defs":{"number":{"type":"number","minimum":-1,"maximum":1}}}`

func schemaOf(t testing.TB, text string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:s", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("mem:s")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Whatever is drawn among the allowed tokens, the text is an instance of the schema, with every kind of tokenizer.
func TestConstrainedNoiseIsValid(t *testing.T) {
	schema := schemaOf(t, person)
	for name, tok := range tokenizers(t) {
		if name == "blip2-itm-tiny" || name == "blip2-t5-tiny" {
			continue // WordPiece, and a vocabulary that cannot spell: below
		}
		t.Run(name, func(t *testing.T) {
			g := grammarsOf(t, tok, width(tok))
			finished := 0
			for seed := range uint64(30) {
				c, err := g.Compile([]byte(person), false)
				if err != nil {
					t.Fatal(err)
				}
				ids, ended := babble(t, c, width(tok), 600, rand.New(rand.NewPCG(seed, 1)).IntN)
				c.Close()
				if !ended {
					continue // a number may have digits for ever
				}
				finished++
				text := tok.Decode(ids, true)
				v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
				if err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				if err := schema.Validate(v); err != nil {
					t.Fatalf("%q: %v", text, err)
				}
			}
			if finished < 20 {
				t.Errorf("only %d answers came to their end", finished)
			}
		})
	}
}

func TestEndOnlyWhereTheGrammarAllows(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	c, err := grammarsOf(t, tok, width(tok)).Compile([]byte(`{"type":"integer","minimum":1,"maximum":12}`), false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ends := func() bool {
		mask, err := c.Mask()
		if err != nil {
			t.Fatal(err)
		}
		return mask[eosOf/32]&(1<<(eosOf%32)) != 0
	}
	one, _ := tok.TokenID("1")
	if ends() {
		t.Error("an empty answer may end")
	}
	if complete, err := c.Commit(one); err != nil || complete {
		t.Fatalf("1: complete %v, %v", complete, err)
	}
	if !ends() {
		t.Error("1 may not end")
	}
	if _, err := c.Commit(one); err != nil {
		t.Error(err)
	}
	if _, err := c.Commit(one); err == nil {
		t.Error("111 was taken")
	}
	if _, err := c.Mask(); err == nil {
		t.Error("a broken answer goes on")
	}
}

func TestSchemasThatCannotBeEnforced(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	g := grammarsOf(t, tok, width(tok))
	for _, c := range []struct{ schema, says string }{
		{`{"type":"object","x-guidance":{}}`, "x-guidance"},
		{`{"type":"colour"}`, "colour"},
		{`{"type":"array","uniqueItems":true}`, "uniqueItems"},
		{`{"$ref":"https://example.com/s"}`, ""},
		{`{"$ref":"#/$defs/none"}`, ""},
		{`{"type":"string","pattern":"("}`, ""},
		{`[]`, "not a JSON object"},
		{`{`, "not JSON"},
		{"\xff", "UTF-8"},
		{`{"enum":[]}`, ""},
		{`{"type":"integer","multipleOf":9999991}`, "remainders"},
		{`{"description":"` + strings.Repeat("x", 200<<10) + `"}`, "limit"},
	} {
		_, err := g.Compile([]byte(c.schema), false)
		var bad *tokenizer.SchemaError
		if !errors.As(err, &bad) || !strings.Contains(bad.Message, c.says) || len(bad.Message) > 700 || strings.Contains(bad.Message, "\n") {
			t.Errorf("%.60s: %v", c.schema, err)
		}
	}
	// What is not enforced is passed over when that was asked for.
	c, err := g.Compile([]byte(`{"type":"array","uniqueItems":true}`), true)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// Schemas made to cost: each ends in an error or a constraint within a moment, and the process lives.
func TestHostileSchemas(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	g := grammarsOf(t, tok, width(tok))
	for name, schema := range hostileSchemas() {
		t.Run(name, func(t *testing.T) {
			start := processorTime(t)
			c, err := g.Compile([]byte(schema), false)
			took := processorTime(t) - start
			if took > 3*time.Second {
				t.Errorf("took %v", took)
			}
			t.Logf("%v: %.200v", took, err)
			if err != nil {
				return
			}
			defer c.Close()
			start = processorTime(t)
			_, err = c.Mask()
			if took := processorTime(t) - start; took > time.Second {
				t.Errorf("a mask took %v: %.100v", took, err)
			}
		})
	}
}

// processorTime is what this process has used: the machine may be busy with other things.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func hostileSchemas() map[string]string {
	chain := func(n int, entry, last string) string {
		var b bytes.Buffer
		b.WriteString(`{"$ref":"#/$defs/a0","$defs":{`)
		for i := range n {
			fmt.Fprintf(&b, `"a%d":`+strings.ReplaceAll(entry, "NEXT", fmt.Sprintf(`{"$ref":"#/$defs/a%d"}`, i+1))+`,`, i)
		}
		fmt.Fprintf(&b, `"a%d":%s}}`, n, last)
		return b.String()
	}
	nested := func(n int, open, close string) string {
		return strings.Repeat(open, n) + `{"type":"null"}` + strings.Repeat(close, n)
	}
	words := make([]string, 9000)
	for i := range words {
		words[i] = fmt.Sprintf(`"word %d"`, i*7919)
	}
	return map[string]string{
		"chain of references": chain(2500, `NEXT`, `{"type":"null"}`),
		"chain of objects":    chain(1500, `{"type":"object","properties":{"a":NEXT}}`, `{"type":"null"}`),
		"chain of allOf":      chain(1000, `{"allOf":[NEXT,{"type":"object"}]}`, `{"type":"object"}`),
		"doubling anyOf":      chain(40, `{"anyOf":[NEXT,NEXT]}`, `{"type":"null"}`),
		"doubling allOf":      chain(40, `{"allOf":[NEXT,NEXT]}`, `{"type":"object"}`),
		"product of anyOf": chain(14, `{"allOf":[{"anyOf":[{"properties":{"a":{"type":"null"}}},{"properties":{"b":{"type":"null"}}},{"required":["c"]}]},NEXT]}`,
			`{"type":"object"}`),
		"circle":          `{"$ref":"#"}`,
		"circle of allOf": `{"allOf":[{"$ref":"#"},{"type":"object"}]}`,
		"deep arrays":     nested(100, `{"type":"array","items":`, `}`),
		"deeper arrays":   nested(4000, `{"type":"array","items":`, `}`),
		"long string":     `{"type":"string","minLength":1000000000}`,
		"bounded string":  `{"type":"string","maxLength":1000000000}`,
		"many items":      `{"type":"array","items":{"type":"integer"},"minItems":1000000000}`,
		"bounded items":   `{"type":"array","items":{"type":"integer"},"maxItems":1000000}`,
		"pattern":         `{"type":"string","pattern":"^((a{1,500}b){1,500}c){1,500}$"}`,
		"pattern and not": `{"type":"string","pattern":"^(.*a.{20}|.*b.{20})$"}`,
		"nested pattern":  `{"type":"string","pattern":"` + strings.Repeat("(", 20000) + "a" + strings.Repeat(")*", 20000) + `"}`,
		"large enum":      `{"enum":[` + strings.Join(words, ",") + `]}`,
		"many properties": `{"type":"object","properties":{` + strings.Join(words[:3000], `:{"type":"string"},`) + `:{}}}`,
		"large numbers":   `{"type":"integer","minimum":-1e300,"maximum":1e300}`,
		"multiples":       `{"type":"integer","multipleOf":9999991}`,
		"more multiples":  `{"allOf":[{"type":"integer","multipleOf":9973},{"multipleOf":9967}]}`,
		"most multiples":  `{"type":"integer","multipleOf":9973}`,
		"small multiples": `{"type":"number","multipleOf":1e-300}`,
	}
}

func TestWordPieceIsRefusedByName(t *testing.T) {
	tok := openTokenizer(t, testdata+"/tokenizers/blip2-itm-tiny.json")
	if _, err := tok.Grammars(width(tok), []int32{eosOf}); err == nil || !strings.Contains(err.Error(), "WordPiece") {
		t.Error(err)
	}
}

// A Unigram vocabulary has no bytes to fall back on.
func TestVocabulariesThatCannotSpell(t *testing.T) {
	tok := openTokenizer(t, testdata+"/tokenizers/blip2-t5-tiny.json")
	c, err := grammarsOf(t, tok, width(tok)).Compile([]byte(`{"const":"日本"}`), false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		mask, err := c.Mask()
		if err != nil {
			return
		}
		for id := range int32(width(tok)) {
			if mask[id/32]&(1<<(id%32)) != 0 {
				if _, err := c.Commit(id); err != nil {
					return
				}
				break
			}
		}
	}
	t.Error("the word was spelled")
}

func TestConstraintsOutliveGrammarsAndCloseTwice(t *testing.T) {
	tok := openTokenizer(t, llavaCheckpoint)
	g, err := tok.Grammars(width(tok), []int32{eosOf})
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			c, err := g.Compile([]byte(person), false)
			if err != nil {
				t.Error(err)
				return
			}
			babble(t, c, width(tok), 20, rand.IntN)
			c.Close()
		})
	}
	wait.Wait()
	c, err := g.Compile([]byte(person), false)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	g.Close()
	if _, err := c.Mask(); err != nil {
		t.Error(err)
	}
	c.Close()
	c.Close()
	if _, err := c.Mask(); !errors.Is(err, tokenizer.ErrClosed) {
		t.Error(err)
	}
	if _, err := c.Commit(1); !errors.Is(err, tokenizer.ErrClosed) {
		t.Error(err)
	}
	if _, err := g.Compile([]byte(person), false); !errors.Is(err, tokenizer.ErrClosed) {
		t.Error(err)
	}
	if _, err := tok.Grammars(width(tok), nil); err == nil {
		t.Error("grammars without an end were made")
	}
}

// FuzzSchema: no schema ends the process, nor holds it.
func FuzzSchema(f *testing.F) {
	for _, schema := range hostileSchemas() {
		if len(schema) < 2000 {
			f.Add([]byte(schema))
		}
	}
	f.Add([]byte(person))
	tok := openTokenizer(f, llavaCheckpoint)
	g := grammarsOf(f, tok, width(tok))
	f.Fuzz(func(t *testing.T, schema []byte) {
		start := processorTime(t)
		c, err := g.Compile(schema, true)
		if err != nil {
			if bad := new(tokenizer.SchemaError); !errors.As(err, &bad) {
				t.Error(err)
			}
			return
		}
		defer c.Close()
		for range 20 {
			mask, err := c.Mask()
			if err != nil {
				break
			}
			id := int32(-1)
			for i := range int32(width(tok)) {
				if i != eosOf && mask[i/32]&(1<<(i%32)) != 0 {
					id = i
					break
				}
			}
			if id < 0 {
				break
			}
			if complete, err := c.Commit(id); err != nil || complete {
				break
			}
		}
		if took := processorTime(t) - start; took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
