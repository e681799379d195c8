package server

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
)

// FuzzHeadRequests: whatever the body, the endpoints of scoring models and /tokenize answer, or say what is wrong with it.
func FuzzHeadRequests(f *testing.F) {
	f.Add([]byte(`{"model":"heads","images":["data:image/png;base64,YWJj"],"texts":["a"]}`))
	f.Add([]byte(`{"model":"heads","input":["a","b"],"encoding_format":"base64","images":["data:,x"]}`))
	f.Add([]byte(`{"query":"q","documents":[{"image":"data:image/png;base64,YWJj"},{"embedding":[1,2]},{"embeddings":[[1]]}],"top_n":1,"factor":9}`))
	f.Add([]byte(`{"prompt":"x"}`))
	f.Add([]byte(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,YWJj"}}]}]}`))
	s, err := New(Options{Models: []Model{newScoring("heads")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, path := range []string{"/v1/score", "/v1/embeddings", "/v1/rerank", "/tokenize"} {
			w := post(s.Handler(), path, "application/json", string(raw))
			if w.Code == http.StatusOK {
				continue
			}
			if w.Code < 400 || w.Code > 499 {
				t.Fatalf("%s: status %d: %s", path, w.Code, w.Body)
			}
			failure(t, w.Code, w.Body)
		}
	})
}

// FuzzDataURL: bytes within the bound, or an error.
func FuzzDataURL(f *testing.F) {
	for _, seed := range []string{"image/png;base64,YWJj", ";base64,YWJjZA==", "image/png;base64,YW%4aj", "image/png,abc", "image/svg+xml;base64,", "text/plain;base64,YQ", "image/png;x=y;base64,", ";base64,00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		const most = 8
		data, err := decodeDataURL("url", rest, most, []string{"image/"})
		if err != nil {
			return
		}
		_, payload, _ := strings.Cut(rest, ",")
		// Bits behind the last byte are nobody's: several texts stand for the same bytes.
		want, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.NewReplacer("\r", "", "\n", "").Replace(payload), "="))
		if len(data) > most || !strings.Contains(payload, "%") && (err != nil || string(want) != string(data)) {
			t.Errorf("%q is %q, not %q (%v)", rest, data, want, err)
		}
	})
}

// FuzzKeys: a key file whose keys have names of their own, or an error.
func FuzzKeys(f *testing.F) {
	hash := strings.Repeat("ab", 32)
	f.Add(hash + " a\n# b\n\n" + hash + " b tokens_per_minute=3")
	f.Add(hash + " requests_per_minute=-1\n" + hash)
	f.Fuzz(func(t *testing.T, text string) {
		k, err := parseKeys(strings.NewReader(text))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, name := range k.names {
			if name == "" || seen[name] {
				t.Errorf("names %q", k.names)
			}
			seen[name] = true
		}
		if len(k.names) == 0 || len(k.names) != len(k.hashes) || len(k.names) != len(k.quotas) {
			t.Errorf("%d names, %d hashes, %d quotas", len(k.names), len(k.hashes), len(k.quotas))
		}
	})
}
