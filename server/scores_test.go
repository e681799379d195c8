package server

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"glimpse/engine"
)

// pictureURL is a picture of the golden sets as a data: URL.
func pictureURL(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldens, "media", name))
	if err != nil {
		t.Fatal(err)
	}
	return "data:" + http.DetectContentType(data) + ";base64," + base64.StdEncoding.EncodeToString(data)
}

// postJSON sends a value and decodes the reply; the status is returned.
func postJSON(t *testing.T, h http.Handler, path string, body, reply any) (int, string) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	w := post(h, path, "application/json", string(raw))
	text := w.Body.String()
	if w.Code == http.StatusOK {
		if err := json.Unmarshal([]byte(text), reply); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	return w.Code, text
}

type object = map[string]any

// Scores, embeddings and rankings of a real model over HTTP, against the golden set.
func TestRealScores(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(goldens, "blip2-itm-tiny", "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var set struct {
		Cases []struct {
			Images, Texts []string
			Expected      struct {
				ITC     [][]float64
				ITMProb [][]float64 `json:"itm_prob"`
			}
		}
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	h := handler(t, Options{Models: []Model{realEngine(t, "blip2-itm-tiny", "itm")}})
	for _, c := range set.Cases {
		var images []string
		for _, name := range c.Images {
			images = append(images, pictureURL(t, name))
		}
		var scores struct{ ITC, ITM [][]float64 }
		if code, text := postJSON(t, h, "/v1/score", object{"images": images, "texts": c.Texts}, &scores); code != 200 {
			t.Fatal(text)
		}
		// From the files: picture decoders differ by a grey level here and there.
		sameMatrix(t, "itc", scores.ITC, c.Expected.ITC, 1e-3)
		sameMatrix(t, "itm", scores.ITM, c.Expected.ITMProb, 1e-3)
		embeddingsAgree(t, h, images, c.Texts, scores.ITC)
	}
	conform(t, h, pictureURL(t, "cat.png"))
	rankings(t, h)
	clientEmbeds(t, h, set.Cases[0].Texts)
}

// clientEmbeds: OpenAI's own client reads the same numbers.
func clientEmbeds(t *testing.T, h http.Handler, texts []string) {
	t.Helper()
	var plain struct {
		Data []struct{ Embedding []float64 }
	}
	if code, text := postJSON(t, h, "/v1/embeddings", object{"model": "itm", "input": texts}, &plain); code != 200 {
		t.Fatal(text)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	got, err := client(t, server.URL).Embeddings.New(t.Context(), openai.EmbeddingNewParams{
		Model: "itm", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: texts}, EncodingFormat: openai.EmbeddingNewParamsEncodingFormatFloat})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Data) != len(plain.Data) || got.Model != "itm" || got.Usage.PromptTokens == 0 {
		t.Fatalf("%s", got.RawJSON())
	}
	for i, d := range got.Data {
		if d.Index != int64(i) || !slices.Equal(d.Embedding, plain.Data[i].Embedding) {
			t.Errorf("embedding %d differs: %s", i, d.RawJSON())
		}
	}
}

func sameMatrix(t *testing.T, name string, have, want [][]float64, tolerance float64) {
	t.Helper()
	if len(have) != len(want) || len(want) == 0 {
		t.Fatalf("%s has %d rows, want %d", name, len(have), len(want))
	}
	for i := range want {
		for j := range want[i] {
			if len(have[i]) != len(want[i]) || !(math.Abs(have[i][j]-want[i][j]) <= tolerance) {
				t.Errorf("%s[%d]: %v, want %v", name, i, have[i], want[i])
			}
		}
	}
}

// embeddingsAgree: the largest dot product of the rows is itc, and base64 holds the same numbers.
func embeddingsAgree(t *testing.T, h http.Handler, images, texts []string, itc [][]float64) {
	t.Helper()
	var plain struct {
		Data []struct {
			Kind       string
			Index      int
			Embedding  []float32
			Embeddings [][]float32
		}
	}
	var encoded struct{ Data []struct{ Embedding string } }
	body := object{"model": "itm", "input": texts, "images": images}
	if code, text := postJSON(t, h, "/v1/embeddings", body, &plain); code != 200 || len(plain.Data) != len(texts)+len(images) {
		t.Fatal(text)
	}
	body["encoding_format"] = "base64"
	if code, text := postJSON(t, h, "/v1/embeddings", body, &encoded); code != 200 {
		t.Fatal(text)
	}
	product := func(a, b []float32) float64 {
		sum := 0.0
		for i := range a {
			sum += float64(a[i]) * float64(b[i])
		}
		return sum
	}
	for i, d := range plain.Data {
		raw, err := base64.StdEncoding.DecodeString(encoded.Data[i].Embedding)
		numbers := make([]float32, len(d.Embedding))
		if err != nil || len(raw) != 4*len(numbers) {
			t.Fatalf("base64 of %d bytes: %v", len(raw), err)
		}
		if _, err := binary.Decode(raw, binary.LittleEndian, numbers); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d.Embedding, numbers); diff != "" || d.Index != i || math.Abs(product(d.Embedding, d.Embedding)-1) > 1e-5 {
			t.Errorf("embedding %d: %s", i, diff)
		}
		if d.Kind == "text" {
			continue
		}
		for j := range texts {
			best := math.Inf(-1)
			for _, row := range d.Embeddings {
				best = max(best, product(row, plain.Data[j].Embedding))
			}
			if want := itc[i-len(texts)][j]; math.Abs(best-want) > 1e-5 {
				t.Errorf("picture %d, text %d: the embeddings give %v, itc is %v", i-len(texts), j, best, want)
			}
		}
	}
}

// conform: requests and replies are what /openapi.json says.
func conform(t *testing.T, h http.Handler, picture string) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(get(h, "/openapi.json").Body)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:openapi", doc); err != nil {
		t.Fatal(err)
	}
	check := func(pointer string, raw []byte) {
		t.Helper()
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		schema, err := c.Compile("mem:openapi#" + pointer)
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
	for path, body := range map[string]object{
		"/v1/score":      {"images": []string{picture}, "texts": []string{"a"}},
		"/v1/embeddings": {"model": "itm", "input": "a", "images": []string{picture}, "encoding_format": "base64"},
		"/v1/rerank":     {"query": "a", "documents": []object{{"image": picture}}, "top_n": 1, "factor": 2},
	} {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		at := "/paths/" + strings.ReplaceAll(path, "/", "~1") + "/post"
		check(at+"/requestBody/content/application~1json/schema", raw)
		check(at+"/responses/200/content/application~1json/schema", post(h, path, "application/json", string(raw)).Body.Bytes())
	}
}

// rankings: what was looked at comes first by itm; stored embeddings give the same order as pictures.
func rankings(t *testing.T, h http.Handler) {
	t.Helper()
	var embedded struct {
		Data []struct {
			Embedding  []float64
			Embeddings [][]float64
		}
	}
	images := []string{pictureURL(t, "cat.png"), pictureURL(t, "rocket_wide.png"), pictureURL(t, "coffee.png")}
	if code, text := postJSON(t, h, "/v1/embeddings", object{"model": "itm", "images": images}, &embedded); code != 200 {
		t.Fatal(text)
	}
	type ranked struct {
		Results []struct {
			Index     int
			Relevance float64 `json:"relevance_score"`
			Scores    map[string]float64
		}
	}
	var pictures, stored, mixed, short ranked
	ask := func(to *ranked, documents []object, more object) {
		t.Helper()
		body := object{"query": "a photo of a cat", "documents": documents}
		for k, v := range more {
			body[k] = v
		}
		if code, text := postJSON(t, h, "/v1/rerank", body, to); code != 200 {
			t.Fatal(text)
		}
	}
	var withPictures, withRows, half []object
	for i, url := range images {
		rows := embedded.Data[i].Embeddings
		withPictures = append(withPictures, object{"image": url})
		withRows = append(withRows, object{"image": url, "embeddings": rows})
		half = append(half, object{"embeddings": rows})
	}
	half[2] = object{"image": images[2]}
	ask(&pictures, withPictures, nil)
	ask(&stored, withRows, nil)
	ask(&mixed, half, nil)
	ask(&short, withRows, object{"top_n": 1, "factor": 2})
	for i, r := range pictures.Results {
		s := stored.Results[i]
		if r.Index != s.Index || math.Abs(r.Relevance-s.Relevance) > 1e-5 || math.Abs(r.Scores["itc"]-s.Scores["itc"]) > 1e-5 || r.Relevance != r.Scores["itm"] {
			t.Errorf("place %d: %+v from pictures, %+v from stored embeddings", i, r, s)
		}
		if i > 0 && r.Relevance > pictures.Results[i-1].Relevance {
			t.Errorf("%+v is not in order", pictures.Results)
		}
	}
	if first := mixed.Results[0]; len(mixed.Results) != 3 || first.Index != 2 || mixed.Results[1].Relevance != mixed.Results[1].Scores["itc"] || len(mixed.Results[2].Scores) != 1 {
		t.Errorf("the document with a picture is not first: %+v", mixed)
	}
	if len(short.Results) != 1 || short.Results[0].Scores["itm"] == 0 {
		t.Errorf("one of a shortlist of two: %+v", short)
	}
}

func TestScoreErrors(t *testing.T) {
	h := handler(t, Options{Models: []Model{realEngine(t, "blip2-itm-tiny", "itm"), newFake("tiny")}, Limits: Limits{HeadPictures: 2}})
	cat := pictureURL(t, "cat.png")
	long := strings.Repeat("cat ", 80)
	for name, tc := range map[string]struct {
		path  string
		body  object
		code  string
		param string
		says  string
	}{
		"no heads":           {"/v1/score", object{"model": "tiny", "images": []string{cat}, "texts": []string{"a"}}, engine.CodeUnsupported, "model", "tiny"},
		"no heads, embed":    {"/v1/embeddings", object{"model": "tiny", "input": "a"}, engine.CodeUnsupported, "model", "tiny"},
		"no heads, rank":     {"/v1/rerank", object{"model": "tiny", "query": "a", "documents": []object{{"image": cat}}}, engine.CodeUnsupported, "model", "tiny"},
		"long text":          {"/v1/score", object{"model": "itm", "images": []string{cat}, "texts": []string{"a", long}}, engine.CodeContextLength, "texts[1]", "cat cat"},
		"long query":         {"/v1/rerank", object{"model": "itm", "query": long, "documents": []object{{"image": cat}}}, engine.CodeContextLength, "query", "cat cat"},
		"no picture":         {"/v1/score", object{"model": "itm", "images": []string{"data:image/png;base64,AAAA"}, "texts": []string{"a"}}, engine.CodeImage, "image", "images[0]"},
		"too many pictures":  {"/v1/score", object{"model": "itm", "images": []string{cat, cat, cat}, "texts": []string{"a"}}, "invalid_value", "images", "2"},
		"too many documents": {"/v1/rerank", object{"model": "itm", "query": "a", "documents": []object{{"image": cat}, {"image": cat}, {"image": cat}}}, "invalid_value", "documents[2]", "2"},
		"nothing to embed":   {"/v1/embeddings", object{"model": "itm"}, "missing_required_parameter", "input", "images"},
		"token ids":          {"/v1/embeddings", object{"model": "itm", "input": []int{1, 2}}, "invalid_type", "input[0]", ""},
		"dimensions":         {"/v1/embeddings", object{"model": "itm", "input": "a", "dimensions": 8}, "unsupported_parameter", "dimensions", ""},
		"empty document":     {"/v1/rerank", object{"model": "itm", "query": "a", "documents": []object{{}}}, "missing_required_parameter", "documents[0]", ""},
		"both embeddings":    {"/v1/rerank", object{"model": "itm", "query": "a", "documents": []object{{"embedding": []int{1}, "embeddings": [][]int{{1}}}}}, "invalid_value", "documents[0]", ""},
		"narrow embedding":   {"/v1/rerank", object{"model": "itm", "query": "a", "documents": []object{{"embedding": []int{1, 2}}}}, "invalid_value", "documents[0].embedding", "24"},
		"zero embedding":     {"/v1/rerank", object{"model": "itm", "query": "a", "documents": []object{{"embedding": make([]int, 24)}}}, "invalid_value", "documents[0].embedding", "direction"},
		"no chat":            {"/v1/chat/completions", object{"model": "itm", "messages": []object{{"role": "user", "content": "hi"}}}, engine.CodeUnsupported, "model", "decoder"},
	} {
		raw, err := json.Marshal(tc.body)
		if err != nil {
			t.Fatal(err)
		}
		w := post(h, tc.path, "application/json", string(raw))
		e := failure(t, w.Code, w.Body)
		if w.Code != 400 || text(e.Code) != tc.code || text(e.Param) != tc.param || !strings.Contains(e.Message, tc.says) {
			t.Errorf("%s: %d %s", name, w.Code, fmt.Sprintf("%s %s: %s", text(e.Code), text(e.Param), e.Message))
		}
	}
}
