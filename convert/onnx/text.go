// The text form of a graph, for snapshots in tests and for people, and the structural check before writing.

package onnx

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// WriteText prints the graph: ports, weights with what they are made of, and a line a node.
func (g *Graph) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "graph %s\n", g.Name)
	for _, p := range g.Inputs {
		fmt.Fprintf(&b, "input  %s %s%v\n", p.Value.name, p.DType, p.Shape)
	}
	for _, p := range g.Outputs {
		fmt.Fprintf(&b, "output %s %s%v\n", p.Value.name, p.DType, p.Shape)
	}
	for _, wt := range g.Weights {
		origin := "inline"
		if wt.payload != nil {
			origin = fmt.Sprintf("%s #%d", wt.payload, wt.output)
		} else if len(wt.inline) <= 64 {
			origin = fmt.Sprintf("inline %x", wt.inline)
		}
		fmt.Fprintf(&b, "weight %s %s%v = %s\n", wt.Value.name, wt.DType, wt.Shape, origin)
	}
	for _, n := range g.Nodes {
		b.WriteString(n.text() + "\n")
	}
	for _, f := range g.Functions {
		fmt.Fprintf(&b, "function %s.%s(", f.Domain, f.Body.Name)
		for i, p := range f.Body.Inputs {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(p.Value.name)
		}
		b.WriteString(")\n")
		for _, n := range f.Body.Nodes {
			b.WriteString("  " + n.text() + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (n *Node) text() string {
	op := n.Op
	if n.Domain != "" {
		op = n.Domain + "." + op
	}
	line := fmt.Sprintf("%s = %s(%s)", names(n.Outputs), op, names(n.Inputs))
	if len(n.Attrs) > 0 {
		attrs := make([]string, len(n.Attrs))
		for i, a := range n.Attrs {
			attrs[i] = a.text()
		}
		line += " {" + strings.Join(attrs, ", ") + "}"
	}
	return line
}

func names(vs []*Value) string {
	s := make([]string, len(vs))
	for i, v := range vs {
		if s[i] = v.name; s[i] == "" {
			s[i] = "_"
		}
	}
	return strings.Join(s, ", ")
}

// check finds edges that nothing feeds and names that two things have; both are mistakes of the code that built the
// graph, found here rather than in ONNX Runtime's loader because here the node's scope is known.
func (g *Graph) check() error {
	var list []error
	known := map[string]bool{"": true}
	define := func(what string, v *Value) {
		if v.name != "" && known[v.name] {
			list = append(list, fmt.Errorf("%s %s: the name is used twice", what, v.name))
		}
		known[v.name] = true
	}
	for _, p := range g.Inputs {
		define("input", p.Value)
	}
	for _, w := range g.Weights {
		define("weight", w.Value)
		if w.payload == nil && int64(len(w.inline)) != w.Bytes() {
			list = append(list, fmt.Errorf("weight %s: %d inline bytes where %d are due", w.Value.name, len(w.inline), w.Bytes()))
		}
	}
	for _, n := range g.Nodes {
		for _, in := range n.Inputs {
			if !known[in.name] {
				list = append(list, fmt.Errorf("node %s: nothing before it makes its input %s", n.Name, in.name))
			}
		}
		for _, o := range n.Outputs {
			define("output of "+n.Name, o)
		}
	}
	for _, p := range g.Outputs {
		if !known[p.Value.name] {
			list = append(list, fmt.Errorf("output %s: nothing makes it", p.Value.name))
		}
	}
	return errors.Join(list...)
}
