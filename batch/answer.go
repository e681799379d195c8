// A model in this process as an Answerer.

package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"glimpse/batch/row"
	"glimpse/engine"

	"golang.org/x/sync/semaphore"
)

// Embedder is a Captioner that embeds pictures.
type Embedder interface {
	Embed(ctx context.Context, req engine.EmbedRequest) (*engine.EmbedResult, error)
}

// Scorer is a Captioner that scores pictures against texts.
type Scorer interface {
	Score(ctx context.Context, req engine.ScoreRequest) (*engine.ScoreResult, error)
}

// itmScore is the score that says how probable it is that a picture and a text belong together.
const itmScore = "itm"

// Answerer puts tasks to a Captioner. It reports when the model worked, through Busy.
type Answerer struct {
	model Captioner
	ask   Ask
	tools Tools
	// Busy, where set, is called after each request with the time in which it was inside the model.
	Busy func(from, to time.Time)
	// frames counts the bytes of decoded frames that are held, of memory in all.
	frames *semaphore.Weighted
	memory int64
}

// NewAnswerer checks that the model can do what is asked of it.
func NewAnswerer(model Captioner, ask Ask, tools Tools) (*Answerer, error) {
	m := model.Manifest()
	if _, ok := model.(Embedder); ask.Embedding && (!ok || m.Scoring == nil) {
		return nil, fmt.Errorf("%w: %s has no embedding heads", ErrInput, model.Name())
	}
	if _, ok := model.(Scorer); ask.ITM && (!ok || m.Scoring == nil) {
		return nil, fmt.Errorf("%w: %s has no scoring heads", ErrInput, model.Name())
	}
	if ask.Boxes && m.Boxes == nil {
		return nil, fmt.Errorf("%w: %s points at nothing: its answers hold no boxes", ErrInput, model.Name())
	}
	return &Answerer{model: model, ask: ask.with(model), tools: tools, frames: semaphore.NewWeighted(defaultMemory), memory: defaultMemory}, nil
}

// Ask is what is asked of each picture, with what the model knows filled in.
func (a *Answerer) Ask() Ask { return a.ask }

// Answer asks every prompt about the picture or video.
func (a *Answerer) Answer(ctx context.Context, task row.Task) (*row.Answer, func(), error) {
	start := time.Now()
	answer := &row.Answer{}
	if err := a.fill(ctx, task, answer); err != nil {
		problem, err := a.judge(ctx, err)
		if err != nil {
			return nil, nil, err
		}
		answer.Captions, answer.Embedding, answer.ITM, answer.Error = nil, nil, nil, problem
	}
	answer.MS = milliseconds(time.Since(start))
	return answer, func() {}, nil
}

// fill asks everything that is asked.
func (a *Answerer) fill(ctx context.Context, task row.Task, answer *row.Answer) error {
	var clip *Clip
	if task.Clip {
		var held int64
		defer func() { a.frames.Release(held) }()
		read, err := a.clip(ctx, task, &held)
		if err != nil {
			return err
		}
		clip = read
		answer.Clip, answer.Width, answer.Height = &clip.Seen, clip.Width, clip.Height
	}
	for _, prompt := range a.ask.Prompts {
		c, err := a.one(ctx, task, clip, prompt)
		if err != nil {
			return err
		}
		answer.Captions = append(answer.Captions, *c)
	}
	return a.heads(ctx, task, answer)
}

// clip decodes a video's frames when there is room for them. What is held is released by the caller; nothing else is
// waited for while it is held but the model, which needs no room of this kind.
func (a *Answerer) clip(ctx context.Context, task row.Task, held *int64) (*Clip, error) {
	switch {
	case a.tools.Clip == nil || a.model.Manifest().Prompt.Template == "":
		return nil, &row.ItemError{Kind: row.KindVideo, Message: "it is a video, and this model takes none"}
	case a.ask.Embedding || a.ask.ITM:
		return nil, &row.ItemError{Kind: row.KindRejected, Message: "videos have no embedding and no score"}
	}
	return readClip(ctx, a.tools, a.ask, task, func(ctx context.Context, bytes int64) error {
		bytes = min(bytes, a.memory)
		if err := a.frames.Acquire(ctx, bytes); err != nil {
			return err
		}
		*held = bytes
		return nil
	})
}

func milliseconds(d time.Duration) float64 {
	return math.Round(10*float64(d)/float64(time.Millisecond)) / 10
}

func (a *Answerer) one(ctx context.Context, task row.Task, clip *Clip, prompt string) (*row.Caption, error) {
	var req engine.Request
	if clip != nil {
		req = clipRequest(clip, prompt)
	} else {
		req = Request(a.model.Manifest(), []engine.Picture{a.picture(task)}, prompt)
	}
	req.MaxTokens = a.ask.MaxTokens
	var logprob float64
	if a.ask.Logprob {
		req.Logprobs = 1
		req.Token = func(t engine.Token) { logprob += float64(t.Logprob) }
	}
	start := time.Now()
	result, err := a.model.Generate(ctx, req)
	if err != nil {
		return nil, err
	}
	if a.Busy != nil {
		a.Busy(inModel(start, time.Now(), result.Timings))
	}
	c := &row.Caption{Prompt: prompt, Caption: result.Text, Tokens: result.Usage.CompletionTokens}
	if a.ask.Logprob {
		logprob = math.Round(logprob*1000) / 1000
		c.Logprob = &logprob
	}
	if a.ask.Boxes {
		c.Boxes = boxesOf(result.Boxes)
	}
	return c, nil
}

func boxesOf(boxes []engine.Box) []row.Box {
	var list []row.Box
	for _, b := range boxes {
		list = append(list, row.Box{Label: b.Label, X1: b.X1, Y1: b.Y1, X2: b.X2, Y2: b.Y2, Points: b.Points, Frame: b.Picture})
	}
	return list
}

// inModel is when a request was inside the model: at its end, but for what it prepared and waited for before.
func inModel(start, end time.Time, t engine.Timings) (from, to time.Time) {
	if inside := t.Vision + t.Connector + t.Prefill + t.Decode; inside > 0 {
		start = end.Add(-min(inside, end.Sub(start)))
	}
	return start, end
}

func (a *Answerer) picture(task row.Task) engine.Picture {
	return engine.Picture{Data: task.Data, Source: task.Source, IgnoreEXIF: a.ask.IgnoreEXIF}
}

// heads adds embedding and score.
func (a *Answerer) heads(ctx context.Context, task row.Task, answer *row.Answer) error {
	if a.ask.Embedding {
		e, err := a.model.(Embedder).Embed(ctx, engine.EmbedRequest{Pictures: []engine.Picture{a.picture(task)}})
		if err != nil {
			return fmt.Errorf("embed: %w", err)
		}
		answer.Embedding = e.Pictures[0].Vector
	}
	if !a.ask.ITM {
		return nil
	}
	s, err := a.model.(Scorer).Score(ctx, engine.ScoreRequest{Pictures: []engine.Picture{a.picture(task)}, Texts: []string{answer.Captions[0].Caption}})
	if err != nil {
		return fmt.Errorf("score: %w", err)
	}
	for _, m := range s.Scores {
		if m.Name == itmScore {
			v := float64(m.Values[0][0])
			answer.ITM = &v
			return nil
		}
	}
	return fmt.Errorf("%w: the model has no %s score", engine.ErrNoScores, itmScore)
}

// judge tells what is wrong with a picture from what ends the run.
func (a *Answerer) judge(ctx context.Context, err error) (*row.ItemError, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, engine.ErrClosed), errors.Is(err, engine.ErrNoDecoder), errors.Is(err, engine.ErrNoPictures), errors.Is(err, engine.ErrNoScores):
		return nil, err // no picture would fare better
	case errors.Is(err, ErrTool):
		return nil, err // another machine may read it
	}
	if item := (*row.ItemError)(nil); errors.As(err, &item) {
		return item, nil
	}
	return requestError(err, a.tools.PictureKind), nil
}

// requestError names what Generate refused. pictureKind may say more about a bad picture than that it is one.
func requestError(err error, pictureKind func(error) string) *row.ItemError {
	var bad *engine.RequestError
	if !errors.As(err, &bad) {
		return &row.ItemError{Kind: row.KindInternal, Message: oneLine(err.Error())}
	}
	kind := row.KindRejected
	switch {
	case errors.Is(err, engine.ErrContextTooLong):
		kind = row.KindTooLong
	case errors.Is(err, engine.ErrPicture):
		kind = pictureKindOf(err, pictureKind)
	}
	return &row.ItemError{Kind: kind, Message: oneLine(bad.Message)}
}

func pictureKindOf(err error, pictureKind func(error) string) string {
	if pictureKind == nil {
		return row.KindBadPicture
	}
	return cmp.Or(pictureKind(err), row.KindBadPicture)
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }
