// Coordinator, server and worker in one process.

package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"glimpse/batch/row"
)

// With a worker in the same process pictures do not pass through the server, and a task that nobody here waits for is dropped.
func TestPrivateQueue(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), ""), Private: true, Handover: NewHandover()}
	var calls atomic.Int64
	working(t, o, Worker{Parallel: 3, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		if calls.Add(1); task.ID == "picture 3" {
			return &row.Answer{Error: &row.ItemError{Kind: row.KindInternal, Message: "the native call failed"}}, nil
		}
		return echo(ctx, ask, task)
	}})
	c := client(t, o, "job")
	defer c.Close()
	if _, err := c.publish(t.Context(), taskSubject("hash", "job", "stranger"), "stranger", message{Job: "job", Key: "stranger"}); err != nil {
		t.Fatal(err)
	}
	sizes, err := c.js.Stream(t.Context(), "OBJ_"+objectBucket)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		a, done, err := c.Answer(t.Context(), task(i))
		if err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			if a.Error == nil || a.Error.Kind != row.KindInternal {
				t.Errorf("%+v", a)
			}
		} else if a.Error != nil || a.Captions[0].Caption != fmt.Sprintf("bytes %d", i) {
			t.Errorf("picture %d: %+v", i, a)
		}
		done()
	}
	waitFor(t, "an empty queue", func() bool { return messages(t, c.workStream) == 0 && messages(t, c.resultStream) == 0 })
	if n := calls.Load(); n != 6 {
		t.Errorf("%d calls for 6 pictures", n)
	}
	if info, err := sizes.Info(t.Context()); err != nil || info.State.LastSeq != 0 {
		t.Errorf("pictures went through the server: %+v %v", info, err)
	}
	if s, err := Read(t.Context(), o); err != nil || s.Dead != 0 {
		t.Errorf("%+v %v", s, err)
	}
}

// What was answered and had no row when everything was killed is not asked again.
func TestPrivateQueueTakesUpResults(t *testing.T) {
	dir := t.TempDir()
	options := func() Options {
		return Options{InProcess: serve(t, dir, ""), Private: true, Handover: NewHandover()}
	}
	var calls atomic.Int64
	counted := Worker{Parallel: 2, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		calls.Add(1)
		return echo(ctx, ask, task)
	}}
	o := options()
	stop := working(t, o, counted)
	first := client(t, o, "job")
	for i := range 5 {
		if _, _, err := first.Answer(t.Context(), task(i)); err != nil { // and never done()
			t.Fatal(err)
		}
	}
	first.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	o.InProcess.Close()
	o = options()
	stop = working(t, o, counted)
	second := client(t, o, "job")
	defer second.Close()
	askAll(t.Context(), t, second, 8, 4)
	if n := calls.Load(); n != 8 {
		t.Errorf("%d calls for 8 pictures", n)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := second.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
}
