package queue

import (
	"container/heap"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"glimpse/batch/row"
)

// event is something that happens in the simulation.
type event struct {
	at     float64
	worker int
	epoch  int // of the worker; events of an earlier life are void
	task   int
	kind   int
}

const (
	finished  = iota // a worker has a result
	died             // a worker dies with what it has in hand
	back             // a worker is there again
	redeliver        // a task whose worker is silent
)

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// simulate runs the queue's rules with workers that only take time: a work queue with redelivery, rows in order, a window
// between the oldest open picture and the newest published. It returns the seconds that the job took.
func simulate(l Load, seed uint64) (seconds float64, redelivered int) {
	random := rand.New(rand.NewPCG(seed, 3))
	var (
		future            = &events{}
		epochs            = make([]int, int(l.Workers))
		inHand            = make([]map[int]bool, int(l.Workers))
		free              []int // places of workers
		waiting           []int // published tasks
		done              = map[int]bool{}
		published, oldest int // tasks published; the first without a row
		now               float64
		total             = int(l.Pictures)
	)
	service := func() float64 { // log-normal with a coefficient of variation of a half, as captions' lengths have
		sigma := math.Sqrt(math.Log(1.25))
		return l.Parallel / l.Rate * math.Exp(sigma*random.NormFloat64()-sigma*sigma/2)
	}
	join := func(w int) {
		inHand[w] = map[int]bool{}
		for range int(l.Parallel) {
			free = append(free, w)
		}
		if l.Deaths > 0 {
			heap.Push(future, event{at: now + random.ExpFloat64()/l.Deaths, worker: w, epoch: epochs[w], kind: died})
		}
	}
	for w := range epochs {
		join(w)
	}
	for {
		for published < total && float64(published-oldest) < l.Window {
			waiting = append(waiting, published)
			published++
		}
		for len(waiting) > 0 && len(free) > 0 {
			at := random.IntN(len(free)) // any worker may be the next to ask
			w := free[at]
			free[at] = free[len(free)-1]
			free = free[:len(free)-1]
			task := waiting[0]
			waiting = waiting[1:]
			if done[task] || task < oldest {
				free = append(free, w)
				continue
			}
			inHand[w][task] = true
			heap.Push(future, event{at: now + service(), worker: w, epoch: epochs[w], task: task, kind: finished})
		}
		if oldest == total {
			return now, redelivered
		}
		e := heap.Pop(future).(event)
		now = e.at
		if e.kind != redeliver && e.epoch != epochs[e.worker] {
			continue
		}
		switch e.kind {
		case finished:
			delete(inHand[e.worker], e.task)
			free = append(free, e.worker)
			done[e.task] = true
			for done[oldest] {
				delete(done, oldest)
				oldest++
			}
		case died:
			epochs[e.worker]++
			for task := range inHand[e.worker] {
				// The worker last said that it lives up to a third of the wait ago.
				heap.Push(future, event{at: now + l.AckWait*(1-random.Float64()/3), task: task, kind: redeliver})
			}
			kept := free[:0]
			for _, w := range free {
				if w != e.worker {
					kept = append(kept, w)
				}
			}
			free = kept
			heap.Push(future, event{at: now + l.Restart, worker: e.worker, epoch: epochs[e.worker], kind: back})
		case back:
			join(e.worker)
		case redeliver:
			waiting = append([]int{e.task}, waiting...)
			redelivered++
		}
	}
}

// The model of docs/scale.md against 1,000 workers' timing.
func TestCapacityModelAgainstSimulation(t *testing.T) {
	base := Load{Pictures: 300_000, Workers: 1000, Rate: 2, Parallel: 4, Window: 100_000, AckWait: 30, Restart: 60, ServerRate: 1e9}
	for _, tc := range []struct {
		name       string
		change     func(*Load)
		bottleneck string
		within     float64
	}{
		{"nothing goes wrong", func(*Load) {}, "workers", 0.05},
		{"every worker dies once an hour", func(l *Load) { l.Deaths = 1.0 / 3600 }, "workers", 0.06},
		{"every worker dies every ten minutes", func(l *Load) { l.Deaths = 1.0 / 600 }, "workers", 0.08},
		{"a window that is too small", func(l *Load) { l.Window = 2000 }, "window", 0.15},
		{"a small window and deaths", func(l *Load) { l.Window, l.Deaths, l.Pictures = 20_000, 1.0/36000, 1_500_000 }, "window", 0.15},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := base
			tc.change(&l)
			e := l.Estimate()
			seconds, again := simulate(l, 7)
			t.Logf("model %.0f s (%s), simulation %.0f s, %d tasks redelivered", e.Seconds, e.Bottleneck, seconds, again)
			if e.Bottleneck != tc.bottleneck {
				t.Errorf("bottleneck %s, want %s", e.Bottleneck, tc.bottleneck)
			}
			if off := math.Abs(e.Seconds/seconds - 1); off > tc.within {
				t.Errorf("model and simulation are %.0f%% apart, %.0f%% allowed", 100*off, 100*tc.within)
			}
		})
	}
}

// The tables of docs/scale.md come from here.
func TestCapacityTable(t *testing.T) {
	for _, rate := range []float64{10, measuredRate} {
		for _, pictures := range []float64{1e6, 1e8, 1e10} {
			for _, workers := range []float64{1, 10, 100, 1000, 10000} {
				l := Load{Pictures: pictures, Workers: workers, Rate: rate, Parallel: 16, Window: 8 * 4 * 16 * workers, AckWait: 30, Deaths: 1.0 / 86400,
					Restart: 60, ServerRate: 20_000, TaskBytes: 600, ResultBytes: 600}
				e := l.Estimate()
				t.Logf("%4.1f a second, %.0e pictures, %5.0f workers: %8.1f h, %s, %.1f MB on the queue", rate, pictures, workers, e.Seconds/3600, e.Bottleneck, e.QueueBytes/1e6)
				if e.Seconds <= 0 || math.IsNaN(e.Seconds) {
					t.Errorf("%+v", e)
				}
			}
		}
	}
}

// measuredRate is what the demonstration's LLaVA took on a developer's machine with two cores: docs/scale.md.
const measuredRate = 41

// A real server with many workers that only sleep: all of them get work, and the queue itself costs little.
// GLIMPSE_QUEUE_WORKERS=1000 is the whole size (make test-queue).
func TestManyWorkers(t *testing.T) {
	workers, nap := 50, 200*time.Millisecond
	if s := os.Getenv("GLIMPSE_QUEUE_WORKERS"); s != "" {
		if _, err := fmt.Sscan(s, &workers); err != nil {
			t.Fatal(err)
		}
		nap = time.Duration(workers) * 10 * time.Millisecond // 100 tasks a second for all together
	}
	o := Options{InProcess: serve(t, t.TempDir(), "")}
	working(t, o, Worker{Name: "many", Parallel: workers, Handle: func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error) {
		select {
		case <-time.After(nap):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return echo(ctx, ask, task)
	}})
	c := client(t, o, "job")
	defer c.Close()
	start := time.Now()
	n := 4 * workers
	askAll(t.Context(), t, c, n, 2*workers)
	took, ideal := time.Since(start), 4*nap
	t.Logf("%d workers, %d tasks of %v: %v, %.0f tasks/s; without a queue it would be %v", workers, n, nap, took.Round(time.Millisecond), float64(n)/took.Seconds(), ideal)
	if took > 3*ideal+5*time.Second {
		t.Errorf("%v for what %d sleeping workers do in %v", took, workers, ideal)
	}
}

// How many tasks one server takes through, with pictures in its object store and by reference. It is a measurement.
func BenchmarkTasks(b *testing.B) {
	for _, way := range []string{"through the queue", "by reference", "in one process"} {
		b.Run(way, func(b *testing.B) {
			s, err := StartServer(ServerOptions{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			o := Options{InProcess: s}
			if way == "in one process" {
				o.Private, o.Handover = true, NewHandover()
			}
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() {
				ended <- Work(ctx, o, Worker{ModelHash: "hash", Parallel: 64, Handle: echo})
			}()
			c, err := NewClient(ctx, o, Job{ID: "job", ModelHash: "hash", Ask: json.RawMessage(`"ask"`)})
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 100<<10)
			b.SetParallelism(64)
			var next = make(chan int, 1)
			next <- 0
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := <-next
					next <- i + 1
					t := task(i)
					if t.Data = data; way == "by reference" {
						t.Ref = "s3://bucket/key"
					}
					_, done, err := c.Answer(ctx, t)
					if err != nil {
						b.Error(err)
						return
					}
					done()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
			c.Close()
			cancel()
			<-ended
		})
	}
}
