// What the two forms of a conversation, chat completions and responses, have alike.

package server

import (
	"context"
	"net/http"

	"glimpse/server/spec"
)

// conversationRequest are the fields that both requests have.
type conversationRequest struct {
	Model             string   `json:"model" required:"true" maxlen:"512" doc:"Name of a served model."`
	Stream            bool     `json:"stream" doc:"Send the answer as server-sent events while it is made."`
	Temperature       *float64 `json:"temperature" range:"0..2" doc:"0, the default, is greedy decoding."`
	TopP              *float64 `json:"top_p" range:"0..1" doc:"Nucleus sampling: keep the smallest set of tokens that reaches this probability. Default 1; 0 leaves the most probable token."`
	ParallelToolCalls *bool    `json:"parallel_tool_calls" doc:"false: one call at most."`
	User              string   `json:"user" maxlen:"256" doc:"Your name for the end user; it goes into the server's log."`
	SafetyIdentifier  string   `json:"safety_identifier" maxlen:"256" doc:"Newer name of user."`

	ServiceTier          spec.Refused `json:"service_tier" accept:"null|\"auto\"|\"default\""`
	Store                spec.Refused `json:"store" accept:"null|false"`
	Metadata             spec.Refused `json:"metadata" accept:"null|{}"`
	Moderation           spec.Refused `json:"moderation" accept:"null"`
	PromptCacheKey       spec.Refused `json:"prompt_cache_key" accept:"null"`
	PromptCacheRetention spec.Refused `json:"prompt_cache_retention" accept:"null"`
	PromptCacheOptions   spec.Refused `json:"prompt_cache_options" accept:"null"`
}

func (q *conversationRequest) common() *conversationRequest { return q }

// endUser is what the client calls its end user.
func (q *conversationRequest) endUser() string {
	if q.SafetyIdentifier != "" {
		return q.SafetyIdentifier
	}
	return q.User
}

// conversation is a request that has been decoded.
type conversation interface {
	common() *conversationRequest
	// size is how many answers are asked for and how many tokens each may have; 0: the model's default.
	size() (choices, tokens int)
}

// converse decodes a request into q, finds its model and runs answer with places taken. Places are taken before pictures
// are fetched and decoded: that work counts too.
func (s *Server) converse(w http.ResponseWriter, r *http.Request, schema *spec.Schema, q conversation, answer func(ctx context.Context, m *served) error) error {
	raw, release, err := s.readJSON(w, r)
	if err != nil {
		return err
	}
	defer release()
	if err := schema.Decode(raw, q); err != nil {
		return err
	}
	exchangeOf(r).user = q.common().endUser()
	m, err := s.model(r, q.common().Model, false)
	if err != nil {
		return err
	}
	ctx, cancel := s.answerContext(r)
	defer cancel()
	choices, tokens := q.size()
	leave, err := s.enter(r, m, min(choices, s.limits.Choices), tokens)
	if err != nil {
		return err
	}
	defer leave()
	return answer(ctx, m)
}
