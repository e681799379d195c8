package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
)

func newRequest(path string) *http.Request { return httptest.NewRequest(http.MethodGet, path, nil) }

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// form is a multipart body; a name that begins with @ is a file.
func form(t *testing.T, fields ...[2]string) (contentType, body string) {
	t.Helper()
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for _, f := range fields {
		name, file := strings.CutPrefix(f[0], "@")
		create := w.CreateFormField
		if file {
			create = func(name string) (io.Writer, error) { return w.CreateFormFile(name, "../cat.png") }
		}
		part, err := create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), buf.String()
}

func TestCaption(t *testing.T) {
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake}})
	kind, body := form(t, [2]string{"@image", "picture"}, [2]string{"prompt", "what?"}, [2]string{"max_tokens", "5"}, [2]string{"model", "tiny"})
	w := post(h, "/v1/caption", kind, body)
	var got captionReply
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	r := fake.last(t)
	want := captionReply{Caption: fake.answer(r), Model: "tiny", FinishReason: "stop", Usage: usage{PromptTokens: 7, CompletionTokens: 3, TotalTokens: 10, PromptDetails: usageDetails{ImageTokens: 4}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s", diff)
	}
	if r.MaxTokens != 5 || r.Messages[0].Content[0].Picture.Source != "cat.png" || string(r.Messages[0].Content[0].Picture.Data) != "picture" || r.Messages[0].Content[1].Text != "what?" {
		t.Errorf("the model got %+v", r)
	}
	// Without a prompt: the model's own.
	kind, body = form(t, [2]string{"@image", "picture"})
	if w := post(h, "/v1/caption", kind, body); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if got := fake.last(t).Messages[0].Content[1].Text; got != "Describe the picture." {
		t.Errorf("prompt %q", got)
	}
	// A model without a chat template is prompted raw.
	plain := newFake("plain")
	plain.manifest.Prompt.Template, plain.manifest.Prompt.RawCaption = "", "a photo of"
	if w := post(handler(t, Options{Models: []Model{plain}}), "/v1/caption", kind, body); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if r := plain.last(t); !r.Raw || r.Prompt != "<image>a photo of" || len(r.Pictures) != 1 {
		t.Errorf("the plain model got %+v", r)
	}
}

func TestCaptionRefuses(t *testing.T) {
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake, newFake("other")}, Limits: Limits{MediaBytes: 1000, BodyBytes: 10000}})
	image, model := [2]string{"@image", "x"}, [2]string{"model", "tiny"}
	cases := []struct {
		name   string
		fields [][2]string
		status int
		param  string
	}{
		{"no image", [][2]string{model}, 400, "image"},
		{"empty image", [][2]string{model, {"@image", ""}}, 400, "image"},
		{"two images", [][2]string{model, image, image}, 400, "image"},
		{"large image", [][2]string{model, {"@image", strings.Repeat("x", 1001)}}, 400, "image"},
		{"unknown field", [][2]string{model, image, {"colour", "red"}}, 400, "colour"},
		{"max_tokens", [][2]string{model, image, {"max_tokens", "0"}}, 400, "max_tokens"},
		{"max_tokens text", [][2]string{model, image, {"max_tokens", "ten"}}, 400, "max_tokens"},
		{"prompt not UTF-8", [][2]string{model, image, {"prompt", "\xff"}}, 400, "prompt"},
		{"which model", [][2]string{image}, 404, "model"},
		{"unknown model", [][2]string{image, {"model", "none"}}, 404, "model"},
		{"large body", [][2]string{model, image, {"prompt", strings.Repeat("x", 20000)}}, 413, ""},
	}
	for _, tc := range cases {
		kind, body := form(t, tc.fields...)
		w := post(h, "/v1/caption", kind, body)
		if e := failure(t, w.Code, w.Body); w.Code != tc.status || text(e.Param) != tc.param {
			t.Errorf("%s: %d %+v, want %d %s", tc.name, w.Code, e, tc.status, tc.param)
		}
	}
	kind, body := form(t, model, image)
	for name, send := range map[string][2]string{"json": {"application/json", `{}`}, "no boundary": {"multipart/form-data", body}, "cut": {kind, body[:len(body)/2]}, "noise": {kind, "noise"}} {
		w := post(h, "/v1/caption", send[0], send[1])
		if failure(t, w.Code, w.Body); w.Code != 400 && w.Code != 415 {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if len(fake.requests) > 0 {
		t.Error("the model was asked")
	}
}

// What the engine says about a request is said about the form.
func TestCaptionNamesItsFields(t *testing.T) {
	for code, want := range map[string]string{engine.CodeImage: "image", engine.CodeContextLength: "prompt"} {
		fake := newFake("tiny")
		fake.before = func(context.Context, engine.Request) error {
			return &engine.RequestError{Param: "messages", Code: code, Message: "no"}
		}
		kind, body := form(t, [2]string{"@image", "picture"})
		w := post(handler(t, Options{Models: []Model{fake}}), "/v1/caption", kind, body)
		if e := failure(t, w.Code, w.Body); w.Code != 400 || text(e.Param) != want || text(e.Code) != code {
			t.Errorf("%s: %d %+v", code, w.Code, e)
		}
	}
}

func TestTokenize(t *testing.T) {
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake}})
	for body, want := range map[string]string{
		`{"prompt":"a b c"}`: `{"count":3,"image_tokens":0,"tokens":[0,1,2]}`,
		`{"model":"tiny","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,YWJj"}}]}]}`: `{"count":2,"image_tokens":4,"tokens":[0,1]}`,
	} {
		if w := post(h, "/tokenize", "application/json", body); w.Code != 200 || strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	for body, param := range map[string]string{`{}`: "messages", `{"prompt":"a","messages":[{"role":"user","content":"b"}]}`: "messages", `{"prompt":"a","add_special_tokens":false}`: "add_special_tokens", `{"prompt":3}`: "prompt"} {
		w := post(h, "/tokenize", "application/json", body)
		if e := failure(t, w.Code, w.Body); w.Code != 400 || text(e.Param) != param {
			t.Errorf("%s: %d %+v", body, w.Code, e)
		}
	}
}

func TestMetrics(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	post(h, "/v1/chat/completions", "application/json", goodChat)
	post(h, "/v1/chat/completions", "application/json", `{"model":"`+strings.Repeat("stranger", 9)+`","messages":[{"role":"user","content":"x"}]}`)
	post(h, "/v1/chat/completions", "application/json", `{}`)
	get(h, "/nowhere/"+strings.Repeat("x", 50))
	kind, body := form(t, [2]string{"@image", "picture"})
	post(h, "/v1/caption", kind, body)
	page := get(h, "/metrics").Body.String()
	for _, want := range []string{
		`glimpse_requests_total{model="tiny",route="/v1/chat/completions",status="200"} 1`,
		`glimpse_requests_total{model="",route="/v1/chat/completions",status="404"} 1`,
		`glimpse_requests_total{model="",route="",status="404"} 1`,
		`glimpse_errors_total{code="model_not_found",model=""} 1`,
		`glimpse_errors_total{code="missing_required_parameter",model=""} 1`,
		`glimpse_tokens_total{kind="prompt",model="tiny"} 14`,
		`glimpse_tokens_total{kind="image",model="tiny"} 4`,
		`glimpse_pictures_total{model="tiny"} 1`,
		`glimpse_in_flight{model="tiny"} 0`,
		`glimpse_time_to_first_token_seconds_count{model="tiny"} 2`,
		`glimpse_inter_token_seconds_count{model="tiny"}`,
		`glimpse_stage_seconds_count{model="tiny",stage="prefill"} 2`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(page, "stranger") || strings.Contains(page, "nowhere") {
		t.Error("strangers choose label values")
	}
}

// The document names every route, and describes requests by the types that decode them.
func TestOpenAPI(t *testing.T) {
	s, err := New(Options{Models: []Model{newFake("tiny")}})
	if err != nil {
		t.Fatal(err)
	}
	w := get(s.Handler(), "/openapi.json")
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			OperationID string `json:"operationId"`
			RequestBody struct {
				Content map[string]struct{ Schema map[string]any }
			}
			Responses map[string]any
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 200 || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%d %v", w.Code, err)
	}
	ids := map[string]bool{}
	for _, rt := range s.table() {
		op, ok := doc.Paths[rt.path][strings.ToLower(rt.method)]
		if !ok || op.Responses["200"] == nil || op.OperationID == "" || ids[op.OperationID] {
			t.Errorf("%s %s: %+v", rt.method, rt.path, op)
		}
		ids[op.OperationID] = true
	}
	chat := doc.Paths["/v1/chat/completions"]["post"].RequestBody.Content["application/json"].Schema
	properties := chat["properties"].(map[string]any)
	for _, f := range reflect.VisibleFields(reflect.TypeFor[chatRequest]()) {
		if name := f.Tag.Get("json"); !f.Anonymous && properties[name] == nil {
			t.Errorf("the chat schema has no %s", name)
		}
	}
	if diff := cmp.Diff([]any{"model", "messages"}, chat["required"]); diff != "" || chat["additionalProperties"] != false {
		t.Errorf("chat schema: required %s, additionalProperties %v", diff, chat["additionalProperties"])
	}
	temperature := properties["temperature"].(map[string]any)["anyOf"].([]any)[0].(map[string]any)
	if temperature["minimum"] != 0.0 || temperature["maximum"] != 2.0 {
		t.Errorf("temperature: %v", temperature)
	}
	again := get(s.Handler(), "/openapi.json")
	if !bytes.Equal(w.Body.Bytes(), again.Body.Bytes()) {
		t.Error("two documents of one server differ")
	}
}

// docs/http.md has a row for every field that a chat request may hold, and says the right thing about it.
func TestConformanceTable(t *testing.T) {
	raw, err := os.ReadFile("../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for _, line := range strings.Split(string(raw), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		verdict := strings.TrimSpace(cells[2])
		if verdict == "honoured" || verdict == "refused" {
			for _, name := range strings.Split(cells[1], ",") {
				verdicts[strings.Trim(strings.TrimSpace(name), "`")] = verdict
			}
		}
	}
	want := map[string]string{}
	for _, f := range slices.Concat(responsesSchema.Fields(), chatSchema.Fields(), tokenizeSchema.Fields(), scoreSchema.Fields(), embeddingsSchema.Fields(), rerankSchema.Fields()) {
		if want[f.Name] = "honoured"; f.Refused {
			want[f.Name] = "refused"
		}
	}
	for _, f := range captionForm {
		want[f.name] = "honoured"
	}
	if diff := cmp.Diff(want, verdicts); diff != "" {
		t.Errorf("docs/http.md (-fields of the types, +rows of the tables):\n%s", diff)
	}
}

// FuzzChatRequest: whatever is sent, the reply is an answer or an error object with a 4xx status.
func FuzzChatRequest(f *testing.F) {
	f.Add([]byte(goodChat))
	f.Add([]byte(`{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,YWJj"}},{"type":"text","text":"x"}]}],"stop":["a"],"stream":true,"n":2,"logprobs":true,"top_logprobs":3}`))
	f.Add([]byte(`{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///x"}}]}],"response_format":{"type":"json_object"}}`))
	f.Add([]byte(`{"tools":[{}],"stream_options":{},"seed":-1}`))
	f.Add([]byte(`{"model":"tiny","messages":[{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"{\"name\":\"f\"}"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"$ref":"#/$defs/a"}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"logit_bias":{"1":2},"stream":true}`))
	s, err := New(Options{Models: []Model{newFake("tiny")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		w := post(s.Handler(), "/v1/chat/completions", "application/json", string(raw))
		if w.Code == http.StatusOK {
			return
		}
		if w.Code < 400 || w.Code > 499 {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		failure(t, w.Code, w.Body)
	})
}

// FuzzResponsesRequest does the same for the other form of a conversation.
func FuzzResponsesRequest(f *testing.F) {
	f.Add([]byte(`{"model":"tiny","input":"x"}`))
	f.Add([]byte(`{"model":"tiny","stream":true,"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,YWJj"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"{\"name\":\"f\",\"arguments\":{}}"}],"tools":[{"type":"function","name":"f","parameters":{}}],"tool_choice":"required"}`))
	f.Add([]byte(`{"model":"tiny","input":"x","text":{"format":{"type":"json_schema","name":"n","schema":{"$ref":"#"},"strict":true}},"metadata":{}}`))
	s, err := New(Options{Models: []Model{newFake("tiny")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		w := post(s.Handler(), "/v1/responses", "application/json", string(raw))
		if w.Code == http.StatusOK {
			return
		}
		if w.Code < 400 || w.Code > 499 {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		failure(t, w.Code, w.Body)
	})
}

// FuzzUpload does the same for the form.
func FuzzUpload(f *testing.F) {
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"x\"\r\n\r\nabc\r\n--b\r\nContent-Disposition: form-data; name=\"max_tokens\"\r\n\r\n3\r\n--b--\r\n"))
	f.Add([]byte("--b\r\n\r\n--b--"))
	s, err := New(Options{Models: []Model{newFake("tiny")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		w := post(s.Handler(), "/v1/caption", "multipart/form-data; boundary=b", string(raw))
		if w.Code != http.StatusOK && (w.Code < 400 || w.Code > 499) {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
	})
}
