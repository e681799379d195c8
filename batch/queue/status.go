// What is on a queue, for people.

package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// Status is what a queue holds.
type Status struct {
	Waiting  uint64        `json:"waiting"`   // tasks, those that workers have in hand included
	InFlight int           `json:"in_flight"` // tasks that workers have in hand
	Again    int           `json:"again"`     // of these, delivered more than once
	Results  uint64        `json:"results"`   // answers whose row is not durable yet
	Dead     uint64        `json:"dead"`      // letters of the last 30 days
	Bytes    uint64        `json:"bytes"`     // of all streams, pictures included
	Jobs     []JobState    `json:"jobs"`
	Workers  []WorkerState `json:"workers"`
	Letters  []DeadLetter  `json:"letters"` // the newest, at most MaxLetters
}

// DeadLetter is a task that was given up.
type DeadLetter struct {
	Job        string `json:"job"`
	ID         string `json:"id"`
	Deliveries uint64 `json:"deliveries"`
	Kind       string `json:"kind"`
	Message    string `json:"message"`
}

// MaxLetters bounds Status.Letters.
const MaxLetters = 20

// Read asks a queue for its status.
func Read(ctx context.Context, o Options) (*Status, error) {
	l, err := connect(ctx, o, "glimpse status")
	if err != nil {
		return nil, err
	}
	defer l.close()
	var s *Status
	err = l.setUp(ctx, "read the queue", nil, func(ctx context.Context) (err error) { s, err = readAll(ctx, l); return err })
	return s, err
}

func readAll(ctx context.Context, l *link) (*Status, error) {
	s := &Status{}
	for name, count := range map[string]*uint64{WorkStream: &s.Waiting, ResultStream: &s.Results, DeadStream: &s.Dead, "OBJ_" + objectBucket: nil} {
		stream, err := l.js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		state := stream.CachedInfo().State
		s.Bytes += state.Bytes
		if count != nil {
			*count = state.Msgs
		}
		if name == WorkStream {
			consumers := stream.ListConsumers(ctx)
			for info := range consumers.Info() {
				s.InFlight += info.NumAckPending
				s.Again += info.NumRedelivered
			}
			if err := consumers.Err(); err != nil {
				return nil, fmt.Errorf("stream %s: %w", name, err)
			}
		}
		if name == DeadStream {
			if err := s.readLetters(ctx, stream, state); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if s.Jobs, err = values[JobState](ctx, l, jobBucket); err != nil {
		return nil, err
	}
	if s.Workers, err = values[WorkerState](ctx, l, workerBucket); err != nil {
		return nil, err
	}
	slices.SortFunc(s.Jobs, func(a, b JobState) int { return b.Started.Compare(a.Started) })
	slices.SortFunc(s.Workers, func(a, b WorkerState) int { return cmp.Compare(a.Name, b.Name) })
	return s, nil
}

func (s *Status) readLetters(ctx context.Context, stream jetstream.Stream, state jetstream.StreamState) error {
	for seq := state.LastSeq; seq >= max(1, state.FirstSeq) && len(s.Letters) < MaxLetters && state.Msgs > 0; seq-- {
		raw, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read dead letters: %w", err)
		}
		var d dead
		if json.Unmarshal(raw.Data, &d) != nil || d.Error == nil {
			continue
		}
		s.Letters = append(s.Letters, DeadLetter{d.Task.Job, d.Task.ID, d.Deliveries, d.Error.Kind, d.Error.Message})
	}
	return nil
}

// values reads a bucket.
func values[T any](ctx context.Context, l *link, bucket string) ([]T, error) {
	kv, err := l.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	keys, err := kv.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	var list []T
	for key := range keys.Keys() {
		entry, err := kv.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bucket %s: %w", bucket, err)
		}
		var v T
		if json.Unmarshal(entry.Value(), &v) == nil {
			list = append(list, v)
		}
	}
	return list, nil
}

// ForgetJob removes what an abandoned job left on a queue: its tasks, results and pictures.
func ForgetJob(ctx context.Context, o Options, job string) error {
	l, err := connect(ctx, o, "glimpse forget")
	if err != nil {
		return err
	}
	defer l.close()
	if err := forget(ctx, l, job); err != nil {
		return err
	}
	kv, err := l.js.KeyValue(ctx, jobBucket)
	if err == nil {
		err = kv.Delete(ctx, subjectSafe(job))
	}
	return err
}
