// POST /v1/caption: a picture as a form upload, its caption back. The shortest way from curl to an answer:
//
//	curl -F image=@cat.jpg http://127.0.0.1:8080/v1/caption

package server

import (
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"glimpse/engine"
	"glimpse/server/spec"
)

// formField is one field of an upload.
type formField struct {
	name     string
	doc      string
	file     bool
	integer  bool
	required bool
	most     int64 // largest value of an integer, most bytes of a text; files have Limits.MediaBytes
}

var captionForm = []formField{
	{name: "image", doc: "The picture.", file: true, required: true},
	{name: "prompt", doc: "What to ask about it. Without it, the model's own request for a caption.", most: 64 << 10},
	{name: "model", doc: "Name of a served model; may be left out when there is one.", most: 512},
	{name: "max_tokens", doc: "Most tokens of the caption.", integer: true, most: 1 << 20},
}

// upload is a form that was read.
type upload struct {
	picture   engine.Picture
	prompt    string
	model     string
	maxTokens int
}

type captionReply struct {
	Caption      string `json:"caption"`
	Model        string `json:"model"`
	FinishReason string `json:"finish_reason"`
	Usage        usage  `json:"usage"`
}

func (s *Server) caption(w http.ResponseWriter, r *http.Request) error {
	body, params, err := s.openBody(w, r, "multipart/form-data")
	if err != nil {
		return err
	}
	defer body.Close()
	up, err := s.readUpload(body, params["boundary"])
	if err != nil {
		var own *Error
		if errors.As(err, &own) && own.Status == http.StatusBadRequest {
			return err
		}
		return bodyError(w, err)
	}
	m, err := s.model(r, up.model, true)
	if err != nil {
		return err
	}
	ctx, cancel := s.answerContext(r)
	defer cancel()
	leave, err := s.enter(r, m, 1, up.maxTokens)
	if err != nil {
		return err
	}
	defer leave()
	g := s.generate(ctx, m, captionRequest(m, up), 1)
	<-g.done
	x := exchangeOf(r)
	x.pictures = 1
	if g.err != nil {
		return formParam(g.err)
	}
	for _, t := range g.queue.take() {
		if t.result == nil {
			continue
		}
		reply := captionReply{Caption: strings.TrimSpace(t.result.Text), Model: m.name, FinishReason: t.result.FinishReason}
		reply.Usage.add(t.result)
		x.prompt, x.completion = reply.Usage.PromptTokens, reply.Usage.CompletionTokens
		writeJSON(w, http.StatusOK, reply)
	}
	return nil
}

// formParam names the form's field where the engine names a part of a chat request.
func formParam(err error) error {
	var request *engine.RequestError
	if !errors.As(err, &request) || request.Param == "max_tokens" {
		return err
	}
	named := *request
	named.Param = "prompt"
	if named.Code == engine.CodeImage {
		named.Param = "image"
	}
	return &named
}

// captionRequest puts the picture before the prompt, through the chat template where the model has one.
func captionRequest(m *served, up *upload) engine.Request {
	p := m.Manifest().Prompt
	r := engine.Request{MaxTokens: up.maxTokens}
	text := up.prompt
	if p.Template == "" {
		if text == "" {
			text = p.RawCaption
		}
		if p.Placeholder != "" && !strings.Contains(text, p.Placeholder) {
			text = p.Placeholder + text
		}
		r.Raw, r.Prompt, r.Pictures = true, text, []engine.Picture{up.picture}
		return r
	}
	if text == "" {
		text = p.Caption
	}
	r.Messages = []engine.Message{{Role: "user", Content: []engine.Part{
		{Type: engine.PartImage, Picture: &up.picture}, {Type: engine.PartText, Text: text},
	}}}
	return r
}

// readUpload reads the form as it arrives; nothing touches the disk.
func (s *Server) readUpload(body io.Reader, boundary string) (*upload, error) {
	if boundary == "" {
		return nil, invalid("", spec.CodeSyntax, "the form's Content-Type has no boundary")
	}
	form := multipart.NewReader(body, boundary)
	up := &upload{}
	seen := map[string]bool{}
	for {
		part, err := form.NextPart()
		if err == io.EOF {
			// The end of the form is not the end of the body, and only after that does the server see the client go away.
			if _, err := io.Copy(io.Discard, body); err != nil {
				return nil, formError(err)
			}
			break
		}
		if err != nil {
			return nil, formError(err)
		}
		name := part.FormName()
		field := findField(name)
		if field == nil {
			return nil, invalid(clipped(name), spec.CodeUnknown, fmt.Sprintf("unknown form field %q", clipped(name)))
		}
		if seen[name] {
			return nil, invalid(name, spec.CodeValue, fmt.Sprintf("the form field %s is there twice", name))
		}
		seen[name] = true
		if err := s.readField(up, field, part); err != nil {
			return nil, err
		}
	}
	for _, f := range captionForm {
		if f.required && !seen[f.name] {
			return nil, invalid(f.name, spec.CodeMissing, fmt.Sprintf("the form field %s is required", f.name))
		}
	}
	return up, nil
}

func findField(name string) *formField {
	for i := range captionForm {
		if captionForm[i].name == name {
			return &captionForm[i]
		}
	}
	return nil
}

func (s *Server) readField(up *upload, f *formField, part *multipart.Part) error {
	most := f.most
	if f.file {
		most = s.limits.MediaBytes
	}
	raw, err := io.ReadAll(io.LimitReader(part, most+1))
	if err != nil {
		return formError(err)
	}
	if int64(len(raw)) > most {
		return invalid(f.name, spec.CodeValue, fmt.Sprintf("the form field %s has more than %d bytes", f.name, most))
	}
	if f.file {
		if len(raw) == 0 {
			return mediaError(f.name, "the picture is empty")
		}
		source := f.name
		if name := part.FileName(); name != "" {
			source = clipped(filepath.Base(name))
		}
		up.picture = engine.Picture{Data: raw, Source: source}
		return nil
	}
	if !utf8.Valid(raw) {
		return invalid(f.name, spec.CodeType, fmt.Sprintf("the form field %s is not UTF-8", f.name))
	}
	switch f.name {
	case "prompt":
		up.prompt = string(raw)
	case "model":
		up.model = string(raw)
	case "max_tokens":
		n, err := strconv.Atoi(string(raw))
		if err != nil || n < 1 || int64(n) > most {
			return invalid(f.name, spec.CodeValue, fmt.Sprintf("max_tokens must be an integer in 1..%d", most))
		}
		up.maxTokens = n
	}
	return nil
}

// formError keeps what the body reader said and calls everything else a broken form.
func formError(err error) error {
	var own *Error
	if errors.As(err, &own) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return invalid("", spec.CodeSyntax, "the form cannot be read: "+clipped(err.Error()))
}
