// From a hub to an answer: pull, list, serve by name, rm.

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"glimpse/hub/hubtest"
)

const (
	hubCommit = "0123456789abcdef0123456789abcdef01234567"
	hubToken  = "hf_secret"
)

// modelHub is a stand-in hub with a private release of the golden checkpoint; the environment points to it.
func modelHub(t *testing.T) (h *hubtest.Hub, models string) {
	t.Helper()
	files, err := hubtest.Folder(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	files["model.gguf"], files["onnx/model.onnx"], files["pytorch_model.bin"] = []byte("not wanted"), []byte("not wanted"), []byte("not wanted")
	h = hubtest.New(map[string]*hubtest.Release{"org/tiny": {Commit: hubCommit, Refs: []string{"main"}, Files: files, Token: hubToken}})
	t.Cleanup(h.Close)
	models = filepath.Join(t.TempDir(), "models")
	t.Setenv("HF_ENDPOINT", h.URL)
	t.Setenv("HF_TOKEN", hubToken)
	t.Setenv("HF_HOME", t.TempDir())
	t.Setenv("GLIMPSE_MODELS", models)
	return h, models
}

func fromJSON[T any](t *testing.T, r result) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("%v: %q", err, r.stdout)
	}
	return v
}

type modelList struct {
	Folder string
	Models []listed
}

func TestPullListServeRemove(t *testing.T) {
	h, models := modelHub(t)
	if r := must(t, "list"); !strings.Contains(r.stdout, "glimpse pull") {
		t.Errorf("an empty list: %q", r.stdout)
	}
	p := fromJSON[pulled](t, must(t, "pull", "org/tiny", "--precision", "fp32", "--json"))
	if p.Revision != hubCommit || p.Name != "tiny" || p.Model != filepath.Join(models, "tiny") || p.Conversion == nil || p.Fetched != p.Bytes || p.Files != 9 {
		t.Errorf("%+v", p)
	}
	for _, asked := range h.Requests() {
		if strings.Contains(asked.Path, "gguf") || strings.Contains(asked.Path, "onnx") || strings.Contains(asked.Path, "pytorch_model") {
			t.Errorf("fetched %s", asked.Path)
		}
	}
	list := fromJSON[modelList](t, must(t, "list", "--json"))
	if len(list.Models) != 1 || list.Folder != models {
		t.Fatalf("%+v", list)
	}
	if l := list.Models[0]; l.Name != "tiny" || l.Repository != "org/tiny" || l.Revision != hubCommit || l.Precision != "fp32" || l.Family == "" || l.Bytes < 1000 || l.Problem != "" {
		t.Errorf("%+v", l)
	}
	if r := must(t, "list"); !strings.Contains(r.stdout, "org/tiny@0123456789ab") || !strings.Contains(r.stdout, "fp32") {
		t.Errorf("list: %q", r.stdout)
	}

	// By name, by the repository's name and by path it is the same model as one that was converted by hand.
	picture := filepath.Join(media, "cat.png")
	want := must(t, "ask", model(t), "what is this?", "--image", picture, "--max-tokens", "8").stdout
	for _, name := range []string{"tiny", "org/tiny", filepath.Join(models, "tiny")} {
		if got := must(t, "ask", name, "what is this?", "--image", picture, "--max-tokens", "8").stdout; got != want {
			t.Errorf("%s answers %q, want %q", name, got, want)
		}
	}
	must(t, "inspect", "tiny", "--json")
	s := startServing(t, "tiny")
	if a, err := s.stream("tiny", "hello", 3); err != nil || !a.done {
		t.Errorf("serve tiny: %+v, %v", a, err)
	}
	all := startServing(t) // everything in the folder
	if a, err := all.stream("tiny", "hello", 3); err != nil || !a.done {
		t.Errorf("serve: %+v, %v", a, err)
	}

	refused(t, glimpse(t, "rm", "../models/tiny"), "no model's name")
	refused(t, glimpse(t, "rm", "other", "tiny"), "other", models)
	if err := os.MkdirAll(filepath.Join(models, "photos"), 0o755); err != nil {
		t.Fatal(err)
	}
	refused(t, glimpse(t, "rm", "photos"), "no model", "stays")
	must(t, "rm", "tiny", "--cache")
	if left, _ := filepath.Glob(filepath.Join(models, "tiny*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(p.Snapshot); !os.IsNotExist(err) {
		t.Errorf("the snapshot is there: %v", err)
	}
	refused(t, glimpse(t, "ask", "tiny", "what?"), "tiny", models, "glimpse pull")
	refused(t, glimpse(t, "serve", "tiny"), "glimpse list")
}

// What is there is not made again; a new revision is, as the old one was made; another origin is not overwritten by chance.
func TestPullAgain(t *testing.T) {
	h, models := modelHub(t)
	must(t, "pull", "org/tiny", "--precision", "fp16")
	first, err := os.Stat(filepath.Join(models, "tiny/model.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if r := must(t, "pull", "org/tiny"); !strings.Contains(r.stdout, "already") {
		t.Errorf("again: %q", r.stdout)
	}
	if again, err := os.Stat(filepath.Join(models, "tiny/model.toml")); err != nil || !again.ModTime().Equal(first.ModTime()) {
		t.Errorf("it was made again: %v", err)
	}
	old := h.Releases["org/tiny"]
	next := *old
	next.Commit = strings.Repeat("ab", 20)
	h.Releases["org/tiny"], h.Releases["other/tiny"] = &next, old
	if p := fromJSON[pulled](t, must(t, "pull", "org/tiny", "--json")); p.Conversion == nil || p.Conversion.Precision != "fp16" || p.Fetched != 0 {
		t.Errorf("the next revision: %+v", p)
	}
	for _, again := range []struct {
		args   []string
		target string // of the conversion; empty for none
	}{{[]string{"--target", "cuda"}, "cuda"}, {nil, ""}, {[]string{"--target", "cuda"}, ""}, {[]string{"--precision", "fp32"}, "cuda"}, {[]string{"--target", "cpu", "--precision", "fp16"}, "cpu"}} {
		p := fromJSON[pulled](t, must(t, append([]string{"pull", "org/tiny", "--json"}, again.args...)...))
		if (p.Conversion == nil) != (again.target == "") || p.Conversion != nil && p.Conversion.Target != again.target {
			t.Errorf("%v: conversion %+v", again.args, p.Conversion)
		}
	}
	refused(t, glimpse(t, "pull", "other/tiny"), "tiny", "org/tiny@abababababab", "--name", "--force")
	must(t, "pull", "other/tiny", "--name", "second", "--precision", "fp16")
	var names []string
	for _, m := range fromJSON[modelList](t, must(t, "list", "--json")).Models {
		names = append(names, m.Name+" "+m.Repository+" "+m.Revision[:4])
	}
	if diff := cmp.Diff([]string{"second other/tiny 0123", "tiny org/tiny abab"}, names); diff != "" {
		t.Error(diff)
	}
	must(t, "rm", "second", "--cache")
	if p := fromJSON[pulled](t, must(t, "pull", "org/tiny@"+next.Commit, "--no-convert", "--json")); p.Fetched != 0 || p.Name != "" {
		t.Errorf("the cache of the other was touched: %+v", p)
	}
	if err := os.Remove(filepath.Join(models, "tiny/decoder.onnx")); err != nil {
		t.Fatal(err)
	}
	if r := glimpse(t, "list"); r.code != exitFound || !strings.Contains(r.stdout, "broken") || !strings.Contains(r.stdout, "decoder.onnx") {
		t.Errorf("a broken model: %d %q", r.code, r.stdout)
	}
	t.Setenv("HF_HUB_OFFLINE", "1")
	must(t, "pull", "org/tiny", "--force", "--precision", "fp32")
	must(t, "rm", "tiny")
}

func TestPullsOfOneModelAtOnce(t *testing.T) {
	modelHub(t)
	var all sync.WaitGroup
	results := make([]result, 3)
	for i := range results {
		cmd := command(t, "pull", "org/tiny", "--precision", "fp32", "--json")
		all.Go(func() { results[i] = runIt(t, cmd) })
	}
	all.Wait()
	var made int
	var fetched, size int64
	for _, r := range results {
		if r.code != 0 {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		p := fromJSON[pulled](t, r)
		fetched, size = fetched+p.Fetched, p.Bytes
		if p.Conversion != nil {
			made++
		}
	}
	if made != 1 || fetched != size {
		t.Errorf("converted %d times, fetched %d bytes of %d", made, fetched, size)
	}
}

// A release may be made of others: in a folder of its own, or on the hub under another name.
func TestPullOfSeveralReleases(t *testing.T) {
	h, _ := modelHub(t)
	const tower = "InternViT-6B-224px"
	whole, err := hubtest.Folder("../../testdata/goldens/internvlchat10-tiny/checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	chat, vision := map[string][]byte{}, map[string][]byte{}
	for name, content := range whole {
		if inside, ok := strings.CutPrefix(name, tower+"/"); ok {
			vision[inside] = content
			continue
		}
		chat[name] = content
	}
	chat["config.json"] = bytes.Replace(chat["config.json"], []byte("./"+tower), []byte("towers/"+tower), 1)
	for name, files := range map[string]map[string][]byte{"org/whole": whole, "org/chat": chat, "towers/" + tower: vision} {
		h.Releases[name] = &hubtest.Release{Commit: hubCommit, Refs: []string{"main"}, Files: files}
	}
	if p := fromJSON[pulled](t, must(t, "pull", "org/whole", "--json")); len(p.Parts) != 0 || p.Conversion == nil {
		t.Errorf("%+v", p)
	}
	if p := fromJSON[pulled](t, must(t, "pull", "org/chat", "--json")); len(p.Parts) != 1 || p.Parts[0].Repository != "towers/"+tower || p.Conversion == nil {
		t.Errorf("%+v", p)
	}
	delete(h.Releases, "towers/"+tower)
	refused(t, glimpse(t, "pull", "org/chat", "--name", "again"), "towers/"+tower, "org/chat")
}

func TestPullIsRefused(t *testing.T) {
	h, models := modelHub(t)
	refused(t, glimpse(t, "pull", "tiny"), "ORG/NAME")
	refused(t, glimpse(t, "pull", "org/tiny", "--name", "../x"), "--name")
	refused(t, glimpse(t, "pull", "org/tiny", "--no-convert", "--precision", "fp32"), "--no-convert")
	refused(t, glimpse(t, "pull", "org/tiny@v7"), "no such revision", "v7")
	refused(t, glimpse(t, "pull", "org/none"), "org/none", "check its name")
	h.Releases["org/gguf"] = &hubtest.Release{Commit: hubCommit, Refs: []string{"main"}, Files: map[string][]byte{"config.json": []byte("{}"), "model.gguf": nil}}
	refused(t, glimpse(t, "pull", "org/gguf"), "org/gguf@main", "model.gguf")
	h.Releases["org/tiny"].Gated = true
	refused(t, glimpse(t, "pull", "org/tiny"), "gated", "accept its terms", h.URL)
	t.Setenv("HF_TOKEN", "hf_wrong")
	r := glimpse(t, "pull", "org/tiny")
	refused(t, r, "HF_TOKEN")
	if strings.Contains(r.stderr, "hf_wrong") {
		t.Errorf("the token shows: %s", r.stderr)
	}
	t.Setenv("HF_ENDPOINT", "hub.example")
	refused(t, glimpse(t, "pull", "org/tiny"), "HF_ENDPOINT")
	if left, _ := filepath.Glob(filepath.Join(models, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A hub whose files come out wrong is a failure of the set-up, not of the user.
func TestPullFailsOnAWrongHash(t *testing.T) {
	h, _ := modelHub(t)
	h.File = func(w http.ResponseWriter, _ *http.Request, name string, content []byte) bool {
		if name != "model.safetensors" {
			return false
		}
		_, _ = w.Write(bytes.Repeat([]byte{0}, len(content)))
		return true
	}
	if r := glimpse(t, "pull", "org/tiny"); r.code != exitFound || !strings.Contains(r.stderr, "hash") || !strings.Contains(r.stderr, "model.safetensors") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}

// Stopped in the middle of a file, pull says so; the next one goes on there.
func TestPullIsStoppedAndGoesOn(t *testing.T) {
	h, _ := modelHub(t)
	const name = "model.safetensors"
	half := len(h.Releases["org/tiny"].Files[name]) / 2
	sent := make(chan struct{}, 1)
	h.File = func(w http.ResponseWriter, r *http.Request, file string, content []byte) bool {
		if file != name || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:half])
		w.(http.Flusher).Flush()
		sent <- struct{}{}
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	cmd := command(t, "pull", "org/tiny", "--precision", "fp32")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-sent
	blobs := filepath.Join(os.Getenv("HF_HOME"), "hub/models--org--tiny/blobs")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left, _ := filepath.Glob(filepath.Join(blobs, "*.incomplete"))
		if len(left) == 1 {
			if info, err := os.Stat(left[0]); err == nil && info.Size() == int64(half) {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("half of the file has not come: %v", left)
		}
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
	h.Requests()
	must(t, "pull", "org/tiny", "--precision", "fp32")
	var ranges []string
	for _, asked := range h.Requests() {
		if asked.FileHost {
			ranges = append(ranges, asked.Range)
		}
	}
	if diff := cmp.Diff([]string{"bytes=" + strconv.Itoa(half) + "-"}, ranges); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
