package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"glimpse/batch/row"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The client library's own: one outlives a connection that was lost and came back, the other a Get of an object that ran
	// out of time before it returned.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats.go/jetstream.(*obs).Get.func2"))
}

func serve(t *testing.T, dir, listen string) *Server {
	t.Helper()
	s, err := StartServer(ServerOptions{Dir: dir, Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, o Options, job string) *Client {
	t.Helper()
	c, err := NewClient(t.Context(), o, Job{ID: job, Model: "m", ModelHash: "hash", Ask: json.RawMessage(`"ask"`)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// working starts a worker and returns how to stop it.
func working(t *testing.T, o Options, w Worker) (stop func() error) {
	t.Helper()
	w.ModelHash = "hash"
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Work(ctx, o, w) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-ended })
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// task is one of which every fifth is too large to travel in its message.
func task(i int) row.Task {
	t := row.Task{Key: row.KeyOf(fmt.Sprint(i)), ID: fmt.Sprintf("picture %d", i), Source: "s", Data: fmt.Appendf(nil, "bytes %d", i), Tiles: i%3 + 1}
	if i%5 == 4 {
		t.Data = append(t.Data, make([]byte, inline)...)
	}
	return t
}

// echo answers with the picture's bytes.
func echo(_ context.Context, ask json.RawMessage, t row.Task) (*row.Answer, error) {
	return &row.Answer{Captions: []row.Caption{{Prompt: string(ask), Caption: strings.TrimRight(string(t.Data), "\x00"), Tokens: t.Tiles}}}, nil
}

// askAll asks about n pictures, `parallel` at a time, and checks each answer.
func askAll(ctx context.Context, t *testing.T, c *Client, n, parallel int) {
	t.Helper()
	var all sync.WaitGroup
	places := make(chan struct{}, parallel)
	for i := range n {
		all.Add(1)
		places <- struct{}{}
		go func() {
			defer all.Done()
			a, done, err := c.Answer(ctx, task(i))
			<-places
			if err != nil {
				t.Errorf("picture %d: %v", i, err)
				return
			}
			if want := fmt.Sprintf("bytes %d", i); a.Error != nil || a.Captions[0].Caption != want || a.Captions[0].Prompt != `"ask"` || a.Captions[0].Tokens != i%3+1 {
				t.Errorf("picture %d: %+v", i, a)
			}
			done()
		}()
	}
	all.Wait()
}

// empty wants nothing left on the server.
func empty(t *testing.T, o Options) {
	t.Helper()
	s, err := Read(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Waiting != 0 || s.Results != 0 {
		t.Errorf("left on the server: %+v", s)
	}
}

func TestAnswersComeBack(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), "")}
	working(t, o, Worker{Name: "one", Parallel: 3, Handle: echo})
	working(t, o, Worker{Name: "two", Parallel: 3, Handle: echo})
	c := client(t, o, "job")
	defer c.Close()
	askAll(t.Context(), t, c, 60, 20)
	if err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, o)
	s, err := Read(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Workers) != 2 || len(s.Jobs) != 1 || s.Jobs[0].ID != "job" {
		t.Errorf("status %+v", s)
	}
}

// A video streams onto the queue; one that cannot be read is an answer, and nothing is published.
func TestVideosStream(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), "")}
	var clips atomic.Int64
	working(t, o, Worker{Parallel: 1, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		if task.Clip {
			clips.Add(1)
		}
		return &row.Answer{Captions: []row.Caption{{Caption: fmt.Sprint(len(task.Data))}}}, nil
	}})
	c := client(t, o, "job")
	defer c.Close()
	size := 3<<20 + 7
	video := row.Task{Key: row.KeyOf("video"), ID: "v", Clip: true, File: "v.mp4", Copy: func(w io.Writer) error {
		for left := size; left > 0; {
			n, err := w.Write(make([]byte, min(left, 100_000)))
			if left -= n; err != nil {
				return err
			}
		}
		return nil
	}}
	a, done, err := c.Answer(t.Context(), video)
	if err != nil || a.Error != nil || a.Captions[0].Caption != fmt.Sprint(size) {
		t.Fatalf("%+v %v", a, err)
	}
	done()
	broken := row.Task{Key: row.KeyOf("broken"), ID: "b", Clip: true, File: "b.mp4", Copy: func(w io.Writer) error {
		_, _ = w.Write(make([]byte, 1<<20))
		return &row.ItemError{Kind: row.KindUnreadable, Message: "the file changed"}
	}}
	a, done, err = c.Answer(t.Context(), broken)
	if err != nil || a.Error == nil || a.Error.Message != "the file changed" {
		t.Fatalf("%+v %v", a, err)
	}
	done()
	if n := clips.Load(); n != 1 {
		t.Errorf("%d videos came to the worker", n)
	}
	if err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, o)
	objects, err := c.objects.List(t.Context())
	if err == nil || len(objects) > 0 {
		t.Errorf("videos left on the server: %v %v", objects, err)
	}
}

func TestServerRestart(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir, "127.0.0.1:0")
	o := Options{URL: s.URL(), AckWait: time.Second}
	address := s.server.Addr().String()
	var answered atomic.Int64
	working(t, o, Worker{Parallel: 2, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		time.Sleep(5 * time.Millisecond)
		answered.Add(1)
		return echo(ctx, ask, task)
	}})
	c := client(t, o, "job")
	defer c.Close()
	go func() {
		for answered.Load() < 30 {
			time.Sleep(time.Millisecond)
		}
		s.Close()
		time.Sleep(200 * time.Millisecond)
		again, err := StartServer(ServerOptions{Dir: dir, Listen: address})
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(again.Close)
	}()
	askAll(t.Context(), t, c, 120, 16)
	if err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, o)
}

// A worker that takes a task and is never heard of again must not cost the picture.
func TestWorkerThatDies(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), ""), AckWait: 300 * time.Millisecond}
	l, err := connect(t.Context(), o, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	consumer, err := l.js.CreateConsumer(t.Context(), WorkStream, jetstream.ConsumerConfig{Durable: "workers-hash", FilterSubject: workSubject + ".hash.>",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: o.AckWait, MaxDeliver: -1})
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, o, "job")
	defer c.Close()
	taken := make(chan struct{})
	go func() { // takes three and dies
		defer close(taken)
		batch, err := consumer.Fetch(3, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			t.Error(err)
			return
		}
		for range batch.Messages() {
		}
	}()
	go func() {
		<-taken
		working(t, o, Worker{Parallel: 2, Handle: echo})
	}()
	askAll(t.Context(), t, c, 6, 6)
}

// A worker that takes long says that it lives, and keeps its task.
func TestSlowWorkerKeepsItsTask(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), ""), AckWait: 200 * time.Millisecond}
	var calls atomic.Int64
	working(t, o, Worker{Parallel: 4, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		calls.Add(1)
		time.Sleep(time.Second)
		return echo(ctx, ask, task)
	}})
	c := client(t, o, "job")
	defer c.Close()
	askAll(t.Context(), t, c, 1, 1)
	if n := calls.Load(); n != 1 {
		t.Errorf("the task was given out %d times", n)
	}
}

// What a coordinator had not written when it died, the next one gets without the work being done again.
func TestCoordinatorThatDies(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), "")}
	var calls atomic.Int64
	working(t, o, Worker{Parallel: 2, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		calls.Add(1)
		return echo(ctx, ask, task)
	}})
	first := client(t, o, "job")
	for i := range 5 {
		if _, _, err := first.Answer(t.Context(), task(i)); err != nil { // and never done()
			t.Fatal(err)
		}
	}
	first.Close()
	second := client(t, o, "job")
	defer second.Close()
	askAll(t.Context(), t, second, 8, 8)
	if n := calls.Load(); n != 8 {
		t.Errorf("%d calls for 8 pictures", n)
	}
	if err := second.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	empty(t, o)
}

// After the limit of deliveries a picture gets its row with the error, and a dead letter tells the story.
func TestDeadLetters(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), ""), Deliveries: 2}
	working(t, o, Worker{Parallel: 2, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		if task.ID == "picture 1" {
			return &row.Answer{Error: &row.ItemError{Kind: row.KindInternal, Message: "the native call failed"}}, nil
		}
		return echo(ctx, ask, task)
	}})
	c := client(t, o, "job")
	defer c.Close()
	a, done, err := c.Answer(t.Context(), task(1))
	if err != nil || a.Error == nil || a.Error.Kind != row.KindInternal {
		t.Fatalf("%+v, %v", a, err)
	}
	done()
	s, err := Read(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Dead != 1 || len(s.Letters) != 1 || s.Letters[0].ID != "picture 1" || s.Letters[0].Deliveries != 2 {
		t.Errorf("letters %+v", s)
	}
}

// A picture that kills whoever takes it must not kill workers for ever.
func TestPoison(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), ""), Deliveries: 2, AckWait: 100 * time.Millisecond}
	l, err := connect(t.Context(), o, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	consumer, err := l.js.CreateConsumer(t.Context(), WorkStream, jetstream.ConsumerConfig{Durable: "workers-hash", FilterSubject: workSubject + ".hash.>",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 100 * time.Millisecond, MaxDeliver: -1})
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, o, "job")
	defer c.Close()
	go func() {
		for range 2 { // two victims
			batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(5*time.Second))
			if err != nil {
				t.Error(err)
				return
			}
			for range batch.Messages() {
			}
		}
		working(t, o, Worker{Handle: func(context.Context, json.RawMessage, row.Task) (*row.Answer, error) {
			t.Error("the third worker was given the picture")
			return nil, errors.New("poisoned")
		}})
	}()
	a, _, err := c.Answer(t.Context(), task(1))
	if err != nil || a.Error == nil || a.Error.Kind != row.KindDead {
		t.Fatalf("%+v, %v", a, err)
	}
}

func TestAWorkerThatCannotGoOnSaysWhy(t *testing.T) {
	o := Options{InProcess: serve(t, t.TempDir(), "")}
	broken := errors.New("engine is closed")
	ended := make(chan error, 1)
	go func() {
		ended <- Work(context.Background(), o, Worker{Name: "broken", ModelHash: "hash", Handle: func(context.Context, json.RawMessage, row.Task) (*row.Answer, error) {
			return nil, broken
		}})
	}()
	c := client(t, o, "job")
	defer c.Close()
	go func() {
		if err := <-ended; !errors.Is(err, broken) {
			t.Errorf("the worker ended with %v", err)
		}
		working(t, o, Worker{Handle: echo})
	}()
	askAll(t.Context(), t, c, 1, 1) // the task went back
}

func TestOpenQueuesNeedAToken(t *testing.T) {
	if s, err := StartServer(ServerOptions{Dir: t.TempDir(), Listen: "0.0.0.0:0"}); err == nil {
		s.Close()
		t.Fatal("a queue for everybody was opened without a token")
	}
	s, err := StartServer(ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Read(t.Context(), Options{URL: s.URL()}); err == nil {
		t.Error("no token was taken")
	}
	if _, err := Read(t.Context(), Options{URL: s.URL(), Token: "secret"}); err != nil {
		t.Error(err)
	}
}

func TestSubjects(t *testing.T) {
	for in, want := range map[string]string{"": "none", "a.b c>*": "a_b_c__", "3ef2af9d": "3ef2af9d", "ü": "_"} {
		if got := subjectSafe(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
