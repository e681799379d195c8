package graphs

import (
	"fmt"
	"strings"
)

// Port is one input or output of a graph.
type Port struct {
	Name    string
	DType   DType
	Shape   []int64  // -1 where any size is accepted
	Symbols []string // the name of each free dimension; "" where it has none
}

// String writes the port as name dtype[dims], free dimensions by their names.
func (p Port) String() string {
	dims := make([]string, len(p.Shape))
	for i, d := range p.Shape {
		switch {
		case d >= 0:
			dims[i] = fmt.Sprint(d)
		case p.Symbols[i] != "":
			dims[i] = p.Symbols[i]
		default:
			dims[i] = "?"
		}
	}
	return fmt.Sprintf("%s %v[%s]", p.Name, p.DType, strings.Join(dims, ", "))
}

// portNames lists names for an error message.
func portNames(ports []Port) string {
	names := make([]string, len(ports))
	for i, p := range ports {
		names[i] = p.Name
	}
	const most = 12
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
