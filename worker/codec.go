// Values as bytes. The types are the engine's own, so a field that the engine grows travels without a change here, and
// what arrives is what was sent: nil and empty slices stay apart, a pointer to zero stays a pointer, text that is not
// UTF-8 and numbers that are not finite survive. (encoding/gob loses the first two, encoding/json the others.)

package worker

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
)

// errShort is where the bytes end before the value does.
var errShort = fmt.Errorf("%w: the value is cut off", errProtocol)

// encode returns the bytes of a value. It fails for types that cannot travel only.
func encode(v any) ([]byte, error) { return appendValue(nil, reflect.ValueOf(v)) }

// decode fills what v points to; all bytes must be used. Byte slices in it are parts of data.
func decode(data []byte, v any) error {
	d := decoder{data}
	if err := d.value(reflect.ValueOf(v).Elem()); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	if len(d.rest) > 0 {
		return fmt.Errorf("decode %T: %w: %d bytes too many", v, errProtocol, len(d.rest))
	}
	return nil
}

// travels says which fields of a struct are sent: functions stay where they are.
func travels(f reflect.StructField) bool { return f.IsExported() && f.Type.Kind() != reflect.Func }

func appendValue(to []byte, v reflect.Value) ([]byte, error) {
	var err error
	switch v.Kind() {
	case reflect.Bool:
		return append(to, bit(v.Bool())), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(to, v.Int()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(to, v.Uint()), nil
	case reflect.Float32:
		return binary.LittleEndian.AppendUint32(to, math.Float32bits(float32(v.Float()))), nil
	case reflect.Float64:
		return binary.LittleEndian.AppendUint64(to, math.Float64bits(v.Float())), nil
	case reflect.String:
		to = binary.AppendUvarint(to, uint64(v.Len()))
		return append(to, v.String()...), nil
	case reflect.Pointer:
		to = append(to, bit(!v.IsNil()))
		if v.IsNil() {
			return to, nil
		}
		return appendValue(to, v.Elem())
	case reflect.Slice:
		return appendSlice(to, v)
	case reflect.Array:
		for i := range v.Len() {
			if to, err = appendValue(to, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return to, nil
	case reflect.Map:
		to = appendCount(to, v.IsNil(), v.Len())
		for entries := v.MapRange(); err == nil && entries.Next(); {
			if to, err = appendValue(to, entries.Key()); err == nil {
				to, err = appendValue(to, entries.Value())
			}
		}
		return to, err
	case reflect.Struct:
		for i := range v.NumField() {
			if travels(v.Type().Field(i)) {
				if to, err = appendValue(to, v.Field(i)); err != nil {
					return nil, err
				}
			}
		}
		return to, nil
	}
	return nil, fmt.Errorf("a %s cannot be sent to a worker", v.Type())
}

func appendSlice(to []byte, v reflect.Value) ([]byte, error) {
	to = appendCount(to, v.IsNil(), v.Len())
	if v.Type().Elem().Kind() == reflect.Uint8 {
		return append(to, v.Bytes()...), nil
	}
	var err error
	for i := range v.Len() {
		if to, err = appendValue(to, v.Index(i)); err != nil {
			return nil, err
		}
	}
	return to, nil
}

// appendCount writes 0 for nil and one more than the length otherwise.
func appendCount(to []byte, isNil bool, n int) []byte {
	if isNil {
		return append(to, 0)
	}
	return binary.AppendUvarint(to, uint64(n)+1)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// decoder takes values off the front of rest.
type decoder struct{ rest []byte }

func (d *decoder) take(n int) ([]byte, error) {
	if n > len(d.rest) {
		return nil, errShort
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *decoder) uvarint() (uint64, error) {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		return 0, errShort
	}
	d.rest = d.rest[size:]
	return n, nil
}

func (d *decoder) bit() (bool, error) {
	b, err := d.take(1)
	if err != nil {
		return false, err
	}
	if b[0] > 1 {
		return false, fmt.Errorf("%w: %d is no truth value", errProtocol, b[0])
	}
	return b[0] == 1, nil
}

// count is what appendCount wrote. No element takes less than a byte, so what is left bounds it.
func (d *decoder) count() (n int, isNil bool, err error) {
	c, err := d.uvarint()
	if err != nil || c == 0 {
		return 0, true, err
	}
	if c-1 > uint64(len(d.rest)) {
		return 0, false, errShort
	}
	return int(c - 1), false, nil
}

func (d *decoder) value(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Bool:
		b, err := d.bit()
		v.SetBool(b)
		return err
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, size := binary.Varint(d.rest)
		if size <= 0 || v.OverflowInt(n) {
			return errShort
		}
		d.rest = d.rest[size:]
		v.SetInt(n)
		return nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := d.uvarint()
		if err == nil && v.OverflowUint(n) {
			return errShort
		}
		v.SetUint(n)
		return err
	case reflect.Float32:
		b, err := d.take(4)
		if err == nil {
			v.SetFloat(float64(math.Float32frombits(binary.LittleEndian.Uint32(b))))
		}
		return err
	case reflect.Float64:
		b, err := d.take(8)
		if err == nil {
			v.SetFloat(math.Float64frombits(binary.LittleEndian.Uint64(b)))
		}
		return err
	case reflect.String:
		n, err := d.uvarint()
		if err != nil {
			return err
		}
		b, err := d.take(int(min(n, math.MaxInt)))
		v.SetString(string(b))
		return err
	case reflect.Pointer:
		there, err := d.bit()
		if err != nil || !there {
			return err
		}
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(v.Elem())
	case reflect.Slice:
		return d.slice(v)
	case reflect.Array:
		for i := range v.Len() {
			if err := d.value(v.Index(i)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Map:
		return d.entries(v)
	case reflect.Struct:
		for i := range v.NumField() {
			if travels(v.Type().Field(i)) {
				if err := d.value(v.Field(i)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return fmt.Errorf("a %s cannot come from a worker", v.Type())
}

func (d *decoder) slice(v reflect.Value) error {
	n, isNil, err := d.count()
	if err != nil || isNil {
		return err
	}
	if v.Type().Elem().Kind() == reflect.Uint8 {
		b, err := d.take(n)
		v.SetBytes(b)
		return err
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, min(n, 1024))) // grows as elements are there
	for i := range n {
		if i == v.Cap() {
			v.Grow(min(n-i, i+1))
		}
		v.SetLen(i + 1)
		if err := d.value(v.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) entries(v reflect.Value) error {
	n, isNil, err := d.count()
	if err != nil || isNil {
		return err
	}
	v.Set(reflect.MakeMap(v.Type()))
	for range n {
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if err := errors.Join(d.value(key), d.value(value)); err != nil {
			return err
		}
		v.SetMapIndex(key, value)
	}
	return nil
}

// describe writes down how a type travels, for two processes to find out whether they agree.
func describe(w io.Writer, t reflect.Type) {
	fmt.Fprintf(w, "%s ", t.Kind())
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		describe(w, t.Elem())
	case reflect.Array:
		fmt.Fprintf(w, "%d ", t.Len())
		describe(w, t.Elem())
	case reflect.Map:
		describe(w, t.Key())
		describe(w, t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); travels(f) {
				fmt.Fprintf(w, "%s:", f.Name)
				describe(w, f.Type)
			}
		}
		fmt.Fprint(w, "; ")
	}
}

// schemaOf is a hash of how values travel.
func schemaOf(values ...any) [32]byte {
	var text strings.Builder
	for _, v := range values {
		describe(&text, reflect.TypeOf(v))
	}
	return sha256.Sum256([]byte(text.String()))
}
