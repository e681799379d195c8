package server

import (
	"context"
	"strings"
	"testing"

	"glimpse/engine"
)

// boxedModel points at something in each answer.
type boxedModel struct{ *fakeModel }

func (m boxedModel) Generate(ctx context.Context, r engine.Request) (*engine.Result, error) {
	res, err := m.fakeModel.Generate(ctx, r)
	if err == nil {
		res.Boxes = []engine.Box{{Label: "a cat", X1: 1, Y1: 2, X2: 30, Y2: 40, Normalized: [4]float64{0.1, 0.2, 0.3, 0.4}, Start: 5, End: 9}}
	}
	return res, err
}

const catBox = `"boxes":[{"label":"a cat","x1":1,"y1":2,"x2":30,"y2":40,"normalized":[0.1,0.2,0.3,0.4],"picture":0,"start":5,"end":9}]`

func TestBoxesBesideTheContent(t *testing.T) {
	h := handler(t, Options{Models: []Model{boxedModel{newFake("tiny")}}})
	body := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"where?"}]}`).Body.String()
	if !strings.Contains(body, `"content":"where?"`) || !strings.Contains(body, catBox) {
		t.Errorf("the answer is %s", body)
	}
	body = post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"where?"}],"stream":true}`).Body.String()
	if n := strings.Count(body, catBox); n != 1 || !strings.Contains(body, `"delta":{`+catBox+`}`) {
		t.Errorf("%d chunks of the stream have boxes: %s", n, body)
	}
	plain := handler(t, Options{Models: []Model{newFake("tiny")}})
	if body := post(plain, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"hi"}]}`).Body.String(); strings.Contains(body, "boxes") {
		t.Errorf("an answer without boxes is %s", body)
	}
}

func TestPictureBoundsReachTheModel(t *testing.T) {
	m := newFake("tiny")
	h := handler(t, Options{Models: []Model{m}})
	w := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"hi"}],"mm_processor_kwargs":{"min_pixels":3136,"max_pixels":100352}}`)
	if got := m.last(t).PictureOptions; w.Code != 200 || got.MinPixels != 3136 || got.MaxPixels != 100352 {
		t.Errorf("status %d, options %+v", w.Code, got)
	}
	w = post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"hi"}],"mm_processor_kwargs":{"size":1}}`)
	if w.Code != 400 || !strings.Contains(w.Body.String(), "mm_processor_kwargs") {
		t.Errorf("an option that is not known: status %d, %s", w.Code, w.Body)
	}
}
