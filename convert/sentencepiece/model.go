// Package sentencepiece turns a SentencePiece tokenizer.model into a tokenizer.json: releases of LLaVA and InternVL have
// nothing else, and the running half reads nothing else.
//
// The rules are those of transformers' own converters (LlamaConverter for BPE, T5Converter for Unigram), so the ids are
// the ones that models were trained on. What a model asks for beyond them is an error that names it: a tokenizer that is
// almost right gives answers that are almost right.
//
// This file reads the protocol buffer (sentencepiece_model.proto).
package sentencepiece

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of a model. The largest released ones have 256,000 pieces, and pieces of more than 64 bytes are rare.
const (
	maxPieces     = 1 << 20
	maxPieceBytes = 1 << 10
)

// pieceType is SentencePiece.Type.
type pieceType uint64

const (
	normal      pieceType = 1
	unknown     pieceType = 2
	control     pieceType = 3
	userDefined pieceType = 4
	unused      pieceType = 5
	byteValue   pieceType = 6
)

// Values of TrainerSpec.model_type.
const (
	typeUnigram = 1
	typeBPE     = 2
)

type piece struct {
	text  string
	score float32
	kind  pieceType
}

// model is what is used of a ModelProto.
type model struct {
	pieces []piece
	byText map[string]int

	kind         uint64 // model_type
	byteFallback bool
	unk          int64
	unkPiece     string
	bosPiece     string
	eosPiece     string
	suffixSpaces bool // treat_whitespace_as_suffix

	charsmap    []byte // precompiled normalisation rules
	dummyPrefix bool
	collapse    bool // remove_extra_whitespaces
	escape      bool // escape_whitespaces
}

// parse reads a tokenizer.model. It takes nothing on trust: counts, lengths and encodings are checked, and what it does
// not know is skipped as protocol buffers ask.
func parse(raw []byte) (*model, error) {
	m := &model{byText: map[string]int{}, kind: typeUnigram, unkPiece: "<unk>", bosPiece: "<s>", eosPiece: "</s>", dummyPrefix: true, collapse: true, escape: true}
	err := fields(raw, func(num protowire.Number, v value) error {
		switch num {
		case 1:
			return m.addPiece(v)
		case 2:
			return within("trainer_spec", v, m.trainer)
		case 3:
			return within("normalizer_spec", v, m.normalizer)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(m.pieces) == 0 {
		return nil, errors.New("it holds no pieces: it is no SentencePiece model")
	}
	if m.unk < 0 || m.unk >= int64(len(m.pieces)) {
		return nil, fmt.Errorf("unk_id is %d and there are %d pieces", m.unk, len(m.pieces))
	}
	return m, nil
}

func (m *model) addPiece(v value) error {
	at := len(m.pieces)
	if at == maxPieces {
		return fmt.Errorf("it has more than %d pieces", maxPieces)
	}
	p := piece{kind: normal}
	err := within(fmt.Sprintf("piece %d", at), v, func(num protowire.Number, v value) error {
		switch {
		case num == 1 && v.typ == protowire.BytesType:
			p.text = string(v.bytes)
		case num == 2 && v.typ == protowire.Fixed32Type:
			p.score = math.Float32frombits(uint32(v.number))
		case num == 3 && v.typ == protowire.VarintType:
			p.kind = pieceType(v.number)
		}
		return nil
	})
	if err != nil {
		return err
	}
	first, twice := m.byText[p.text]
	switch {
	case p.text == "" || len(p.text) > maxPieceBytes:
		return fmt.Errorf("piece %d has %d bytes; 1 to %d are due", at, len(p.text), maxPieceBytes)
	case !utf8.ValidString(p.text):
		return fmt.Errorf("piece %d (%q) is not valid UTF-8", at, p.text)
	case twice:
		return fmt.Errorf("pieces %d and %d are both %q", first, at, p.text)
	case p.kind < normal || p.kind > byteValue:
		return fmt.Errorf("piece %d (%q) has type %d, which is not known", at, p.text, p.kind)
	case math.IsNaN(float64(p.score)) || math.IsInf(float64(p.score), 0):
		return fmt.Errorf("piece %d (%q) has score %v", at, p.text, p.score)
	}
	m.byText[p.text] = at
	m.pieces = append(m.pieces, p)
	return nil
}

func (m *model) trainer(num protowire.Number, v value) error {
	switch num {
	case 3:
		m.kind = v.number
	case 24:
		m.suffixSpaces = v.number != 0
	case 35:
		m.byteFallback = v.number != 0
	case 40:
		m.unk = int64(int32(v.number))
	case 45:
		m.unkPiece = string(v.bytes)
	case 46:
		m.bosPiece = string(v.bytes)
	case 47:
		m.eosPiece = string(v.bytes)
	}
	return nil
}

func (m *model) normalizer(num protowire.Number, v value) error {
	switch num {
	case 2:
		m.charsmap = v.bytes
	case 3:
		m.dummyPrefix = v.number != 0
	case 4:
		m.collapse = v.number != 0
	case 5:
		m.escape = v.number != 0
	}
	return nil
}

// value is one field's value: bytes, or a number of up to 64 bits.
type value struct {
	typ    protowire.Type
	bytes  []byte
	number uint64
}

// within reads the fields of an embedded message.
func within(name string, v value, visit func(protowire.Number, value) error) error {
	if v.typ != protowire.BytesType {
		return fmt.Errorf("%s is no message: it is no SentencePiece model", name)
	}
	if err := fields(v.bytes, visit); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// fields visits the fields of a message in order.
func fields(raw []byte, visit func(protowire.Number, value) error) error {
	for offset := 0; len(raw) > 0; {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return fmt.Errorf("damaged at byte %d: %w", offset, protowire.ParseError(n))
		}
		v := value{typ: typ}
		size := 0
		switch typ {
		case protowire.VarintType:
			v.number, size = protowire.ConsumeVarint(raw[n:])
		case protowire.Fixed32Type:
			var f uint32
			f, size = protowire.ConsumeFixed32(raw[n:])
			v.number = uint64(f)
		case protowire.Fixed64Type:
			v.number, size = protowire.ConsumeFixed64(raw[n:])
		case protowire.BytesType:
			v.bytes, size = protowire.ConsumeBytes(raw[n:])
		default:
			size = protowire.ConsumeFieldValue(num, typ, raw[n:])
		}
		if size < 0 {
			return fmt.Errorf("damaged at byte %d: %w", offset, protowire.ParseError(size))
		}
		if err := visit(num, v); err != nil {
			return err
		}
		raw, offset = raw[n+size:], offset+n+size
	}
	return nil
}
