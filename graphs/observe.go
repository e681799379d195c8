package graphs

import "strings"

// StatisticsPrefix starts the names of outputs that say something about a run
// and are no part of its result: `glimpse convert --calibrate` makes such graphs.
// Where the Runtime has an observer these outputs are not among a session's
// Outputs; every step fetches them into tensors of its own. Their shapes are fixed.
const StatisticsPrefix = "statistics."

// Observation is one finished run as an observer sees it. The tensors are valid
// until the observer returns; it must not change them.
type Observation struct {
	Path    string // of the graph
	Inputs  []NamedTensor
	Outputs []NamedTensor // with those of StatisticsPrefix, which come last
}

// NamedTensor is a tensor at a port.
type NamedTensor struct {
	Name   string
	Tensor *Tensor
}

// Input returns the tensor of the named input, nil when there is none.
func (o *Observation) Input(name string) *Tensor { return named(o.Inputs, name) }

func named(list []NamedTensor, name string) *Tensor {
	for _, n := range list {
		if n.Name == name {
			return n.Tensor
		}
	}
	return nil
}

// Updated reports whether the input's tensor is an output too: a cache that the
// run extends in place.
func (o *Observation) Updated(input *Tensor) bool {
	for _, n := range o.Outputs {
		if n.Tensor == input {
			return true
		}
	}
	return false
}

// splitStatistics moves the outputs that are only observed into a list of their own.
func splitStatistics(ports []Port) (outputs, statistics []Port) {
	for _, p := range ports {
		if strings.HasPrefix(p.Name, StatisticsPrefix) {
			statistics = append(statistics, p)
		} else {
			outputs = append(outputs, p)
		}
	}
	return outputs, statistics
}

// watch adds the session's observed outputs, with tensors, behind the step's own.
func (st *Step) watch(r *Runtime, statistics []Port) error {
	for i, port := range statistics {
		t, err := r.NewTensor(port.DType, port.Shape...)
		if err != nil {
			return err
		}
		st.outputs[len(st.outputs)-len(statistics)+i] = t
	}
	return nil
}

// unwatch closes what watch made.
func (st *Step) unwatch() error {
	var err error
	for _, t := range st.outputs[st.visible:] {
		if closed := t.Close(); err == nil {
			err = closed
		}
	}
	return err
}

// report hands a finished run to the observer.
func (st *Step) report() {
	o := Observation{Path: st.session.path}
	for i, p := range st.inputPorts {
		o.Inputs = append(o.Inputs, NamedTensor{p.Name, st.inputs[i]})
	}
	for i, p := range st.outputPorts {
		o.Outputs = append(o.Outputs, NamedTensor{p.Name, st.outputs[i]})
	}
	st.session.runtime.observe(&o)
}
