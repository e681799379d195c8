// The vision cache on disk: a file for each key, so that feature rows outlive the process.
//
// A file is
//
//	"glimpse rows 1\n"                         15 bytes
//	key, of medium and model                   32 bytes
//	width, rows, levels                        3 × uint32, little-endian; levels counts the deepstack levels
//	(1 + levels) × rows × width values         float32, little-endian: features, then the levels
//	SHA-256 of all before                      32 bytes
//
// Files are written aside and renamed, so a reader sees whole files or none; one that is not what it should be is a miss
// and is removed. Several processes may share a folder. Nothing is synced to the disk: after a power cut the checksum tells.

package engine

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"glimpse/manifest"
)

const (
	rowsMagic  = "glimpse rows 1\n"
	rowsSuffix = ".rows"
	rowsAside  = ".aside-" // what files are called while they are written
	rowsHeader = len(rowsMagic) + sha256.Size + 3*4

	// defaultVisionDisk bounds the folder where Options.VisionCacheDisk is 0.
	defaultVisionDisk = 4 << 30
	// asideAge is after how long a file that is being written was left by a process that died.
	asideAge = time.Hour
)

// visionDisk is a folder of rows. It is safe for many goroutines; a nil one holds nothing.
type visionDisk struct {
	folder string
	limit  int64
	model  [sha256.Size]byte
	logger *slog.Logger

	mu     sync.Mutex
	bytes  int64 // of all files when last looked, and those written since
	errors uint64
}

// openVisionDisk makes the folder where it is missing and looks at what it holds.
func openVisionDisk(folder string, limit int64, model [sha256.Size]byte, logger *slog.Logger) (*visionDisk, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("vision cache: %w", err)
	}
	if limit == 0 {
		limit = defaultVisionDisk
	}
	d := &visionDisk{folder: folder, limit: limit, model: model, logger: logger}
	if err := d.shrink(0); err != nil {
		return nil, fmt.Errorf("vision cache: %w", err)
	}
	return d, nil
}

// path returns a key's file, named by what the rows depend on in medium and model.
func (d *visionDisk) path(key mediaKey) (path string, full [sha256.Size]byte) {
	full = sha256.Sum256(append(d.model[:], key[:]...))
	return filepath.Join(d.folder, hex.EncodeToString(full[:])+rowsSuffix), full
}

// load returns the rows of a unit; nil where there are none, or none that can be used.
func (d *visionDisk) load(unit mediaUnit, width, levels int) *visionRows {
	if d == nil {
		return nil
	}
	path, full := d.path(unit.key)
	want := rowsHeader + 4*(1+levels)*unit.tokens*width + sha256.Size
	raw, err := readExactly(path, int64(want))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var rows *visionRows
	if err == nil {
		rows, err = decodeRows(raw, full, unit.tokens, width, levels)
	}
	if err != nil {
		d.failed("read", path, err)
		_ = os.Remove(path) // it would be of no more use the next time
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // the order in which files go; the cache works without
	return rows
}

// readExactly reads a file of a known size.
func readExactly(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return nil, fmt.Errorf("it has %d bytes, and %d are due", info.Size(), size)
	}
	raw := make([]byte, size)
	_, err = io.ReadFull(f, raw)
	return raw, err
}

// store writes the rows of a key. That it fails is no error of the request.
func (d *visionDisk) store(key mediaKey, rows *visionRows) {
	if d == nil {
		return
	}
	path, full := d.path(key)
	raw := encodeRows(full, rows)
	size := int64(len(raw))
	if size > d.limit {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock() // one writer at a time: the room is what the last one left
	err := error(nil)
	if d.bytes+size > d.limit {
		err = d.shrink(size)
	}
	if err == nil {
		err = writeAside(path, raw)
	}
	if err != nil {
		d.errors++
		d.logger.Warn("vision cache: cannot write", "file", path, "error", err)
		return
	}
	d.bytes += size
}

func writeAside(path string, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), rowsAside+"*") // readable by its owner alone
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// shrink removes the files that were not used for longest until there is room, and what was left half written.
func (d *visionDisk) shrink(room int64) error {
	entries, err := os.ReadDir(d.folder)
	if err != nil {
		return err
	}
	type file struct {
		path string
		size int64
		used time.Time
	}
	var files []file
	d.bytes = 0
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // gone meanwhile, or not ours
		}
		f := file{filepath.Join(d.folder, entry.Name()), info.Size(), info.ModTime()}
		switch {
		case strings.HasPrefix(entry.Name(), rowsAside) && time.Since(f.used) > asideAge:
			_ = os.Remove(f.path) // or another process does
		case strings.HasSuffix(entry.Name(), rowsSuffix):
			files = append(files, f)
			d.bytes += f.size
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.path, b.path)) })
	for _, f := range files {
		if d.bytes+room <= d.limit {
			break
		}
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		d.bytes -= f.size
	}
	return nil
}

func (d *visionDisk) failed(what, path string, err error) {
	d.mu.Lock()
	d.errors++
	d.mu.Unlock()
	d.logger.Warn("vision cache: cannot "+what, "file", path, "error", err)
}

func (d *visionDisk) counts() (errors uint64, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.errors, d.bytes
}

// encodeRows writes the format above.
func encodeRows(full [sha256.Size]byte, rows *visionRows) []byte {
	raw := make([]byte, 0, int64(rowsHeader)+rows.bytes()+sha256.Size)
	raw = append(append(raw, rowsMagic...), full[:]...)
	for _, n := range []int{rows.width, len(rows.features) / rows.width, len(rows.deepstack)} {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(n))
	}
	for _, level := range append([][]float32{rows.features}, rows.deepstack...) {
		for _, v := range level {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
	}
	sum := sha256.Sum256(raw)
	return append(raw, sum[:]...)
}

// decodeRows reads what encodeRows wrote; anything that is not what is due is an error.
func decodeRows(raw []byte, full [sha256.Size]byte, tokens, width, levels int) (*visionRows, error) {
	body := len(raw) - sha256.Size
	if body < rowsHeader || !bytes.HasPrefix(raw, []byte(rowsMagic)) {
		return nil, errors.New("it is no file of rows, or one of another version")
	}
	if sum := sha256.Sum256(raw[:body]); !bytes.Equal(sum[:], raw[body:]) {
		return nil, errors.New("its checksum is wrong: it is damaged")
	}
	at := len(rowsMagic)
	if !bytes.Equal(raw[at:at+sha256.Size], full[:]) {
		return nil, errors.New("it holds the rows of another picture or model")
	}
	at += sha256.Size
	for _, want := range []int{width, tokens, levels} {
		if binary.LittleEndian.Uint32(raw[at:]) != uint32(want) {
			return nil, fmt.Errorf("it does not have %d rows of %d values at %d levels", tokens, width, 1+levels)
		}
		at += 4
	}
	each := tokens * width
	if body-at != 4*each*(1+levels) {
		return nil, fmt.Errorf("it has %d bytes of values, and %d are due", body-at, 4*each*(1+levels))
	}
	list := make([][]float32, 1+levels)
	for i := range list {
		list[i] = make([]float32, each)
		for k := range list[i] {
			list[i][k] = math.Float32frombits(binary.LittleEndian.Uint32(raw[at+4*k:]))
		}
		at += 4 * each
	}
	rows := &visionRows{width: width, features: list[0]}
	if levels > 0 {
		rows.deepstack = list[1:]
	}
	return rows, nil
}

// Of external data a part is hashed: it is gigabytes, and model.toml has the checkpoint's checksums.
const (
	sampledBlock  = 4 << 10
	sampledBlocks = 256
)

// visionModelHash is what feature rows depend on in a model: model.toml, which names the checkpoint's files by their
// checksums, the picture stages' graphs, and blocks of their weights.
func visionModelHash(folder string, m *manifest.Manifest) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	raw, err := os.ReadFile(filepath.Join(folder, manifest.FileName))
	if err != nil {
		return sum, err
	}
	framed(h, raw)
	for _, name := range m.Picture.Stages {
		for _, file := range []string{m.Components[name].File, m.Components[name].Data} {
			if file == "" {
				continue
			}
			if err := hashSample(h, filepath.Join(folder, file)); err != nil {
				return sum, fmt.Errorf("hash the picture graphs: %w", err)
			}
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// hashSample hashes a file's size and evenly spaced blocks of it; a small file whole.
func hashSample(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	fmt.Fprintf(w, "%d\n", size)
	if size <= sampledBlock*sampledBlocks {
		_, err = io.Copy(w, f)
		return err
	}
	block := make([]byte, sampledBlock)
	for i := range int64(sampledBlocks) {
		if _, err := f.ReadAt(block, (size-sampledBlock)*i/(sampledBlocks-1)); err != nil {
			return err
		}
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}
