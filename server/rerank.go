// POST /v1/rerank: pictures, stored embeddings of pictures, or both, ranked by their fit to a text. The request's and
// reply's shape are those that rerank endpoints have elsewhere, with pictures for documents.

package server

import (
	"context"
	"fmt"
	"net/http"

	"glimpse/engine"
	"glimpse/server/spec"
)

type rerankRequest struct {
	Model     string           `json:"model" maxlen:"512" doc:"Name of a served model; may be left out when there is one."`
	Query     string           `json:"query" required:"true" maxlen:"65536" doc:"The text that pictures are ranked for."`
	Documents []rerankDocument `json:"documents" required:"true" items:"1..65536" doc:"What is ranked."`
	TopN      *int64           `json:"top_n" range:"1..65536" doc:"Documents wanted, best first. Default: all."`
	Factor    *int64           `json:"factor" range:"1..65536" doc:"The shortlist that pictures and text are looked at together for has top_n × factor documents. Default 4."`
	User      string           `json:"user" maxlen:"256" doc:"Your name for the end user; it goes into the server's log."`

	ReturnDocuments spec.Refused `json:"return_documents" accept:"null|false"`
}

type rerankDocument struct {
	Image      *string     `json:"image" doc:"The picture's URL. Without it a document is ranked by its embedding alone."`
	Embedding  []float64   `json:"embedding" items:"1..65536" doc:"The picture's embedding from /v1/embeddings. With it, or with embeddings, a picture is only read when it is on the shortlist."`
	Embeddings [][]float64 `json:"embeddings" items:"1..1024" doc:"The same in full, where /v1/embeddings gave several rows: exact, where embedding is close."`
}

type rerankReply struct {
	Model   string         `json:"model"`
	Results []rerankResult `json:"results"`
	Usage   headUsage      `json:"usage"`
}

type rerankResult struct {
	Index     int                `json:"index"`
	Relevance float32            `json:"relevance_score"`
	Scores    map[string]float32 `json:"scores"`
}

func (s *Server) rerank(w http.ResponseWriter, r *http.Request) error {
	var q rerankRequest
	return s.heads(w, r, rerankSchema, &q, func() (string, string, bool) { return q.Model, q.User, true },
		func(ctx context.Context, m *served, heads Scorer) (any, error) {
			request := engine.RerankRequest{Query: q.Query}
			if q.TopN != nil {
				request.Top = int(min(*q.TopN, int64(len(q.Documents))))
			}
			if q.Factor != nil && request.Top > 0 {
				request.Shortlist = int(min(int64(request.Top)*(*q.Factor), int64(len(q.Documents))))
			}
			documents, pictures, err := s.documents(ctx, q.Documents)
			if err != nil {
				return nil, err
			}
			request.Documents = documents
			result, err := heads.Rerank(ctx, request)
			if err != nil {
				return nil, err
			}
			reply := rerankReply{Model: m.name, Results: []rerankResult{}, Usage: s.used(r, m, result.TextTokens, pictures)}
			for _, d := range result.Ranked {
				reply.Results = append(reply.Results, rerankResult{d.Index, d.Relevance, d.Scores})
			}
			return reply, nil
		})
}

// documents gets the pictures and embeddings of a request.
func (s *Server) documents(ctx context.Context, list []rerankDocument) (out []engine.Document, pictures int, err error) {
	out = make([]engine.Document, len(list))
	for i, d := range list {
		param := fmt.Sprintf("documents[%d]", i)
		switch {
		case d.Image == nil && d.Embedding == nil && d.Embeddings == nil:
			return nil, 0, invalid(param, spec.CodeMissing, param+" needs an image, an embedding or embeddings")
		case d.Embedding != nil && d.Embeddings != nil:
			return nil, 0, invalid(param, spec.CodeValue, param+" has embedding and embeddings: send one")
		case d.Embedding != nil:
			out[i].Embedding = [][]float32{floats(d.Embedding)}
		case d.Embeddings != nil:
			for _, row := range d.Embeddings {
				out[i].Embedding = append(out[i].Embedding, floats(row))
			}
		}
		if d.Image == nil {
			continue
		}
		if pictures++; pictures > s.limits.HeadPictures {
			return nil, 0, invalid(param, spec.CodeValue, fmt.Sprintf("%s: a request may have at most %d pictures on this server", param, s.limits.HeadPictures))
		}
		if out[i].Picture, err = s.picture(ctx, param+".image", *d.Image); err != nil {
			return nil, 0, err
		}
	}
	return out, pictures, nil
}

func floats(list []float64) []float32 {
	out := make([]float32, len(list))
	for i, v := range list {
		out[i] = float32(v)
	}
	return out
}
