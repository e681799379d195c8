// The endpoints, each with the types of its request and reply: the router and the OpenAPI document are made from this
// list.

package server

import (
	"net/http"

	"glimpse/server/spec"
)

// Schemas of the requests; read-only after they are made.
var (
	chatSchema      = spec.Of[chatRequest]()
	responsesSchema = spec.Of[responsesRequest]()
	tokenizeSchema  = spec.Of[tokenizeRequest]()

	scoreSchema      = spec.Of[scoreRequest]()
	embeddingsSchema = spec.Of[embeddingsRequest]()
	rerankSchema     = spec.Of[rerankRequest]()
)

// operation is what the OpenAPI document says of a route.
type operation struct {
	summary string
	request *spec.Schema // JSON body; nil: none
	upload  []formField  // multipart body
	reply   any          // a value of the reply's type; nil: text
	text    string       // the kind of text; empty: text/plain
	events  any          // a value of the type of the server-sent events it can also answer with
}

func (s *Server) table() []route {
	return []route{
		{method: http.MethodPost, path: "/v1/chat/completions", handle: s.chatCompletions,
			doc: operation{summary: "Answer a conversation that may hold pictures.", request: chatSchema, reply: completion{}, events: chunk{}}},
		{method: http.MethodPost, path: "/v1/responses", handle: s.responses,
			doc: operation{summary: "Answer a conversation that may hold pictures; nothing is stored.", request: responsesSchema, reply: responseObject{}, events: responseEvent{}}},
		{method: http.MethodGet, path: "/v1/models", handle: s.listModels, doc: operation{summary: "List the served models.", reply: modelList{}}},
		{method: http.MethodGet, path: "/v1/models/{id}", handle: s.getModel, doc: operation{summary: "One served model.", reply: modelObject{}}},
		{method: http.MethodPost, path: "/v1/caption", handle: s.caption,
			doc: operation{summary: "Caption an uploaded picture.", upload: captionForm, reply: captionReply{}}},
		{method: http.MethodPost, path: "/v1/score", handle: s.score,
			doc: operation{summary: "Score pictures against texts: a matrix for each of the model's scores.", request: scoreSchema, reply: map[string]any{}}},
		{method: http.MethodPost, path: "/v1/embeddings", handle: s.embeddings,
			doc: operation{summary: "Embed texts and pictures in their common space.", request: embeddingsSchema, reply: embeddingsReply{}}},
		{method: http.MethodPost, path: "/v1/rerank", handle: s.rerank,
			doc: operation{summary: "Rank pictures by their fit to a text.", request: rerankSchema, reply: rerankReply{}}},
		{method: http.MethodPost, path: "/tokenize", handle: s.tokenize,
			doc: operation{summary: "Count the tokens of a prompt, pictures included.", request: tokenizeSchema, reply: tokenizeReply{}}},
		{method: http.MethodGet, path: "/", open: true, handle: s.playground, doc: operation{summary: "A page to try the models in a browser.", text: "text/html"}},
		{method: http.MethodGet, path: "/healthz", open: true, handle: s.healthz, doc: operation{summary: "The process is alive.", reply: status{}}},
		{method: http.MethodGet, path: "/readyz", open: true, handle: s.readyz, doc: operation{summary: "The server takes requests.", reply: status{}}},
		{method: http.MethodGet, path: "/metrics", handle: s.metricsPage, doc: operation{summary: "Metrics in Prometheus' text format."}},
		{method: http.MethodGet, path: "/openapi.json", handle: s.openAPI, doc: operation{summary: "This document.", reply: map[string]any{}}},
	}
}
