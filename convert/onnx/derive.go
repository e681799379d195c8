// A graph made from another one by replacing some of its nodes: the same model in another lowering.

package onnx

import (
	"slices"
	"strings"
)

// Derive returns a graph with the ports of g and its nodes in their order, of which replace may take the place: it is called
// with the new graph and a node of g, and adds what computes the node's outputs, or returns false to have the node itself. Inside
// replace names are made in the scope that the node was made in.
//
// Nodes, values and weights that are not replaced are those of g, so both graphs name their weights alike and Shared
// stores them once. Weights that nothing in the new graph uses are left out.
func (g *Graph) Derive(name string, replace func(d *Graph, node *Node) bool) *Graph {
	d := NewGraph(name)
	d.Inputs, d.Outputs, d.Weights = g.Inputs, g.Outputs, slices.Clone(g.Weights)
	d.Functions = slices.Clone(g.Functions)
	for n := range g.taken {
		d.taken[n] = true
	}
	for k, v := range g.inline {
		d.inline[k] = v
	}
	for _, node := range g.Nodes {
		if scope := strings.Split(node.Name, "."); len(scope) > 1 {
			d.scope = scope[:len(scope)-1]
		} else {
			d.scope = nil
		}
		if !replace(d, node) {
			d.Nodes = append(d.Nodes, node)
		}
	}
	d.scope = nil
	used := map[*Value]bool{}
	for _, node := range d.Nodes {
		for _, in := range node.Inputs {
			used[in] = true
		}
	}
	d.Functions = slices.DeleteFunc(d.Functions, func(f *Function) bool { return !d.calls(f) })
	d.Weights = slices.DeleteFunc(d.Weights, func(w *Weight) bool { return !used[w.Value] })
	return d
}

func (g *Graph) calls(f *Function) bool {
	return slices.ContainsFunc(g.Nodes, func(n *Node) bool { return n.Domain == f.Domain && n.Op == f.Body.Name })
}

// Become makes a value of the new graph take the name of a value of the old one, whose node it replaces.
func (g *Graph) Become(made, old *Value) {
	for _, node := range g.Nodes {
		for i, out := range node.Outputs {
			if out == made {
				node.Outputs[i] = old
			}
		}
	}
}
