package hub_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/hub"
	"glimpse/hub/hubtest"
)

func TestOffline(t *testing.T) {
	h, r := standIn(t)
	cache := t.TempDir()
	offline := func(o *hub.Options) { o.Offline = true }
	if _, err := pull(t, client(t, h, cache, offline), "org/model"); !errors.Is(err, hub.ErrAbsent) || !strings.Contains(err.Error(), "HF_HUB_OFFLINE") {
		t.Errorf("nothing there: %v", err)
	}
	s, err := pull(t, client(t, h, cache, nil), "org/model")
	if err != nil {
		t.Fatal(err)
	}
	h.Requests()
	for _, ask := range []string{"org/model", "org/model@" + commit} {
		got, err := pull(t, client(t, h, cache, offline), ask)
		if err != nil {
			t.Fatal(err)
		}
		whole(t, got, r)
		if got.Revision != commit || got.Bytes != s.Bytes || got.Fetched != 0 {
			t.Errorf("%+v", got)
		}
	}
	if asked := h.Requests(); len(asked) > 0 {
		t.Errorf("asked %+v", asked)
	}
}

func TestRemove(t *testing.T) {
	h, r := standIn(t)
	cache := t.TempDir()
	c := client(t, h, cache, nil)
	if _, err := pull(t, c, "org/model"); err != nil {
		t.Fatal(err)
	}
	next := &hubtest.Release{Commit: strings.Repeat("ab", 20), Refs: r.Refs, Files: map[string][]byte{"config.json": []byte(`{"next": 1}`), "model-1.safetensors": r.Files["model-1.safetensors"]}}
	h.Releases["org/model"] = next
	if _, err := pull(t, c, "org/model"); err != nil {
		t.Fatal(err)
	}
	freed, err := c.Remove("org/model", commit)
	if want := int64(len(r.Files["config.json"]) + len(r.Files["sub/tokenizer.json"]) + len(r.Files["model-2.safetensors"])); err != nil || freed != want {
		t.Errorf("freed %d, %v; want %d", freed, err, want)
	}
	s, err := pull(t, client(t, h, cache, func(o *hub.Options) { o.Offline = true }), "org/model")
	if err != nil || s.Revision != next.Commit {
		t.Fatalf("the other commit: %+v, %v", s, err)
	}
	whole(t, s, next)
	if _, err := c.Remove("org/model", commit); !errors.Is(err, hub.ErrAbsent) {
		t.Errorf("twice: %v", err)
	}
	if _, err := c.Remove("org/model", next.Commit); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(cache, "models--org--model")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is there: %v", err)
	}
	for _, bad := range [][2]string{{"../x", commit}, {"org/model", "main"}, {"org/..", commit}} {
		if _, err := c.Remove(bad[0], bad[1]); !errors.Is(err, hub.ErrInput) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
