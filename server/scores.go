// POST /v1/score and POST /v1/embeddings: pictures against texts, for models with heads that compare them.

package server

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"path"

	"glimpse/engine"
	"glimpse/server/spec"
)

// Scorer is what a Model with such heads can do beside answering; *engine.Engine is one. Its methods are safe for
// concurrent use and refuse with a RequestError where the manifest has no heads.
type Scorer interface {
	Score(ctx context.Context, r engine.ScoreRequest) (*engine.ScoreResult, error)
	Embed(ctx context.Context, r engine.EmbedRequest) (*engine.EmbedResult, error)
	Rerank(ctx context.Context, r engine.RerankRequest) (*engine.RerankResult, error)
}

type scoreRequest struct {
	Model  string   `json:"model" maxlen:"512" doc:"Name of a served model; may be left out when there is one."`
	Images []string `json:"images" required:"true" items:"1..4096" doc:"Pictures as data: URLs; http(s) and file URLs as the server allows. A row each."`
	Texts  []string `json:"texts" required:"true" items:"1..4096" maxlen:"65536" doc:"Texts. A column each."`
	User   string   `json:"user" maxlen:"256" doc:"Your name for the end user; it goes into the server's log."`
}

type embeddingsRequest struct {
	Model          string                 `json:"model" required:"true" maxlen:"512" doc:"Name of a served model."`
	Input          *spec.TextOr[[]string] `json:"input" items:"1..4096" maxlen:"65536" doc:"A text or several."`
	Images         []string               `json:"images" items:"1..4096" doc:"Pictures as data: URLs; their embeddings follow those of the texts."`
	EncodingFormat string                 `json:"encoding_format" enum:"float|base64" doc:"Numbers, or base64 of little-endian float32."`
	User           string                 `json:"user" maxlen:"256" doc:"Your name for the end user; it goes into the server's log."`

	Dimensions spec.Refused `json:"dimensions" accept:"null"`
}

type headUsage struct {
	PromptTokens int `json:"prompt_tokens"`
	TotalTokens  int `json:"total_tokens"`
}

type embeddingsReply struct {
	Object string      `json:"object"`
	Data   []embedding `json:"data"`
	Model  string      `json:"model"`
	Usage  headUsage   `json:"usage"`
}

type embedding struct {
	Object    string `json:"object"`
	Index     int    `json:"index"`
	Kind      string `json:"kind"` // text or image
	Embedding vector `json:"embedding"`
	// Embeddings are a picture's rows, where it has several.
	Embeddings []vector `json:"embeddings,omitempty"`
}

// vector is a list of numbers, or base64 of them where the client asked for that.
type vector struct {
	values []float32
	base64 bool
}

// MarshalJSON writes it as it was asked for.
func (v vector) MarshalJSON() ([]byte, error) {
	if !v.base64 {
		return json.Marshal(v.values)
	}
	raw := make([]byte, 0, 4*len(v.values))
	for _, x := range v.values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	return json.Marshal(base64.StdEncoding.EncodeToString(raw))
}

func (vector) replySchema() map[string]any {
	return map[string]any{"anyOf": []any{
		map[string]any{"type": "array", "items": map[string]any{"type": "number"}},
		map[string]any{"type": "string", "contentEncoding": "base64"},
	}}
}

// scorer finds the model a request names, which must have heads.
func (s *Server) scorer(r *http.Request, name string, optional bool) (*served, Scorer, error) {
	m, err := s.model(r, name, optional)
	if err != nil {
		return nil, nil, err
	}
	heads, ok := m.Model.(Scorer)
	if !ok || m.Manifest().Scoring == nil {
		return nil, nil, invalid("model", engine.CodeUnsupported, fmt.Sprintf("the model %s has no heads that compare pictures with texts", m.name))
	}
	return m, heads, nil
}

// urlPictures gets the pictures of a list of URLs.
func (s *Server) urlPictures(ctx context.Context, param string, urls []string) ([]engine.Picture, error) {
	if len(urls) > s.limits.HeadPictures {
		return nil, invalid(param, spec.CodeValue, fmt.Sprintf("%s: a request may have at most %d pictures on this server", param, s.limits.HeadPictures))
	}
	out := make([]engine.Picture, len(urls))
	for i, address := range urls {
		p, err := s.picture(ctx, fmt.Sprintf("%s[%d]", param, i), address)
		if err != nil {
			return nil, err
		}
		out[i] = *p
	}
	return out, nil
}

// heads decodes a request, finds its model and runs f with a place taken; f's reply is what the client gets.
func (s *Server) heads(w http.ResponseWriter, r *http.Request, schema *spec.Schema, q any, model func() (name, user string, optional bool), f func(ctx context.Context, m *served, heads Scorer) (any, error)) error {
	raw, release, err := s.readJSON(w, r)
	if err != nil {
		return err
	}
	defer release()
	if err := schema.Decode(raw, q); err != nil {
		return err
	}
	name, user, optional := model()
	exchangeOf(r).user = user
	m, heads, err := s.scorer(r, name, optional)
	if err != nil {
		return err
	}
	ctx, cancel := s.answerContext(r)
	defer cancel()
	leave, err := s.enterWith(exchangeOf(r), m, 1, 0)
	if err != nil {
		return err
	}
	defer leave()
	x := exchangeOf(r)
	ctx, span := s.traceModel(ctx, path.Base(x.route), m)
	defer span.End()
	reply, err := f(ctx, m, heads)
	if err != nil {
		err = contextCause(ctx, err)
		failSpan(span, err)
		return err
	}
	span.SetAttributes(keyInputTokens.Int(x.prompt), keyPictures.Int(x.pictures))
	writeJSON(w, http.StatusOK, reply)
	return nil
}

// used notes a request's tokens and pictures.
func (s *Server) used(r *http.Request, m *served, tokens, pictures int) headUsage {
	x := exchangeOf(r)
	x.prompt, x.pictures = tokens, pictures
	s.metrics.tokens.WithLabelValues(m.name, "prompt").Add(float64(tokens))
	return headUsage{tokens, tokens}
}

func (s *Server) score(w http.ResponseWriter, r *http.Request) error {
	var q scoreRequest
	return s.heads(w, r, scoreSchema, &q, func() (string, string, bool) { return q.Model, q.User, true },
		func(ctx context.Context, m *served, heads Scorer) (any, error) {
			pictures, err := s.urlPictures(ctx, "images", q.Images)
			if err != nil {
				return nil, err
			}
			result, err := heads.Score(ctx, engine.ScoreRequest{Pictures: pictures, Texts: q.Texts})
			if err != nil {
				return nil, err
			}
			reply := map[string]any{"model": m.name, "usage": s.used(r, m, result.TextTokens, len(pictures))}
			for _, matrix := range result.Scores {
				reply[matrix.Name] = matrix.Values
			}
			return reply, nil
		})
}

func (s *Server) embeddings(w http.ResponseWriter, r *http.Request) error {
	var q embeddingsRequest
	return s.heads(w, r, embeddingsSchema, &q, func() (string, string, bool) { return q.Model, q.User, false },
		func(ctx context.Context, m *served, heads Scorer) (any, error) {
			var texts []string
			if q.Input != nil {
				if texts = q.Input.Value; q.Input.IsText {
					texts = []string{q.Input.Text}
				}
			}
			if len(texts)+len(q.Images) == 0 {
				return nil, invalid("input", spec.CodeMissing, "a request has texts in input, pictures in images, or both")
			}
			pictures, err := s.urlPictures(ctx, "images", q.Images)
			if err != nil {
				return nil, err
			}
			result, err := heads.Embed(ctx, engine.EmbedRequest{Pictures: pictures, Texts: texts})
			if err != nil {
				return nil, err
			}
			reply := embeddingsReply{Object: "list", Data: []embedding{}, Model: m.name, Usage: s.used(r, m, result.TextTokens, len(pictures))}
			encoded := q.EncodingFormat == "base64"
			for _, v := range result.Texts {
				reply.add("text", v, encoded)
			}
			for _, v := range result.Pictures {
				reply.add("image", v, encoded)
			}
			return reply, nil
		})
}

func (l *embeddingsReply) add(kind string, e engine.Embedding, encoded bool) {
	out := embedding{Object: "embedding", Index: len(l.Data), Kind: kind, Embedding: vector{e.Vector, encoded}}
	for _, row := range e.Rows {
		out.Embeddings = append(out.Embeddings, vector{row, encoded})
	}
	l.Data = append(l.Data, out)
}
