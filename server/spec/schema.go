// Package spec makes Go types the one description of a JSON request: struct tags say what is required, which values are
// allowed and what is known but not supported, and from them requests are decoded strictly and the OpenAPI schema is
// written. What the document says and what the decoder does can therefore not drift apart.
//
// Tags of a field, beside `json:"name"`:
//
//	required:"true"      must be there and not null
//	range:"0..2"         bounds of a number, both inclusive
//	items:"1..4"         bounds on the elements of an array
//	maxlen:"64"          bound on the bytes of a string
//	enum:"a|b"           the allowed values of a string
//	accept:"null|0|[]"   of a Refused field: the JSON values that ask for nothing and so pass
//	doc:"…"              one sentence for the OpenAPI document
//
// Fields of embedded structs are fields of the object. Field types: string, bool, int64, float64, structs, slices, map[string]float64, TextOr, JSON, Refused, and pointers to these. JSON null leaves a
// field as it was, which is why fields whose zero value means something are pointers.
package spec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Refused is the type of a field that is known and not supported. It is an error unless its value is one of those its
// accept tag lists, so that a client's neutral defaults pass and nothing is silently ignored.
type Refused struct{}

// JSON is the type of a field that is a JSON object whose inside is not the server's business, a JSON schema for one. It is
// kept as it was sent.
type JSON json.RawMessage

// TextOr is a value that is either a string or a T (a slice or a struct).
type TextOr[T any] struct {
	IsText bool
	Text   string // when IsText
	Value  T      // otherwise
}

func (t *TextOr[T]) setText(s string) { t.IsText, t.Text = true, s }

func (t *TextOr[T]) alternative() reflect.Value { return reflect.ValueOf(&t.Value).Elem() }

type alternatives interface {
	setText(string)
	alternative() reflect.Value
}

type kind uint8

const (
	kindObject kind = iota
	kindArray
	kindString
	kindInteger
	kindNumber
	kindBoolean
	kindTextOr
	kindRefused
	kindNumbers // an object of numbers
	kindJSON
)

var kindNames = [...]string{"an object", "an array", "a string", "an integer", "a number", "a boolean", "a string or ", "unsupported", "an object of numbers", "an object"}

// Schema describes one JSON object; make it with Of.
type Schema struct {
	name string
	root *node
}

type node struct {
	kind   kind
	fields []field // kindObject, in the order of the Go struct
	elem   *node   // of kindArray; the alternative of kindTextOr
}

type field struct {
	name     string
	doc      string
	index    []int // of the Go field, through embedded structs
	required bool
	node     *node

	bounded   bool // low, high apply
	low, high float64
	counted   bool // least, most apply
	least     int
	most      int
	maxLen    int // 0: unbounded
	enum      []string
	accept    []any
}

// Of describes T, a struct. It panics on a type or tag it does not understand: both are written in this program.
func Of[T any]() *Schema {
	t := reflect.TypeFor[T]()
	s := &Schema{name: t.Name(), root: describe(t)}
	if s.root.kind != kindObject {
		panic("spec: " + t.String() + " is not a struct")
	}
	return s
}

func describe(t reflect.Type) *node {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[Refused]() {
		return &node{kind: kindRefused}
	}
	if t == reflect.TypeFor[JSON]() {
		return &node{kind: kindJSON}
	}
	if t == reflect.TypeFor[map[string]float64]() {
		return &node{kind: kindNumbers}
	}
	if alt, ok := reflect.New(t).Interface().(alternatives); ok {
		elem := describe(alt.alternative().Type())
		if elem.kind != kindArray && elem.kind != kindObject {
			panic("spec: the alternative of " + t.String() + " is neither a slice nor a struct")
		}
		return &node{kind: kindTextOr, elem: elem}
	}
	switch t.Kind() {
	case reflect.String:
		return &node{kind: kindString}
	case reflect.Bool:
		return &node{kind: kindBoolean}
	case reflect.Int64:
		return &node{kind: kindInteger}
	case reflect.Float64:
		return &node{kind: kindNumber}
	case reflect.Slice:
		return &node{kind: kindArray, elem: describe(t.Elem())}
	case reflect.Struct:
		n := &node{kind: kindObject}
		for _, sf := range reflect.VisibleFields(t) {
			if !sf.Anonymous { // the fields of an embedded struct are the object's own
				n.fields = append(n.fields, describeField(t, sf))
			}
		}
		return n
	}
	panic("spec: no JSON form for " + t.String())
}

func describeField(t reflect.Type, sf reflect.StructField) field {
	name := sf.Tag.Get("json")
	if name == "" || strings.Contains(name, ",") {
		panic(fmt.Sprintf("spec: %s.%s needs a json tag with a name and nothing else", t, sf.Name))
	}
	f := field{name: name, doc: sf.Tag.Get("doc"), index: sf.Index, required: sf.Tag.Get("required") == "true", node: describe(sf.Type)}
	if tag := sf.Tag.Get("range"); tag != "" {
		f.bounded = true
		f.low, f.high = parseBounds(tag)
	}
	if tag := sf.Tag.Get("items"); tag != "" {
		f.counted = true
		low, high := parseBounds(tag)
		f.least, f.most = int(low), int(high)
	}
	if tag := sf.Tag.Get("maxlen"); tag != "" {
		_, high := parseBounds("0.." + tag)
		f.maxLen = int(high)
	}
	if tag := sf.Tag.Get("enum"); tag != "" {
		f.enum = strings.Split(tag, "|")
	}
	if tag := sf.Tag.Get("accept"); tag != "" {
		for _, text := range strings.Split(tag, "|") {
			var v any
			if err := json.Unmarshal([]byte(text), &v); err != nil {
				panic(fmt.Sprintf("spec: accept value %q of %s.%s: %v", text, t, sf.Name, err))
			}
			f.accept = append(f.accept, v)
		}
	}
	return f
}

func parseBounds(tag string) (low, high float64) {
	a, b, ok := strings.Cut(tag, "..")
	low, errLow := strconv.ParseFloat(a, 64)
	high, errHigh := strconv.ParseFloat(b, 64)
	if !ok || errLow != nil || errHigh != nil {
		panic("spec: bad bounds " + tag)
	}
	return low, high
}

// Fields lists the names that a request may hold, nested ones as "messages[].content[].type", in the order of the Go
// types; a refused one has Refused set.
func (s *Schema) Fields() []FieldName {
	var names []FieldName
	collectFields(s.root, "", &names)
	return names
}

// FieldName is one entry of Fields.
type FieldName struct {
	Name    string
	Refused bool
}

func collectFields(n *node, prefix string, names *[]FieldName) {
	switch n.kind {
	case kindArray:
		collectFields(n.elem, prefix+"[]", names)
	case kindTextOr:
		collectFields(n.elem, prefix, names)
	case kindObject:
		if prefix != "" {
			prefix += "."
		}
		for _, f := range n.fields {
			*names = append(*names, FieldName{Name: prefix + f.name, Refused: f.node.kind == kindRefused})
			collectFields(f.node, prefix+f.name, names)
		}
	}
}
