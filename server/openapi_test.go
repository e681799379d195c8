package server

import (
	"bytes"
	"encoding/json"
	"mime"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// What the server answers is what /openapi.json says it answers.
func TestRepliesConform(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	doc, err := jsonschema.UnmarshalJSON(get(h, "/openapi.json").Body)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:openapi", doc); err != nil {
		t.Fatal(err)
	}
	check := func(what, pointer string, reply []byte) {
		t.Helper()
		schema, err := c.Compile("mem:openapi#" + pointer)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(reply))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %s\n%v", what, reply, err)
		}
	}
	reply := func(method, path string) string {
		return "/paths/" + strings.ReplaceAll(path, "/", "~1") + "/" + method + "/responses/200/content/application~1json/schema"
	}
	const chatPath = "/v1/chat/completions"
	full := strings.Replace(goodChat, "{", `{"n":2,"logprobs":true,"top_logprobs":1,"stop":["zz"],"temperature":1,"tools":[],"response_format":{"type":"text"},`, 1)
	streamed := strings.Replace(full, "{", `{"stream":true,"stream_options":{"include_usage":true},`, 1)
	for _, body := range []string{goodChat, full, streamed} {
		check("request", "/paths/~1v1~1chat~1completions/post/requestBody/content/application~1json/schema", []byte(body))
	}
	for _, body := range []string{goodChat, full} {
		check("completion", reply("post", chatPath), post(h, chatPath, "application/json", body).Body.Bytes())
	}
	for _, event := range strings.Split(post(h, chatPath, "application/json", streamed).Body.String(), "\n\n") {
		if event = strings.TrimPrefix(event, "data: "); event != "" && event != "[DONE]" {
			check("event", "/paths/~1v1~1chat~1completions/post/responses/200/content/text~1event-stream/x-event-schema", []byte(event))
		}
	}
	check("models", reply("get", "/v1/models"), get(h, "/v1/models").Body.Bytes())
	check("model", reply("get", "/v1/models/{id}"), get(h, "/v1/models/tiny").Body.Bytes())
	check("health", reply("get", "/healthz"), get(h, "/healthz").Body.Bytes())
	check("tokens", reply("post", "/tokenize"), post(h, "/tokenize", "application/json", `{"prompt":"a b"}`).Body.Bytes())
	kind, body := form(t, [2]string{"@image", "picture"})
	check("caption", reply("post", "/v1/caption"), post(h, "/v1/caption", kind, body).Body.Bytes())
	check("error", "/components/schemas/Error", post(h, chatPath, "application/json", `{}`).Body.Bytes())

	// Texts are of the kind that it says.
	for _, path := range []string{"/", "/metrics"} {
		kind, _, _ := mime.ParseMediaType(get(h, path).Header().Get("Content-Type"))
		if _, err := c.Compile("mem:openapi#/paths/" + strings.ReplaceAll(path, "/", "~1") + "/get/responses/200/content/" + strings.ReplaceAll(kind, "/", "~1") + "/schema"); err != nil {
			t.Errorf("%s answers with %s: %v", path, kind, err)
		}
	}

	// And the schema can say no.
	schema, err := c.Compile("mem:openapi#" + reply("post", chatPath))
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal([]byte(`{"id":"x"}`), &v); err != nil || schema.Validate(v) == nil {
		t.Error("the schema takes half a completion")
	}
}
