package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// keyed is a handler with a key file of these lines, %HASH-name standing for a key's hash.
func keyed(t *testing.T, m Model, lines ...string) func(key, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	var text strings.Builder
	for _, line := range lines {
		key, rest, _ := strings.Cut(line, " ")
		sum := sha256.Sum256([]byte(key))
		text.WriteString(hex.EncodeToString(sum[:]) + " " + rest + "\n")
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	h := handler(t, Options{Models: []Model{m}, KeyFile: file})
	return func(key, path, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		return serve(h, r)
	}
}

const chatPath = "/v1/chat/completions"

func TestRequestsAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := keyed(t, newFake("tiny"), "a alice requests_per_minute=3", "b bob")
		for i := range 3 {
			w := ask("a", chatPath, goodChat)
			if w.Code != 200 || w.Header().Get("X-Ratelimit-Limit-Requests") != "3" || w.Header().Get("X-Ratelimit-Remaining-Requests") != string(rune('2'-i)) {
				t.Fatalf("request %d: %d %v", i, w.Code, w.Header())
			}
		}
		w := ask("a", chatPath, goodChat)
		if e := failure(t, w.Code, w.Body); w.Code != 429 || text(e.Code) != codeRateLimit || e.Type != typeRateLimit || w.Header().Get("Retry-After") != "20" || !strings.Contains(e.Message, "3 requests") {
			t.Errorf("the fourth: %d %+v %v", w.Code, e, w.Header())
		}
		for range 10 {
			if w := ask("b", chatPath, goodChat); w.Code != 200 || w.Header().Get("X-Ratelimit-Limit-Requests") != "" {
				t.Fatalf("a key without limits: %d %v", w.Code, w.Header())
			}
		}
		time.Sleep(20 * time.Second)
		if w := ask("a", chatPath, goodChat); w.Code != 200 {
			t.Errorf("after Retry-After: %d", w.Code)
		}
		if w := ask("a", chatPath, goodChat); w.Code != 429 {
			t.Errorf("and another: %d", w.Code)
		}
		time.Sleep(10 * time.Minute)
		for i := range 4 {
			if w := ask("a", chatPath, goodChat); (w.Code == 200) != (i < 3) {
				t.Errorf("after a pause, request %d: %d", i, w.Code)
			}
		}
	})
}

// The fake's prompts have 7 tokens, its answers a token a word and one for the end.
func TestTokensAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := keyed(t, newFake("tiny"), "a alice tokens_per_minute=60", "b bob tokens_per_minute=60")
		bounded := strings.Replace(goodChat, "{", `{"max_tokens":10,`, 1)
		left := func(w *httptest.ResponseRecorder) string { return w.Header().Get("X-Ratelimit-Remaining-Tokens") }
		if w := ask("a", chatPath, bounded); w.Code != 200 || left(w) != "60" {
			t.Fatal(w.Code, w.Header())
		}
		if w := ask("a", chatPath, bounded); w.Code != 200 || left(w) != "49" { // 7 and 4 were used
			t.Fatal(w.Code, w.Header())
		}
		// Streams count, and so do choices: 7 and 3·4.
		if w := ask("a", chatPath, strings.Replace(bounded, "{", `{"n":3,"stream":true,`, 1)); w.Code != 200 || left(w) != "38" {
			t.Fatal(w.Code, w.Header())
		}
		if w := ask("a", "/v1/responses", `{"model":"tiny","input":"a b c","max_output_tokens":10}`); w.Code != 200 || left(w) != "19" {
			t.Fatal(w.Code, w.Header())
		}
		// 8 are left. An answer that may have 512 is let in, as the balance is above zero, and uses 11.
		if w := ask("a", chatPath, goodChat); w.Code != 200 || left(w) != "8" {
			t.Fatal(w.Code, w.Header())
		}
		w := ask("a", chatPath, bounded)
		if e := failure(t, w.Code, w.Body); w.Code != 429 || text(e.Code) != codeRateLimit || w.Header().Get("Retry-After") != "4" || left(w) != "0" || !strings.Contains(e.Message, "60 tokens") {
			t.Errorf("%d %+v %v", w.Code, e, w.Header())
		}
		if w := ask("b", chatPath, bounded); w.Code != 200 {
			t.Errorf("another key: %d", w.Code)
		}
		time.Sleep(4 * time.Second)
		if w := ask("a", chatPath, bounded); w.Code != 200 {
			t.Errorf("after Retry-After: %d", w.Code)
		}
	})
}

// What is in flight has reserved its answer, so that many requests at once cannot use many times the limit; what was
// reserved and not used, and what a given-up answer left, is there again.
func TestTokensInFlightAreReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := newFake("tiny")
		gone := make(chan struct{})
		fake.eachWord = func(ctx context.Context, word int) error {
			if word == 0 {
				return nil
			}
			select {
			case <-gone:
				return context.Canceled
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ask := keyed(t, fake, "a alice tokens_per_minute=100")
		done := make(chan int, 4)
		for range 4 {
			go func() {
				done <- ask("a", chatPath, strings.Replace(goodChat, "{", `{"max_tokens":40,`, 1)).Code
			}()
			synctest.Wait()
		}
		if code := <-done; code != 429 { // 100 − 3·40 is below zero
			t.Errorf("the fourth: %d", code)
		}
		close(gone)
		for range 3 {
			<-done
		}
		fake.eachWord = nil
		if w := ask("a", chatPath, goodChat); w.Header().Get("X-Ratelimit-Remaining-Tokens") != "97" { // a token each was made
			t.Errorf("%v", w.Header())
		}
	})
}

func TestLimitsOfKeyFiles(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	k, err := parseKeys(strings.NewReader(hash + " the team tokens_per_minute=7 b requests_per_minute=5\n"))
	if err != nil || k.names[0] != "the team b" || k.quotas[0].tokens.most != 7 || k.quotas[0].requests.most != 5 {
		t.Errorf("%+v, %v", k, err)
	}
	for line, says := range map[string]string{
		"a tokens=7": "unknown limit", "a tokens_per_minute=": "whole number", "a tokens_per_minute=0": "from 1", "a requests_per_minute=-1": "from 1",
		"a tokens_per_minute=1e9": "whole number", "a tokens_per_minute=5 tokens_per_minute=6": "once", "a tokens_per_minute=99999999999999": "whole number",
	} {
		if _, err := parseKeys(strings.NewReader(hash + " " + line)); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// A key's caches are its own.
func TestCachesOfKeysAreApart(t *testing.T) {
	fake := newFake("tiny")
	ask := keyed(t, fake, "a alice", "b bob")
	for key, name := range map[string]string{"a": "alice", "b": "bob"} {
		if ask(key, chatPath, goodChat); fake.last(t).CacheScope != name {
			t.Errorf("%s: scope %q", key, fake.last(t).CacheScope)
		}
	}
	h := handler(t, Options{Models: []Model{fake}})
	if post(h, chatPath, "application/json", goodChat); fake.last(t).CacheScope != "" {
		t.Errorf("without keys: scope %q", fake.last(t).CacheScope)
	}
}
