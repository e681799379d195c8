// How long a job takes on a number of workers: the model of docs/scale.md. A simulation holds it to what happens.

package queue

import "math"

// Load is a job and what it runs on. Rates are per second, times in seconds, sizes in bytes.
type Load struct {
	Pictures float64 // in the job
	Workers  float64 // machines
	Rate     float64 // pictures that one worker finishes; measured with `glimpse caption` on one machine
	Parallel float64 // pictures that one worker has in hand

	Window  float64 // pictures between the oldest without a row and the newest published; 8 × --parallel of the coordinator
	AckWait float64 // after which a silent worker's tasks are given away
	Deaths  float64 // of one worker
	Restart float64 // until a dead worker is back, loading its model included

	ServerRate  float64 // tasks that the server takes through publish, delivery, result and acknowledgements
	TaskBytes   float64
	ResultBytes float64
	Picture     float64 // bytes of a picture that travels through the queue; 0: by reference
	Link        float64 // bytes that the server's network takes, each way; 0: no bound
}

// Estimate is what a Load comes to.
type Estimate struct {
	Rate       float64 // pictures a second
	Seconds    float64
	QueueBytes float64 // on the server at once, at most
	Bottleneck string  // "workers", "window", "server" or "network"
}

// slowest is how much longer than the mean the slowest picture of a window takes: --max-tokens over the mean length.
const slowest = 4

// Estimate computes how long a job takes.
func (l Load) Estimate() Estimate {
	// Workers are there for part of the time; a death also loses half of what was in hand, which is done again.
	up := 1 / (1 + l.Deaths*l.Restart)
	lost := l.Deaths * l.Parallel / 2 // pictures a second and worker
	e := Estimate{Rate: max(0, l.Workers*(l.Rate*up-lost)), Bottleneck: "workers"}
	limit := func(rate float64, what string) {
		if rate < e.Rate {
			e.Rate, e.Bottleneck = rate, what
		}
	}
	// Rows are in order, so that a window has passed when the slowest picture in it has.
	service := l.Parallel / l.Rate
	limit(l.Window/(slowest*service), "window")
	// A picture whose worker died comes back after AckWait (a sixth less in the mean: the worker spoke a while before). The
	// rest of the window goes on meanwhile, and then waits; deaths of workers that wait cost nothing.
	if deaths := l.Workers * l.Deaths; deaths > 0 && e.Rate > 0 {
		drain := l.Window / e.Rate
		if stall := l.AckWait*5/6 + service - drain; stall > 0 {
			limit(e.Rate*(1/deaths+drain)/(1/deaths+drain+stall), "window")
		}
	}
	limit(l.ServerRate, "server")
	if l.Link > 0 {
		limit(l.Link/(l.TaskBytes+l.ResultBytes+l.Picture), "network")
	}
	// The end is not shared: the last pictures take their time, and perhaps that of a worker that dies with one of them.
	e.Seconds = l.Pictures/e.Rate + slowest*service/2 + (1-math.Exp(-l.Workers*l.Deaths*l.AckWait))*(l.AckWait+service)
	e.QueueBytes = l.Window * (l.TaskBytes + l.ResultBytes + l.Picture)
	return e
}
