// Pictures between a coordinator and a worker in one process.

package queue

import (
	"sync"

	"glimpse/batch/row"
)

// Handover holds the tasks that a coordinator waits for, so that a worker in the same process takes pictures from there and
// not from the server. Its memory is the coordinator's: what it holds is what the coordinator has in hand anyway.
type Handover struct {
	mu    sync.Mutex
	tasks map[string]row.Task
}

// NewHandover is for one coordinator and one worker.
func NewHandover() *Handover { return &Handover{tasks: map[string]row.Task{}} }

func (h *Handover) put(job, key string, t row.Task) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tasks[job+"."+key] = t
}

func (h *Handover) get(job, key string) (row.Task, bool) {
	if h == nil {
		return row.Task{}, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.tasks[job+"."+key]
	return t, ok
}

func (h *Handover) drop(job, key string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tasks, job+"."+key)
}
