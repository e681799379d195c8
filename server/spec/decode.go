// Strict decoding: one pass over the tokens, unknown names, duplicates and values out of bounds reported by path.

package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxProblems bounds the problems of one error: a hostile request may have millions.
const maxProblems = 8

// maxRefusedBytes is the longest value that a Refused field is compared with: all accepted ones are short.
const maxRefusedBytes = 64

// Codes of a Problem.
const (
	CodeSyntax      = "invalid_json"
	CodeUnknown     = "unknown_parameter"
	CodeMissing     = "missing_required_parameter"
	CodeType        = "invalid_type"
	CodeValue       = "invalid_value"
	CodeUnsupported = "unsupported_parameter"
)

// Problem is one thing that is wrong with a request.
type Problem struct {
	Param   string // path, as in messages[0].content[1].type; empty for the whole body
	Code    string
	Message string // names the parameter too
}

// Error is what is wrong with a request, at least one problem.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	parts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		parts[i] = p.Message
	}
	return strings.Join(parts, "; ")
}

// errStop ends a walk whose problems are already recorded.
var errStop = errors.New("stop")

// Decode reads one JSON object into out, a pointer to the struct that the schema was made of. The error is an *Error.
func (s *Schema) Decode(raw []byte, out any) error {
	d := &decoder{dec: json.NewDecoder(bytes.NewReader(raw))}
	d.dec.UseNumber()
	switch {
	case len(bytes.TrimSpace(raw)) == 0:
		d.add("", CodeSyntax, "the request body is empty")
	case !utf8.Valid(raw):
		d.add("", CodeSyntax, "the request body is not UTF-8")
	default:
		err := d.value(s.root, field{}, reflect.ValueOf(out).Elem(), "")
		if err == nil {
			if _, err := d.dec.Token(); !errors.Is(err, io.EOF) {
				d.add("", CodeSyntax, "the request body goes on after its JSON object")
			}
		} else if !errors.Is(err, errStop) {
			d.syntax(err)
		}
	}
	if len(d.problems) > 0 {
		return &Error{Problems: d.problems}
	}
	return nil
}

type decoder struct {
	dec      *json.Decoder
	problems []Problem
}

func (d *decoder) add(param, code, format string, args ...any) {
	d.problems = append(d.problems, Problem{Param: param, Code: code, Message: fmt.Sprintf(format, args...)})
}

// addOrStop records a problem after which decoding can go on, unless there are enough.
func (d *decoder) addOrStop(param, code, format string, args ...any) error {
	d.add(param, code, format, args...)
	if len(d.problems) >= maxProblems {
		return errStop
	}
	return nil
}

func (d *decoder) syntax(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		d.add("", CodeSyntax, "the request body is not JSON: it ends in the middle")
		return
	}
	d.add("", CodeSyntax, "the request body is not JSON: %v (byte %d)", err, d.dec.InputOffset())
}

// value decodes the next JSON value into v by n; f holds the bounds of the field it belongs to.
func (d *decoder) value(n *node, f field, v reflect.Value, path string) error {
	switch n.kind {
	case kindRefused:
		return d.refused(f, path)
	case kindJSON:
		return d.json(f, v, path)
	}
	token, err := d.dec.Token()
	if err != nil {
		return err
	}
	if token == nil {
		if path == "" || strings.HasSuffix(path, "]") {
			return d.mismatch(n, "null", path)
		}
		if f.required {
			return d.addOrStop(path, CodeMissing, "%s must not be null", path)
		}
		return nil
	}
	return d.tokenValue(n, f, v, path, token)
}

func (d *decoder) tokenValue(n *node, f field, v reflect.Value, path string, token json.Token) error {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch n.kind {
	case kindTextOr:
		alt := v.Addr().Interface().(alternatives)
		if text, ok := token.(string); ok {
			alt.setText(text)
			return d.checkText(f, text, path)
		}
		if token != n.elem.opening() {
			return d.mismatch(n, describeToken(token), path)
		}
		return d.tokenValue(n.elem, f, alt.alternative(), path, token)
	case kindObject:
		if token == json.Delim('{') {
			return d.object(n, v, path)
		}
	case kindArray:
		if token == json.Delim('[') {
			return d.array(n, f, v, path)
		}
	case kindString:
		if text, ok := token.(string); ok {
			v.SetString(text)
			return d.checkText(f, text, path)
		}
	case kindBoolean:
		if b, ok := token.(bool); ok {
			v.SetBool(b)
			return nil
		}
	case kindNumbers:
		if token == json.Delim('{') {
			return d.numbers(f, v, path)
		}
	case kindInteger, kindNumber:
		if number, ok := token.(json.Number); ok {
			return d.number(n, f, v, path, number)
		}
	}
	return d.mismatch(n, describeToken(token), path)
}

func (d *decoder) object(n *node, v reflect.Value, path string) error {
	seen := make([]bool, len(n.fields))
	for d.dec.More() {
		token, err := d.dec.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("a name was expected, not %v", token)
		}
		at := join(path, clip(name))
		i := n.find(name)
		if i < 0 {
			if err := d.addOrStop(at, CodeUnknown, "unknown parameter %s", at); err != nil {
				return err
			}
			var skipped json.RawMessage
			if err := d.dec.Decode(&skipped); err != nil {
				return err
			}
			continue
		}
		if seen[i] {
			d.add(at, CodeSyntax, "%s is there twice", at)
			return errStop
		}
		seen[i] = true
		if err := d.value(n.fields[i].node, n.fields[i], v.FieldByIndex(n.fields[i].index), at); err != nil {
			return err
		}
	}
	if _, err := d.dec.Token(); err != nil {
		return err
	}
	for i, f := range n.fields {
		if f.required && !seen[i] {
			at := join(path, f.name)
			if err := d.addOrStop(at, CodeMissing, "%s is required", at); err != nil {
				return err
			}
		}
	}
	return nil
}

// opening is the token that a value of the node begins with: the alternative of a TextOr is an array or an object.
func (n *node) opening() json.Token {
	if n.kind == kindArray {
		return json.Delim('[')
	}
	return json.Delim('{')
}

// find matches names exactly: encoding/json would take MODEL for model.
func (n *node) find(name string) int {
	for i := range n.fields {
		if n.fields[i].name == name {
			return i
		}
	}
	return -1
}

func (d *decoder) array(n *node, f field, v reflect.Value, path string) error {
	list := reflect.MakeSlice(v.Type(), 0, 4)
	for d.dec.More() {
		if f.counted && list.Len() >= f.most {
			d.add(path, CodeValue, "%s may have at most %d elements", path, f.most)
			return errStop
		}
		list = reflect.Append(list, reflect.Zero(v.Type().Elem()))
		i := list.Len() - 1
		// Elements inherit the bounds on values, not those on the count.
		inner := field{maxLen: f.maxLen, enum: f.enum, bounded: f.bounded, low: f.low, high: f.high}
		if err := d.value(n.elem, inner, list.Index(i), path+"["+strconv.Itoa(i)+"]"); err != nil {
			return err
		}
	}
	if _, err := d.dec.Token(); err != nil {
		return err
	}
	v.Set(list)
	if f.counted && list.Len() < f.least {
		return d.addOrStop(path, CodeValue, "%s needs at least %d element(s)", path, f.least)
	}
	return nil
}

func (d *decoder) number(n *node, f field, v reflect.Value, path string, number json.Number) error {
	var value float64
	if n.kind == kindInteger {
		i, err := strconv.ParseInt(number.String(), 10, 64)
		if err != nil {
			return d.addOrStop(path, CodeType, "%s must be an integer, not %s", path, clip(number.String()))
		}
		v.SetInt(i)
		value = float64(i)
	} else {
		x, err := number.Float64()
		if err != nil || math.IsInf(x, 0) {
			return d.addOrStop(path, CodeValue, "%s is out of range: %s", path, clip(number.String()))
		}
		v.SetFloat(x)
		value = x
	}
	if f.bounded && (value < f.low || value > f.high) {
		return d.addOrStop(path, CodeValue, "%s is %s; it must lie in %s..%s", path, clip(number.String()), format(f.low), format(f.high))
	}
	return nil
}

// numbers decodes an object of numbers; bounds on values and on their count are those of the field.
func (d *decoder) numbers(f field, v reflect.Value, path string) error {
	out := map[string]float64{}
	for d.dec.More() {
		token, err := d.dec.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return fmt.Errorf("a name was expected, not %v", token)
		}
		at := join(path, clip(name))
		if _, twice := out[name]; twice {
			d.add(at, CodeSyntax, "%s is there twice", at)
			return errStop
		}
		if f.counted && len(out) >= f.most {
			d.add(path, CodeValue, "%s may have at most %d entries", path, f.most)
			return errStop
		}
		number, err := d.dec.Token()
		if err != nil {
			return err
		}
		value, ok := number.(json.Number)
		if !ok {
			return d.mismatch(&node{kind: kindNumber}, describeToken(number), at)
		}
		x := reflect.New(reflect.TypeFor[float64]()).Elem()
		if err := d.number(&node{kind: kindNumber}, f, x, at, value); err != nil {
			return err
		}
		out[name] = x.Float()
	}
	if _, err := d.dec.Token(); err != nil {
		return err
	}
	v.Set(reflect.ValueOf(out))
	if f.counted && len(out) < f.least {
		return d.addOrStop(path, CodeValue, "%s needs at least %d entries", path, f.least)
	}
	return nil
}

// json keeps an object as it was sent.
func (d *decoder) json(f field, v reflect.Value, path string) error {
	var raw json.RawMessage
	if err := d.dec.Decode(&raw); err != nil {
		return err
	}
	switch {
	case raw[0] == '{':
		v.SetBytes(raw)
		return nil
	case string(raw) != "null":
		d.add(path, CodeType, "%s must be an object", path)
		return errStop
	case f.required:
		return d.addOrStop(path, CodeMissing, "%s must not be null", path)
	}
	return nil
}

func (d *decoder) checkText(f field, text, path string) error {
	if f.maxLen > 0 && len(text) > f.maxLen {
		return d.addOrStop(path, CodeValue, "%s has %d bytes; at most %d are allowed", path, len(text), f.maxLen)
	}
	if len(f.enum) == 0 {
		return nil
	}
	for _, allowed := range f.enum {
		if text == allowed {
			return nil
		}
	}
	return d.addOrStop(path, CodeValue, "%s is %q; supported: %s", path, clip(text), strings.Join(f.enum, ", "))
}

// refused reads the value of a field that is not supported and lets it pass when it asks for nothing.
func (d *decoder) refused(f field, path string) error {
	var raw json.RawMessage
	if err := d.dec.Decode(&raw); err != nil {
		return err
	}
	if len(raw) <= maxRefusedBytes {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		for _, a := range f.accept {
			if reflect.DeepEqual(v, a) {
				return nil
			}
		}
	}
	return d.addOrStop(path, CodeUnsupported, "%s is not supported by this server", path)
}

func (d *decoder) mismatch(n *node, got, path string) error {
	want := kindNames[n.kind]
	if n.kind == kindTextOr {
		want += kindNames[n.elem.kind]
	}
	if path == "" {
		path = "the request body"
	}
	d.add(strings.TrimPrefix(path, "the request body"), CodeType, "%s must be %s, not %s", path, want, got)
	return errStop
}

func describeToken(token json.Token) string {
	switch t := token.(type) {
	case json.Delim:
		if t == '{' {
			return "an object"
		}
		return "an array"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	default:
		return "a number"
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// clip keeps what a stranger sent short and on one line.
func clip(s string) string {
	const most = 64
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s[:min(len(s), 4*most)])
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func format(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }
