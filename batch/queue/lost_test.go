// What a server loses, and what changes meanwhile.

package queue

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"glimpse/batch/row"

	"github.com/nats-io/nats.go/jetstream"
)

// A picture whose bytes are lost on the server is stored again by whoever has it, and does not hold a worker for ever.
func TestPictureThatCannotBeFetched(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), ""), fetchWithin: 300 * time.Millisecond}
	c := client(t, o, "job")
	defer c.Close()
	large := task(4)
	answers := make(chan *row.Answer, 1)
	go func() {
		a, done, err := c.Answer(t.Context(), large)
		if err != nil {
			t.Error(err)
			answers <- nil
			return
		}
		done()
		answers <- a
	}()
	for deadline := time.Now().Add(10 * time.Second); c.published.Load() == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	stream, err := c.js.Stream(t.Context(), "OBJ_"+objectBucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject("$O."+objectBucket+".C.>")); err != nil {
		t.Fatal(err)
	}
	working(t, o, Worker{Parallel: 1, Handle: echo})
	select {
	case a := <-answers:
		if a == nil || a.Error != nil || a.Captions[0].Caption != "bytes 4" {
			t.Errorf("%+v", a)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the worker holds on to it")
	}
}

// What a server loses with a node is noticed by who waits for it: a task without a worker, and a result on its way.
func TestLostMessagesAreNoticed(t *testing.T) {
	for _, lost := range []string{"task", "result", "delivery"} {
		t.Run(lost, func(t *testing.T) {
			o := Options{InProcess: serve(t, t.TempDir(), ""), AckWait: 200 * time.Millisecond}
			c := client(t, o, "job")
			defer c.Close()
			if lost != "task" { // results are taken by nobody
				c.stop()
				c.running.Wait()
			}
			answers := make(chan *row.Answer, 1)
			go func() {
				a, done, err := c.Answer(t.Context(), task(1))
				if err != nil {
					t.Error(err)
					answers <- nil
					return
				}
				done()
				answers <- a
			}()
			var calls atomic.Int64
			work := func() {
				working(t, o, Worker{Parallel: 1, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
					calls.Add(1)
					return echo(ctx, ask, task)
				}})
			}
			switch lost {
			case "task":
				waitFor(t, "the task", func() bool { return messages(t, c.workStream) == 1 })
				purge(t, c.workStream)
				work()
			case "result":
				work()
				waitFor(t, "the result", func() bool { return messages(t, c.resultStream) == 1 })
				purge(t, c.resultStream)
			case "delivery":
				work()
			}
			select {
			case a := <-answers:
				if a == nil || a.Error != nil || a.Captions[0].Caption != "bytes 1" {
					t.Errorf("%+v", a)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("nobody noticed")
			}
			if want := map[string]int64{"task": 1, "result": 2, "delivery": 1}[lost]; calls.Load() != want {
				t.Errorf("answered %d times, want %d", calls.Load(), want)
			}
			if n := messages(t, c.resultStream); lost == "delivery" && n != 0 {
				t.Errorf("%d results left", n)
			}
		})
	}
}

// A run that goes on after a kill must not take the answer about what a file held before.
func TestAnotherContentIsAnotherTask(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), "")}
	working(t, o, Worker{Parallel: 1, Handle: echo})
	first := client(t, o, "job")
	cat := task(1)
	cat.Content = "hash of a cat"
	if _, _, err := first.Answer(t.Context(), cat); err != nil { // and never done()
		t.Fatal(err)
	}
	first.Close()
	second := client(t, o, "job")
	defer second.Close()
	dog := cat
	dog.Content, dog.Data = "hash of a dog", []byte("a dog")
	a, done, err := second.Answer(t.Context(), dog)
	if err != nil || a.Error != nil || a.Captions[0].Caption != "a dog" {
		t.Fatalf("%+v, %v", a, err)
	}
	done()
}

func waitFor(t *testing.T, what string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func messages(t *testing.T, s jetstream.Stream) uint64 {
	t.Helper()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

func purge(t *testing.T, s jetstream.Stream) {
	t.Helper()
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
}
