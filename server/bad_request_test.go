package server

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Every way in which a chat request can be wrong: the status, and which part of it the error names.
func TestBadRequests(t *testing.T) {
	const user = `"messages":[{"role":"user","content":"x"}]`
	with := func(more string) string { return `{"model":"tiny",` + user + `,` + more + `}` }
	content := func(parts string) string {
		return `{"model":"tiny","messages":[{"role":"user","content":[` + parts + `]}]}`
	}
	image := func(url string) string {
		return content(`{"type":"image_url","image_url":{"url":"` + url + `"}}`)
	}
	big := base64.StdEncoding.EncodeToString(make([]byte, 2000))
	const url = "messages[0].content[0].image_url.url"
	cases := []struct {
		name, body string
		status     int
		param      string
		says       string
	}{
		{"empty", ``, 400, "", "empty"},
		{"not json", `{"model"`, 400, "", "not JSON"},
		{"not an object", `[1]`, 400, "", "must be an object"},
		{"two values", `{"model":"tiny",` + user + `} {}`, 400, "", "goes on"},
		{"not utf-8", "{\"model\":\"\xff\"}", 400, "", "UTF-8"},
		{"unknown field", with(`"colour":1`), 400, "colour", "unknown parameter colour"},
		{"wrong case", with(`"Seed":1`), 400, "Seed", "unknown parameter Seed"},
		{"unknown nested", `{"model":"tiny","messages":[{"role":"user","content":"x","mood":1}]}`, 400, "messages[0].mood", "unknown"},
		{"twice", with(`"model":"tiny"`), 400, "model", "twice"},
		{"no model", `{` + user + `}`, 400, "model", "required"},
		{"null model", `{"model":null,` + user + `}`, 400, "model", "null"},
		{"no messages", `{"model":"tiny"}`, 400, "messages", "required"},
		{"empty messages", `{"model":"tiny","messages":[]}`, 400, "messages", "at least 1"},
		{"null message", `{"model":"tiny","messages":[null]}`, 400, "messages[0]", "object"},
		{"no role", `{"model":"tiny","messages":[{"content":"x"}]}`, 400, "messages[0].role", "required"},
		{"function role", `{"model":"tiny","messages":[{"role":"function","content":"x"}]}`, 400, "messages[0].role", "supported: system"},
		{"tool without call", `{"model":"tiny","messages":[{"role":"tool","content":"x"}]}`, 400, "messages[0].tool_call_id", "needs it"},
		{"calls of a user", `{"model":"tiny","messages":[{"role":"user","content":"x","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}]}`, 400, "messages[0].tool_calls", "assistant"},
		{"arguments", `{"model":"tiny","messages":[{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"[]"}}]}]}`, 400, "messages[0].tool_calls[0].function.arguments", "JSON object"},
		{"no content", `{"model":"tiny","messages":[{"role":"user"}]}`, 400, "messages[0].content", "required"},
		{"content number", `{"model":"tiny","messages":[{"role":"user","content":3}]}`, 400, "messages[0].content", "a string or an array"},
		{"name", `{"model":"tiny","messages":[{"role":"user","content":"x","name":"bob"}]}`, 400, "messages[0].name", "not supported"},
		{"no parts", content(``), 400, "messages[0].content", "at least 1"},
		{"part type", content(`{"type":"hologram","text":"x"}`), 400, "messages[0].content[0].type", "hologram"},
		{"no videos", content(`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,AAAA"}}`), 400, "messages[0].content[0].video_url.url", "takes no videos"},
		{"no sound", content(`{"type":"audio_url","audio_url":{"url":"data:audio/wav;base64,AAAA"}}`), 400, "messages[0].content[0].audio_url.url", "takes no sound"},
		{"no sound in the request", content(`{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}`), 400, "messages[0].content[0].input_audio.data", "takes no sound"},
		{"part without field", content(`{"type":"text"}`), 400, "messages[0].content[0]", "text"},
		{"part with other field", content(`{"type":"text","text":"a","image_url":{"url":"data:,"}}`), 400, "messages[0].content[0]", "no other"},
		{"detail", content(`{"type":"image_url","image_url":{"url":"data:,","detail":"high"}}`), 400, "messages[0].content[0].image_url.detail", "not supported"},
		{"image_url text", content(`{"type":"image_url","image_url":"data:,"}`), 400, "messages[0].content[0].image_url", "must be an object"},

		{"temperature high", with(`"temperature":2.1`), 400, "temperature", "0..2"},
		{"temperature negative", with(`"temperature":-0.1`), 400, "temperature", "0..2"},
		{"temperature text", with(`"temperature":"hot"`), 400, "temperature", "a number"},
		{"temperature huge", with(`"temperature":1e999`), 400, "temperature", "range"},
		{"top_p", with(`"top_p":1.01`), 400, "top_p", "0..1"},
		{"top_k", with(`"top_k":-2`), 400, "top_k", "-1.."},
		{"top_k fraction", with(`"top_k":1.5`), 400, "top_k", "integer"},
		{"min_p", with(`"min_p":2`), 400, "min_p", "0..1"},
		{"repetition_penalty", with(`"repetition_penalty":0`), 400, "repetition_penalty", "0.01..100"},
		{"n zero", with(`"n":0`), 400, "n", "1..128"},
		{"n above the server's", with(`"n":9`), 400, "n", "at most 8"},
		{"max_tokens", with(`"max_tokens":0`), 400, "max_tokens", "1.."},
		{"max_tokens overflow", with(`"max_tokens":99999999999999999999`), 400, "max_tokens", "integer"},
		{"both maxima", with(`"max_tokens":5,"max_completion_tokens":6`), 400, "max_tokens", "differ"},
		{"five stops", with(`"stop":["a","b","c","d","e"]`), 400, "stop", "at most 4"},
		{"no stops", with(`"stop":[]`), 400, "stop", "at least 1"},
		{"empty stop", with(`"stop":""`), 400, "stop", "empty"},
		{"long stop", with(`"stop":"` + strings.Repeat("x", 257) + `"`), 400, "stop", "256"},
		{"top_logprobs alone", with(`"top_logprobs":2`), 400, "top_logprobs", "needs logprobs"},
		{"top_logprobs", with(`"logprobs":true,"top_logprobs":21`), 400, "top_logprobs", "0..20"},
		{"stream_options alone", with(`"stream_options":{"include_usage":true}`), 400, "stream_options", "stream: true"},
		{"seed", with(`"seed":"x"`), 400, "seed", "integer"},

		{"tool type", with(`"tools":[{"type":"custom","function":{"name":"f"}}]`), 400, "tools[0].type", "supported: function"},
		{"tool parameters", with(`"tools":[{"type":"function","function":{"name":"f","parameters":[]}}]`), 400, "tools[0].function.parameters", "an object"},
		{"tool_choice alone", with(`"tool_choice":"required"`), 400, "tool_choice", "no tools"},
		{"tool_choice word", with(`"tool_choice":"any"`), 400, "tool_choice", "supported: none"},
		{"tool_choice of another", with(`"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"g"}}`), 400, "tool_choice", "not among"},
		{"call and schema", with(`"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required","response_format":{"type":"json_object"}`), 400, "response_format", "must be a call"},
		{"functions", with(`"functions":[{"name":"f"}]`), 400, "functions", "not supported"},
		{"format", with(`"response_format":{"type":"xml"}`), 400, "response_format.type", "json_object"},
		{"json_schema without", with(`"response_format":{"type":"json_schema"}`), 400, "response_format.json_schema", "needs it"},
		{"json_schema with text", with(`"response_format":{"type":"text","json_schema":{"name":"x","schema":{}}}`), 400, "response_format.json_schema", "belongs"},
		{"no schema", with(`"response_format":{"type":"json_schema","json_schema":{"name":"x"}}`), 400, "response_format.json_schema.schema", "required"},
		{"frequency_penalty", with(`"frequency_penalty":2.1`), 400, "frequency_penalty", "-2..2"},
		{"presence_penalty", with(`"presence_penalty":-3`), 400, "presence_penalty", "-2..2"},
		{"logit_bias", with(`"logit_bias":{"1":200}`), 400, "logit_bias.1", "-100..100"},
		{"logit_bias key", with(`"logit_bias":{"the":2}`), 400, "logit_bias", "not a token id"},
		{"modalities", with(`"modalities":["text","audio"]`), 400, "modalities", "not supported"},
		{"store", with(`"store":true`), 400, "store", "not supported"},
		{"reasoning_effort", with(`"reasoning_effort":"low"`), 400, "reasoning_effort", "not supported"},
		{"huge unsupported", with(`"metadata":{"a":"` + strings.Repeat("x", 5000) + `"}`), 400, "metadata", "not supported"},

		{"no url", image(""), 400, url, "not a URL"},
		{"bare base64", image("iVBORw0KGgo="), 400, url, "not a URL"},
		{"ftp", image("ftp://host/x.png"), 400, url, "scheme"},
		{"javascript", image("javascript:alert(1)"), 400, url, "scheme"},
		{"no comma", image("data:image/png;base64"), 400, url, "comma"},
		{"not base64", image("data:image/png,abc"), 400, url, "base64"},
		{"broken base64", image("data:image/png;base64,a*b"), 400, url, "base64"},
		{"broken escape", image("data:image/png;base64,a%zz"), 400, url, "escape"},
		{"wrong type", image("data:text/html;base64,YWJj"), 400, url, "text/html"},
		{"empty picture", image("data:image/png;base64,"), 400, url, "empty"},
		{"large picture", image("data:image/png;base64," + big), 400, url, "more than the 1500 bytes"},
		{"http", image("http://example.com/x.png"), 403, url, "does not fetch"},
		{"https", image("HTTPS://example.com/x.png"), 403, url, "does not fetch"},
		{"file", image("file:///etc/passwd"), 403, url, "local files"},
		{"many pictures", content(strings.TrimSuffix(strings.Repeat(`{"type":"image_url","image_url":{"url":"data:image/png;base64,YWJj"}},`, 4), ",")), 400, "messages[0].content[3]", "at most 3 pictures"},
	}
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake}, Limits: Limits{MediaBytes: 1500, Pictures: 3}})
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := post(h, "/v1/chat/completions", "application/json", tc.body)
			e := failure(t, w.Code, w.Body)
			if w.Code != tc.status || text(e.Param) != tc.param || !strings.Contains(e.Message, tc.says) {
				t.Errorf("got %d, param %q, %q; want %d, param %q, a message with %q", w.Code, text(e.Param), e.Message, tc.status, tc.param, tc.says)
			}
			if strings.ContainsAny(e.Message, "\n\r\x00") {
				t.Errorf("the message is not one line: %q", e.Message)
			}
		})
	}
	if len(fake.requests) != 0 {
		t.Errorf("the model was asked %d times", len(fake.requests))
	}
}

// All that is wrong is said at once.
func TestManyProblemsAtOnce(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	w := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"x"}],"foo":1,"temperature":9,"n":-1}`)
	e := failure(t, w.Code, w.Body)
	for _, name := range []string{"foo", "temperature", "n is -1"} {
		if !strings.Contains(e.Message, name) {
			t.Errorf("%q does not name %s", e.Message, name)
		}
	}
}

// What asks for nothing passes.
func TestNeutralValuesPass(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	w := post(h, "/v1/chat/completions", "application/json; charset=utf-8", `{"model":"tiny","messages":[{"role":"assistant","content":"x","refusal":null,"tool_calls":[],"annotations":[]},{"role":"developer","content":[{"type":"text","text":"y"}]}],
		"frequency_penalty":0.0,"presence_penalty":0,"logit_bias":{},"tools":null,"tool_choice":"none","modalities":["text"],"store":false,"stop":null,"n":null,"temperature":null,"top_p":0,
		"top_k":-1,"response_format":{"type":"text"},"service_tier":"auto","user":"u","stream":false,"stream_options":null,"max_tokens":3,"max_completion_tokens":3}`)
	if w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestHeadersAndPaths(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	const good = `{"model":"tiny","messages":[{"role":"user","content":"x"}]}`
	if w := post(h, "/v1/chat/completions", "text/plain", good); w.Code != http.StatusUnsupportedMediaType || text(failure(t, w.Code, w.Body).Code) != codeMediaType {
		t.Errorf("text/plain: %d", w.Code)
	}
	if w := get(h, "/v1/nothing"); w.Code != 404 || text(failure(t, w.Code, w.Body).Code) != codeNotFound {
		t.Errorf("unknown path: %d", w.Code)
	}
	if w := get(h, "/v1/chat/completions"); w.Code != 405 || text(failure(t, w.Code, w.Body).Code) != codeMethod || w.Header().Get("Allow") == "" {
		t.Errorf("wrong method: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	if w := get(h, "/v1/models/none"); w.Code != 404 || text(failure(t, w.Code, w.Body).Code) != codeModelNotFound {
		t.Errorf("unknown model: %d", w.Code)
	}
	w := get(h, "/v1/models")
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cache-Control": "no-store", "Content-Type": "application/json"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Error("other origins are let in")
	}
}

func TestFileURLs(t *testing.T) {
	root := t.TempDir()
	media := filepath.Join(root, "media")
	write := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("media/cat.png", []byte("cat"))
	write("media/sub/a b.png", []byte("cat"))
	write("media/large.png", make([]byte, 2000))
	write("secret.png", []byte("secret"))
	for link, to := range map[string]string{"media/out.png": "../secret.png", "media/abs.png": filepath.Join(root, "secret.png"), "media/dir": "..", "media/in.png": "cat.png", "alias": "media"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(media, "pipe.png"), 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		url    string
		status int
	}{
		{"file://" + media + "/cat.png", 200},
		{"file://localhost" + media + "/cat.png", 200},
		{"file:" + media + "/cat.png", 200},
		{"file://" + media + "/sub/a%20b.png", 200},
		{"file://" + media + "/sub/../cat.png", 200},
		{"file://" + media + "/in.png", 200},
		{"file://" + media + "/large.png", 400},
		{"file://" + media + "/missing.png", 400},
		{"file://" + media + "/out.png", 400},
		{"file://" + media + "/abs.png", 400},
		{"file://" + media + "/dir/secret.png", 400},
		{"file://" + media + "/sub", 400},
		{"file://" + media + "/pipe.png", 400},
		{"file://" + media, 403},
		{"file://" + media + "/../secret.png", 403},
		{"file://" + media + "/%2e%2e/secret.png", 403},
		{"file://" + media + "-other/cat.png", 403},
		{"file:///etc/passwd", 403},
		{"file://elsewhere" + media + "/cat.png", 400},
		{"file://" + media + "/cat.png?x", 400},
		{"file://" + media + "/cat.png%00.jpg", 400},
		{"file:cat.png", 400},
	}
	for _, folder := range []string{media, filepath.Join(root, "alias")} {
		h := handler(t, Options{Models: []Model{newFake("tiny")}, LocalMedia: folder, Limits: Limits{MediaBytes: 1000}})
		for _, tc := range cases {
			w := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"`+tc.url+`"}}]}]}`)
			if w.Code != tc.status {
				t.Errorf("folder %s, %s: %d, want %d: %s", filepath.Base(folder), tc.url, w.Code, tc.status, w.Body)
			}
			if strings.Contains(w.Body.String(), root) {
				t.Errorf("%s: the reply tells where the folder is: %s", tc.url, w.Body)
			}
		}
	}
}
