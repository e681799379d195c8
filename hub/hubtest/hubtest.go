// Package hubtest is a stand-in for a model hub that tests pull from: the protocol, and what can go wrong with it.
package hubtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Release is a repository with one commit.
type Release struct {
	Commit    string // 40 hex digits
	Refs      []string
	Files     map[string][]byte
	LFS       func(name string) bool // which files another host serves; nil: those named *.safetensors and *.bin
	Token     string                 // asked for; empty: public
	Gated     bool                   // with a token, but without accepted terms
	BareList  bool                   // the list tells neither sizes nor hashes, as mirrors' lists do
	Traversal string                 // a further name in the list
}

// Hub serves releases on one address and their large files on another.
type Hub struct {
	URL      string
	Releases map[string]*Release // by organisation/name; change it before the first request

	// File may spoil the reply for a file: it gets the request, the file's name and bytes, and says whether it has replied.
	File func(w http.ResponseWriter, r *http.Request, name string, content []byte) bool

	endpoint, files *httptest.Server
	mu              sync.Mutex
	requests        []Request
}

// Request is what the stand-in was asked.
type Request struct {
	FileHost      bool // not the endpoint
	Method, Path  string
	Range         string
	Authorization string
}

// New starts a stand-in. Close it.
func New(releases map[string]*Release) *Hub {
	h := &Hub{Releases: releases}
	h.endpoint = httptest.NewServer(http.HandlerFunc(h.serve))
	h.files = httptest.NewServer(http.HandlerFunc(h.serveFile))
	h.URL = h.endpoint.URL
	return h
}

// Close stops it.
func (h *Hub) Close() {
	h.endpoint.Close()
	h.files.Close()
}

// Requests returns what was asked since the last call.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	asked := h.requests
	h.requests = nil
	return asked
}

func (h *Hub) note(r *http.Request, fileHost bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, Request{fileHost, r.Method, r.URL.EscapedPath(), r.Header.Get("Range"), r.Header.Get("Authorization")})
}

// Folder reads a release's files from a folder, without those that skip names.
func Folder(path string, skip ...string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(path, func(at string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || slices.Contains(skip, d.Name()) {
			return err
		}
		name, err := filepath.Rel(path, at)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(name)], err = os.ReadFile(at)
		return err
	})
	return files, err
}

// SHA256 is the hash of a large file.
func SHA256(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// GitSHA1 is git's hash of a small one.
func GitSHA1(content []byte) string {
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(content)), content...))
	return hex.EncodeToString(sum[:])
}

// Hash is the hash of a file of the release, by which the cache calls it.
func (r *Release) Hash(name string) string {
	if r.large(name) {
		return SHA256(r.Files[name])
	}
	return GitSHA1(r.Files[name])
}

func (r *Release) large(name string) bool {
	if r.LFS != nil {
		return r.LFS(name)
	}
	return strings.HasSuffix(name, ".safetensors") || strings.HasSuffix(name, ".bin")
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
		w.Header().Set("X-Error-Message", message)
	}
	http.Error(w, `{"error": "`+message+`"}`, status)
}

func (h *Hub) serve(w http.ResponseWriter, r *http.Request) {
	h.note(r, false)
	path, err := url.PathUnescape(r.URL.EscapedPath())
	if err != nil {
		refuse(w, http.StatusBadRequest, "", "bad path")
		return
	}
	api := strings.HasPrefix(path, "/api/models/")
	words := strings.SplitN(strings.TrimPrefix(strings.TrimPrefix(path, "/api/models"), "/"), "/", 4)
	if len(words) < 4 {
		refuse(w, http.StatusNotFound, "", "no such page")
		return
	}
	release := h.Releases[words[0]+"/"+words[1]]
	authorized := release != nil && (release.Token == "" || r.Header.Get("Authorization") == "Bearer "+release.Token)
	if release == nil || !authorized {
		refuse(w, http.StatusUnauthorized, "RepoNotFound", "Repository not found")
		return
	}
	switch {
	case api && words[2] == "revision":
		release.list(w, words[0]+"/"+words[1], words[3])
	case words[2] == "resolve":
		h.resolve(w, r, release, words[3])
	default:
		refuse(w, http.StatusNotFound, "", "no such page")
	}
}

func (r *Release) knows(revision string) bool {
	return revision == r.Commit || slices.Contains(r.Refs, revision)
}

func (r *Release) list(w http.ResponseWriter, name, revision string) {
	if !r.knows(revision) {
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
		return
	}
	type lfs struct {
		SHA256      string `json:"sha256"`
		Size        int    `json:"size"`
		PointerSize int    `json:"pointerSize"`
	}
	type sibling struct {
		Name string `json:"rfilename"`
		Size *int   `json:"size,omitempty"`
		Blob string `json:"blobId,omitempty"`
		LFS  *lfs   `json:"lfs,omitempty"`
	}
	var siblings []sibling
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		size := len(r.Files[name])
		s := sibling{Name: name, Size: &size, Blob: GitSHA1(r.Files[name])}
		if r.large(name) {
			s.Blob, s.LFS = strings.Repeat("0", 40), &lfs{SHA256(r.Files[name]), size, 135}
		}
		if r.BareList {
			s = sibling{Name: name}
		}
		siblings = append(siblings, s)
	}
	if r.Traversal != "" {
		siblings = append(siblings, sibling{Name: r.Traversal})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"id": name, "sha": r.Commit, "siblings": siblings, "gated": r.Gated})
}

func (h *Hub) resolve(w http.ResponseWriter, r *http.Request, release *Release, rest string) {
	revision, name, _ := strings.Cut(rest, "/")
	content, ok := release.Files[name]
	switch {
	case release.Gated:
		refuse(w, http.StatusForbidden, "GatedRepo", "Access to model is restricted. You must have access to it and be authenticated to access it.")
		return
	case !release.knows(revision):
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
		return
	case !ok:
		refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
		return
	}
	w.Header().Set("X-Repo-Commit", release.Commit)
	if release.large(name) {
		w.Header().Set("X-Linked-Size", fmt.Sprint(len(content)))
		w.Header().Set("X-Linked-Etag", `"`+release.Hash(name)+`"`)
		http.Redirect(w, r, h.files.URL+"/"+url.PathEscape(r.URL.EscapedPath()), http.StatusFound)
		return
	}
	w.Header().Set("ETag", `"`+release.Hash(name)+`"`)
	h.send(w, r, name, content)
}

// serveFile is the host of large files, which knows nobody.
func (h *Hub) serveFile(w http.ResponseWriter, r *http.Request) {
	h.note(r, true)
	path, _ := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/"))
	words := strings.SplitN(strings.TrimPrefix(path, "/"), "/", 5)
	if r.Header.Get("Authorization") != "" {
		refuse(w, http.StatusBadRequest, "", "only one auth mechanism allowed") // as object stores say to a token
		return
	}
	release := h.Releases[words[0]+"/"+words[1]]
	h.send(w, r, words[4], release.Files[words[4]])
}

func (h *Hub) send(w http.ResponseWriter, r *http.Request, name string, content []byte) {
	if h.File != nil && r.Method == http.MethodGet && h.File(w, r, name, content) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}
