package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"glimpse/engine"
	"glimpse/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeModel answers with the last text it was given and the hash of each picture, a word a token. With before set it
// can wait, fail or panic first.
type fakeModel struct {
	name     string
	manifest *manifest.Manifest
	before   func(ctx context.Context, r engine.Request) error
	eachWord func(ctx context.Context, word int) error

	mu       sync.Mutex
	requests []engine.Request
}

func newFake(name string) *fakeModel {
	return &fakeModel{name: name, manifest: &manifest.Manifest{Prompt: manifest.Prompt{Template: "chat_template.jinja", Placeholder: "<image>", Caption: "Describe the picture."}}}
}

func (f *fakeModel) Name() string                 { return f.name }
func (f *fakeModel) Manifest() *manifest.Manifest { return f.manifest }

func (f *fakeModel) last(t *testing.T) engine.Request {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.requests) == 0 {
		t.Fatal("the model was never asked")
	}
	return f.requests[len(f.requests)-1]
}

// answer is what the fake says to a request.
func (f *fakeModel) answer(r engine.Request) string {
	text, pics := r.Prompt, r.Pictures
	for _, m := range r.Messages {
		for _, p := range m.Content {
			if p.Picture != nil {
				pics = append(pics, *p.Picture)
			} else {
				text = p.Text
			}
		}
	}
	for _, p := range pics {
		sum := sha256.Sum256(p.Data)
		text += " " + hex.EncodeToString(sum[:4])
	}
	return text
}

func (f *fakeModel) Generate(ctx context.Context, r engine.Request) (*engine.Result, error) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	f.mu.Unlock()
	if f.before != nil {
		if err := f.before(ctx, r); err != nil {
			return nil, err
		}
	}
	res := &engine.Result{FinishReason: engine.FinishStop, Usage: engine.Usage{PromptTokens: 7, ImageTokens: 4 * pictures(r)}}
	for i, word := range strings.SplitAfter(f.answer(r), " ") {
		if r.MaxTokens > 0 && i == r.MaxTokens {
			res.FinishReason = engine.FinishLength
			break
		}
		if f.eachWord != nil {
			if err := f.eachWord(ctx, i); err != nil {
				return nil, err
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tok := engine.Token{ID: int32(i), Text: word, Piece: word}
		if r.Logprobs > 0 {
			tok.Logprob = -float32(i) / 8
			for j := range r.Logprobs {
				tok.Top = append(tok.Top, engine.Alternative{ID: int32(j), Piece: word, Logprob: -float32(i+j) / 8})
			}
		}
		r.Token(tok)
		res.Text += word
		res.Usage.CompletionTokens++
	}
	if res.FinishReason == engine.FinishStop {
		r.Token(engine.Token{ID: 2, Piece: "</s>", Stop: true})
		res.Usage.CompletionTokens++
	}
	return res, nil
}

func (f *fakeModel) Prepare(_ context.Context, r engine.Request) (*engine.Prepared, error) {
	p := &engine.Prepared{ImageTokens: 4 * pictures(r)}
	for i := range strings.Fields(f.answer(r)) {
		p.TokenIDs = append(p.TokenIDs, int32(i))
	}
	return p, nil
}

// start serves on a real listener until the test ends. The server has drained when start's cleanup returns.
func start(t *testing.T, o Options) (base string, s *Server) {
	t.Helper()
	if o.Limits.DrainTimeout == 0 {
		o.Limits.DrainTimeout = 20 * time.Second
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return "http://" + ln.Addr().String(), s
}

// handler is a server without a listener.
func handler(t *testing.T, o Options) http.Handler {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Handler()
}

// post sends a body to a handler and returns the reply.
func post(h http.Handler, path, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// failure decodes an error reply, strictly.
func failure(t *testing.T, status int, body io.Reader) errorObject {
	t.Helper()
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	var e errorBody
	if err := dec.Decode(&e); err != nil {
		t.Fatalf("status %d: not an error object: %v", status, err)
	}
	if e.Error.Message == "" || e.Error.Type == "" || e.Error.Code == nil {
		t.Errorf("status %d: error without message, type or code: %+v", status, e.Error)
	}
	return e.Error
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// logs collects log lines.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// scoring is a fake with heads: a token a word.
type scoring struct{ *fakeModel }

func newScoring(name string) scoring {
	f := newFake(name)
	f.manifest.Scoring = &manifest.Scoring{}
	return scoring{f}
}

func (f scoring) Score(_ context.Context, r engine.ScoreRequest) (*engine.ScoreResult, error) {
	values := make([][]float32, len(r.Pictures))
	for i := range values {
		values[i] = make([]float32, len(r.Texts))
	}
	return &engine.ScoreResult{Scores: []engine.ScoreMatrix{{Name: "itc", Values: values}}, TextTokens: words(r.Texts)}, nil
}

func (f scoring) Embed(_ context.Context, r engine.EmbedRequest) (*engine.EmbedResult, error) {
	return &engine.EmbedResult{Pictures: make([]engine.Embedding, len(r.Pictures)), Texts: make([]engine.Embedding, len(r.Texts)), TextTokens: words(r.Texts)}, nil
}

func (f scoring) Rerank(_ context.Context, r engine.RerankRequest) (*engine.RerankResult, error) {
	return &engine.RerankResult{TextTokens: words([]string{r.Query})}, nil
}

func words(texts []string) int { return len(strings.Fields(strings.Join(texts, " "))) }
