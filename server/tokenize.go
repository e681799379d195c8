// POST /tokenize, as vLLM has it: the token ids of a text or of a conversation, pictures expanded, nothing generated.

package server

import (
	"net/http"

	"glimpse/engine"
	"glimpse/server/spec"
)

type tokenizeRequest struct {
	Model    string        `json:"model" maxlen:"512" doc:"Name of a served model; may be left out when there is one."`
	Prompt   *string       `json:"prompt" doc:"A text as it stands, without the chat template. Either this or messages."`
	Messages []chatMessage `json:"messages" items:"1..1024" doc:"A conversation, as in chat completions."`

	AddGenerationPrompt spec.Refused `json:"add_generation_prompt" accept:"null|true"`
	AddSpecialTokens    spec.Refused `json:"add_special_tokens" accept:"null|true"`
	ReturnTokenStrs     spec.Refused `json:"return_token_strs" accept:"null|false"`
}

type tokenizeReply struct {
	Count       int     `json:"count"`
	ImageTokens int     `json:"image_tokens"`
	Tokens      []int32 `json:"tokens"`
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) error {
	raw, release, err := s.readJSON(w, r)
	if err != nil {
		return err
	}
	defer release()
	var q tokenizeRequest
	if err := tokenizeSchema.Decode(raw, &q); err != nil {
		return err
	}
	if (q.Prompt == nil) == (q.Messages == nil) {
		return invalid("messages", spec.CodeValue, "a request has either messages or prompt")
	}
	m, err := s.model(r, q.Model, true)
	if err != nil {
		return err
	}
	ctx, cancel := s.answerContext(r)
	defer cancel()
	leave, err := s.enterWith(exchangeOf(r), m, 1, 0) // pictures are decoded: that is work
	if err != nil {
		return err
	}
	defer leave()
	var request engine.Request
	if q.Prompt != nil {
		request.Raw, request.Prompt = true, *q.Prompt
	} else if request.Messages, err = s.messages(ctx, m, q.Messages); err != nil {
		return err
	}
	exchangeOf(r).pictures = pictures(request)
	prepared, err := m.Prepare(ctx, request)
	if err != nil {
		return contextCause(ctx, err)
	}
	writeJSON(w, http.StatusOK, tokenizeReply{Count: len(prepared.TokenIDs), ImageTokens: prepared.ImageTokens, Tokens: prepared.TokenIDs})
	return nil
}
