// Object stores as inputs and outputs of caption.

package main

import (
	"glimpse/batch"
	"glimpse/batch/source"
	"glimpse/batch/store"
)

// openStore lets inputs, and the output, be addresses of object stores. Buckets are opened when they are needed, so that it
// costs nothing where there are none. The caller closes it.
func (o *CaptionOptions) openStore(b *batch.Options) (*store.Store, error) {
	s := store.New()
	b.Source.Store = s
	scheme, remote := source.Scheme(o.Out)
	switch {
	case !remote && o.State != "":
		return nil, badInputf("--state is for an output in an object store; %s keeps its own", o.Out)
	case !remote:
		return s, nil
	case !s.Handles(scheme):
		return nil, badInputf("output %s: no object store is set up for %s://", o.Out, scheme)
	case o.State == "":
		return nil, badInputf("output %s: name a local folder with --state, which holds the journal and must be there when the run is continued", o.Out)
	}
	b.Sink.Out, b.Sink.Upload = o.State, s.Upload(o.Out)
	return s, nil
}
