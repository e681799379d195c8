package checkpoint

// A machine for the pickles inside torch files. It builds inert values and calls nothing: a class is a name on a list
// (pickleclasses.go) that says how our own code represents it. Opcodes outside the table below, classes outside the list
// and sizes beyond the limits are errors.
// Source: Lib/pickletools.py of CPython for the opcodes; torch/_weights_only_unpickler.py for what checkpoints need.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Values on the machine's stack: nil, bool, int64, float64, string, []byte, *pickleList, pickleTuple, *pickleDict,
// pickleClass, pickleDType, *pickleStorage, *pickleTensor, pickleInert.
type (
	pickleList  struct{ items []any }
	pickleTuple []any
	pickleDict  struct{ entries []pickleEntry } // in the order of insertion, keys not made unique
	pickleEntry struct{ key, value any }
	pickleClass string                // "module.name"
	pickleInert struct{ what string } // an object whose content is not wanted
)

// Limits of a pickle. Real ones of large models have a few ten thousand objects in less than 10 MB.
const (
	maxPickleBytes   = 64 << 20
	maxPickleObjects = 4 << 20
	maxPickleMemo    = 2 << 20
	maxPickleStack   = 1 << 20
)

type pickleMachine struct {
	data    []byte
	pos     int
	stack   []any
	marks   []int // lengths of the stack when MARK was met
	memo    map[uint32]any
	objects int

	// persistent makes the value of a persistent id, in torch files a storage.
	persistent func(id any) (any, error)
}

// unpickle runs a pickle to its STOP.
func unpickle(data []byte, persistent func(id any) (any, error)) (any, error) {
	if len(data) > maxPickleBytes {
		return nil, fmt.Errorf("the pickle has %d bytes, more than %d", len(data), maxPickleBytes)
	}
	m := &pickleMachine{data: data, memo: map[uint32]any{}, persistent: persistent}
	for {
		start := m.pos
		op, err := m.byte()
		if err == nil && op == '.' {
			v, err := m.pop()
			return v, err
		}
		if err == nil {
			err = m.step(op)
		}
		if err != nil {
			return nil, fmt.Errorf("pickle, byte %d: %w", start, err)
		}
	}
}

// step executes one opcode.
func (m *pickleMachine) step(op byte) error {
	code := pickleOps[op]
	if code.run == nil {
		return fmt.Errorf("opcode %#02x is not one that checkpoints need", op)
	}
	if err := code.run(m); err != nil {
		return fmt.Errorf("%s: %w", code.name, err)
	}
	return nil
}

type pickleOp struct {
	name string
	run  func(*pickleMachine) error
}

var pickleOps = [256]pickleOp{
	0x80: {"PROTO", (*pickleMachine).proto},
	0x95: {"FRAME", (*pickleMachine).frame},
	'(':  {"MARK", (*pickleMachine).mark},
	'0':  {"POP", func(m *pickleMachine) error { _, err := m.pop(); return err }},
	'1':  {"POP_MARK", func(m *pickleMachine) error { _, err := m.popMark(); return err }},

	'N':  {"NONE", func(m *pickleMachine) error { return m.push(nil) }},
	0x88: {"NEWTRUE", func(m *pickleMachine) error { return m.push(true) }},
	0x89: {"NEWFALSE", func(m *pickleMachine) error { return m.push(false) }},
	'J':  {"BININT", func(m *pickleMachine) error { return m.pushInt(4, true) }},
	'K':  {"BININT1", func(m *pickleMachine) error { return m.pushInt(1, false) }},
	'M':  {"BININT2", func(m *pickleMachine) error { return m.pushInt(2, false) }},
	0x8a: {"LONG1", (*pickleMachine).long1},
	'G':  {"BINFLOAT", (*pickleMachine).binFloat},
	'X':  {"BINUNICODE", func(m *pickleMachine) error { return m.pushText(4) }},
	0x8c: {"SHORT_BINUNICODE", func(m *pickleMachine) error { return m.pushText(1) }},
	'T':  {"BINSTRING", func(m *pickleMachine) error { return m.pushText(4) }},
	'U':  {"SHORT_BINSTRING", func(m *pickleMachine) error { return m.pushText(1) }},
	'B':  {"BINBYTES", func(m *pickleMachine) error { return m.pushBytes(4) }},
	'C':  {"SHORT_BINBYTES", func(m *pickleMachine) error { return m.pushBytes(1) }},

	']':  {"EMPTY_LIST", func(m *pickleMachine) error { return m.push(&pickleList{}) }},
	'}':  {"EMPTY_DICT", func(m *pickleMachine) error { return m.push(&pickleDict{}) }},
	')':  {"EMPTY_TUPLE", func(m *pickleMachine) error { return m.push(pickleTuple{}) }},
	't':  {"TUPLE", func(m *pickleMachine) error { items, err := m.popMark(); return m.pushTuple(items, err) }},
	0x85: {"TUPLE1", func(m *pickleMachine) error { items, err := m.popN(1); return m.pushTuple(items, err) }},
	0x86: {"TUPLE2", func(m *pickleMachine) error { items, err := m.popN(2); return m.pushTuple(items, err) }},
	0x87: {"TUPLE3", func(m *pickleMachine) error { items, err := m.popN(3); return m.pushTuple(items, err) }},
	'a':  {"APPEND", func(m *pickleMachine) error { items, err := m.popN(1); return m.extend(items, err) }},
	'e':  {"APPENDS", func(m *pickleMachine) error { items, err := m.popMark(); return m.extend(items, err) }},
	's':  {"SETITEM", func(m *pickleMachine) error { items, err := m.popN(2); return m.setItems(items, err) }},
	'u':  {"SETITEMS", func(m *pickleMachine) error { items, err := m.popMark(); return m.setItems(items, err) }},

	0x8f: {"EMPTY_SET", func(m *pickleMachine) error { return m.push(pickleInert{"a set"}) }},
	0x90: {"ADDITEMS", func(m *pickleMachine) error { _, err := m.popMark(); return err }}, // sets hold no tensors

	'q':  {"BINPUT", func(m *pickleMachine) error { return m.put(1) }},
	'r':  {"LONG_BINPUT", func(m *pickleMachine) error { return m.put(4) }},
	'h':  {"BINGET", func(m *pickleMachine) error { return m.get(1) }},
	'j':  {"LONG_BINGET", func(m *pickleMachine) error { return m.get(4) }},
	0x94: {"MEMOIZE", func(m *pickleMachine) error { return m.store(uint32(len(m.memo))) }},

	'c':  {"GLOBAL", (*pickleMachine).global},
	0x93: {"STACK_GLOBAL", (*pickleMachine).stackGlobal},
	'R':  {"REDUCE", (*pickleMachine).reduce},
	0x81: {"NEWOBJ", (*pickleMachine).newObject},
	'b':  {"BUILD", (*pickleMachine).build},
	'Q':  {"BINPERSID", (*pickleMachine).persistentID},
}

var errPickleShort = errors.New("the pickle ends too early")

func (m *pickleMachine) byte() (byte, error) {
	b, err := m.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// take is the next n bytes of the pickle.
func (m *pickleMachine) take(n uint64) ([]byte, error) {
	if n > uint64(len(m.data)-m.pos) {
		return nil, errPickleShort
	}
	b := m.data[m.pos : m.pos+int(n)]
	m.pos += int(n)
	return b, nil
}

// unsigned reads a little-endian number of 1, 2 or 4 bytes.
func (m *pickleMachine) unsigned(size int) (uint32, error) {
	b, err := m.take(uint64(size))
	if err != nil {
		return 0, err
	}
	var wide [4]byte
	copy(wide[:], b)
	return binary.LittleEndian.Uint32(wide[:]), nil
}

func (m *pickleMachine) push(v any) error {
	m.objects++
	switch {
	case m.objects > maxPickleObjects:
		return fmt.Errorf("more than %d objects", maxPickleObjects)
	case len(m.stack) == maxPickleStack:
		return fmt.Errorf("more than %d objects on the stack", maxPickleStack)
	}
	m.stack = append(m.stack, v)
	return nil
}

// floor is the part of the stack that is out of reach below the last mark.
func (m *pickleMachine) floor() int {
	if len(m.marks) == 0 {
		return 0
	}
	return m.marks[len(m.marks)-1]
}

func (m *pickleMachine) popN(n int) ([]any, error) {
	if len(m.stack)-m.floor() < n {
		return nil, errors.New("the stack is empty")
	}
	items := slices.Clone(m.stack[len(m.stack)-n:])
	m.stack = m.stack[:len(m.stack)-n]
	return items, nil
}

func (m *pickleMachine) pop() (any, error) {
	items, err := m.popN(1)
	if err != nil {
		return nil, err
	}
	return items[0], nil
}

// top is the last value, left on the stack.
func (m *pickleMachine) top() (any, error) {
	if len(m.stack) == m.floor() {
		return nil, errors.New("the stack is empty")
	}
	return m.stack[len(m.stack)-1], nil
}

func (m *pickleMachine) mark() error {
	if len(m.marks) == maxPickleStack {
		return fmt.Errorf("more than %d marks", maxPickleStack)
	}
	m.marks = append(m.marks, len(m.stack))
	return nil
}

// popMark takes everything above the last mark, and the mark.
func (m *pickleMachine) popMark() ([]any, error) {
	if len(m.marks) == 0 {
		return nil, errors.New("there is no mark")
	}
	from := m.floor()
	items := slices.Clone(m.stack[from:])
	m.stack, m.marks = m.stack[:from], m.marks[:len(m.marks)-1]
	return items, nil
}

func (m *pickleMachine) proto() error {
	version, err := m.byte()
	if err == nil && (version < 2 || version > 5) {
		err = fmt.Errorf("protocol %d, not 2 to 5", version)
	}
	return err
}

// frame only says how far a reader may read ahead.
func (m *pickleMachine) frame() error {
	_, err := m.take(8)
	return err
}

func (m *pickleMachine) pushInt(size int, signed bool) error {
	v, err := m.unsigned(size)
	if err != nil {
		return err
	}
	if signed {
		return m.push(int64(int32(v)))
	}
	return m.push(int64(v))
}

// long1 is a two's complement number of any length; nothing in a checkpoint needs more than 8 bytes.
func (m *pickleMachine) long1() error {
	n, err := m.byte()
	if err != nil {
		return err
	}
	b, err := m.take(uint64(n))
	if err != nil {
		return err
	}
	if n > 8 {
		return m.push(pickleInert{"a large integer"}) // random number states of training loops
	}
	var wide [8]byte
	if n > 0 && b[n-1]&0x80 != 0 {
		for i := range wide {
			wide[i] = 0xff
		}
	}
	copy(wide[:], b)
	return m.push(int64(binary.LittleEndian.Uint64(wide[:])))
}

func (m *pickleMachine) binFloat() error {
	b, err := m.take(8)
	if err != nil {
		return err
	}
	return m.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
}

func (m *pickleMachine) pushText(lengthBytes int) error {
	n, err := m.unsigned(lengthBytes)
	if err != nil {
		return err
	}
	b, err := m.take(uint64(n))
	if err != nil {
		return err
	}
	return m.push(strings.ToValidUTF8(string(b), "\uFFFD")) // surrogates that Python lets through, old byte strings
}

func (m *pickleMachine) pushBytes(lengthBytes int) error {
	n, err := m.unsigned(lengthBytes)
	if err != nil {
		return err
	}
	b, err := m.take(uint64(n))
	if err != nil {
		return err
	}
	return m.push(b) // shares the pickle's memory
}

func (m *pickleMachine) pushTuple(items []any, err error) error {
	if err != nil {
		return err
	}
	return m.push(pickleTuple(items))
}

func (m *pickleMachine) extend(items []any, err error) error {
	if err != nil {
		return err
	}
	target, err := m.top()
	if err != nil {
		return err
	}
	list, ok := target.(*pickleList)
	if !ok {
		return fmt.Errorf("%s is not a list", describe(target))
	}
	list.items = append(list.items, items...)
	return nil
}

func (m *pickleMachine) setItems(items []any, err error) error {
	if err != nil {
		return err
	}
	target, err := m.top()
	if err != nil {
		return err
	}
	if len(items)%2 != 0 {
		return errors.New("a key without a value")
	}
	dict, ok := target.(*pickleDict)
	if !ok {
		return fmt.Errorf("%s is not a dict", describe(target))
	}
	for i := 0; i < len(items); i += 2 {
		dict.entries = append(dict.entries, pickleEntry{items[i], items[i+1]})
	}
	return nil
}

func (m *pickleMachine) put(size int) error {
	key, err := m.unsigned(size)
	if err != nil {
		return err
	}
	return m.store(key)
}

func (m *pickleMachine) store(key uint32) error {
	v, err := m.top()
	if err != nil {
		return err
	}
	if _, known := m.memo[key]; !known && len(m.memo) == maxPickleMemo {
		return fmt.Errorf("more than %d memo entries", maxPickleMemo)
	}
	m.memo[key] = v
	return nil
}

func (m *pickleMachine) get(size int) error {
	key, err := m.unsigned(size)
	if err != nil {
		return err
	}
	v, ok := m.memo[key]
	if !ok {
		return fmt.Errorf("memo entry %d was never made", key)
	}
	return m.push(v)
}

func (m *pickleMachine) persistentID() error {
	id, err := m.pop()
	if err != nil {
		return err
	}
	v, err := m.persistent(id)
	if err != nil {
		return err
	}
	return m.push(v)
}

// describe names a value in an error.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return "a boolean"
	case int64:
		return fmt.Sprintf("the integer %d", v)
	case float64:
		return "a float"
	case string:
		return "the string " + quoted(v)
	case []byte:
		return "a byte string"
	case *pickleList:
		return "a list"
	case pickleTuple:
		return "a tuple"
	case *pickleDict:
		return "a dict"
	case pickleClass:
		return "the class " + quoted(string(v))
	case pickleDType:
		return "a dtype"
	case *pickleStorage:
		return "a storage"
	case *pickleTensor:
		return "a tensor"
	case pickleInert:
		return v.what
	}
	return fmt.Sprintf("a %T", v)
}
