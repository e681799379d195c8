// Frames: what goes over the socket. docs/worker.md has the layout.

package worker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// kind says what a frame's payload is.
type kind uint8

// Kinds of frames. The first frame in each direction is a hello.
const (
	kindHello kind = iota + 1
	// From the front process.
	kindGenerate // engine.Request
	kindPrepare  // engine.Request
	kindScore    // engine.ScoreRequest
	kindEmbed    // engine.EmbedRequest
	kindRerank   // engine.RerankRequest
	kindInfo     // empty
	kindCancel   // empty; the id is that of the request to give up
	kindPing     // empty
	// From the worker.
	kindReady   // Info; once, when the model is loaded
	kindToken   // engine.Token
	kindResult  // what the request's kind gives; the request's last frame
	kindFailure // failure; the request's last frame, or, with id 0, why the model could not be loaded
	kindPong    // empty
	kindEnd     // no such frame: one above the last
)

const (
	headerBytes = 13
	// maxPayload bounds a frame: the pictures of one request, with room.
	maxPayload = 512 << 20
	// firstPiece is what is allocated on a length's word alone; more only as bytes arrive.
	firstPiece = 64 << 10
)

// errProtocol marks what a peer of this version would not have sent.
var errProtocol = errors.New("broken worker protocol")

// frame is one message, of the request id or, with id 0, of the connection.
type frame struct {
	kind    kind
	id      uint64
	payload []byte
}

// header returns the bytes in front of the payload.
func (f frame) header() []byte {
	h := make([]byte, headerBytes)
	binary.LittleEndian.PutUint32(h, uint32(len(f.payload)))
	h[4] = byte(f.kind)
	binary.LittleEndian.PutUint64(h[5:], f.id)
	return h
}

// readFrame reads one frame of at most limit payload bytes. Its payload is the caller's. The error is io.EOF where the
// stream ends between frames.
func readFrame(r io.Reader, limit int) (frame, error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return frame{}, fmt.Errorf("read frame: %w: it ends inside a header", errProtocol)
		}
		return frame{}, err
	}
	size := binary.LittleEndian.Uint32(h[:])
	f := frame{kind: kind(h[4]), id: binary.LittleEndian.Uint64(h[5:])}
	if f.kind == 0 || f.kind >= kindEnd {
		return frame{}, fmt.Errorf("read frame: %w: kind %d", errProtocol, f.kind)
	}
	if uint64(size) > uint64(limit) {
		return frame{}, fmt.Errorf("read frame: %w: a payload of %d bytes; at most %d are taken", errProtocol, size, limit)
	}
	payload, err := readPayload(r, int(size))
	if err != nil {
		return frame{}, err
	}
	f.payload = payload
	return f, nil
}

// readPayload reads n bytes without believing n before they are there.
func readPayload(r io.Reader, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if n <= firstPiece {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, cutOff(err)
		}
		return b, nil
	}
	var buf bytes.Buffer
	buf.Grow(firstPiece)
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		return nil, cutOff(err)
	}
	return buf.Bytes(), nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read frame: %w: it ends inside a payload", errProtocol)
	}
	return fmt.Errorf("read frame: %w", err)
}
