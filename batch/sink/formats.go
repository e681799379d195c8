// Tables: CSV and Parquet, and side-car texts.

package sink

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"glimpse/batch/row"

	pq "github.com/parquet-go/parquet-go"
)

// csvColumns are the columns of a CSV part. Add at the end, never rename.
var csvColumns = []string{
	"id", "path", "caption", "prompt", "model", "width", "height", "tokens", "ms", "error_kind", "error_message", "sha256",
	"model_hash", "prompt_hash", "logprob", "phash", "captions", "duplicate_of", "embedding", "itm", "clip", "boxes",
}

func writeCSV(w io.Writer, rows iter.Seq2[*row.Row, error]) error {
	out := csv.NewWriter(w)
	if err := out.Write(csvColumns); err != nil {
		return err
	}
	for r, err := range rows {
		if err != nil {
			return err
		}
		kind, message := "", ""
		if r.Error != nil {
			kind, message = r.Error.Kind, r.Error.Message
		}
		captions, err := jsonCell(r.Captions, len(r.Captions))
		if err != nil {
			return err
		}
		embedding, err := jsonCell(r.Embedding, len(r.Embedding))
		if err != nil {
			return err
		}
		clip := ""
		if r.Clip != nil {
			if clip, err = jsonCell(r.Clip, 1); err != nil {
				return err
			}
		}
		boxes, err := jsonCell(r.Boxes, len(r.Boxes))
		if err != nil {
			return err
		}
		if err := out.Write([]string{
			r.ID, r.Path, r.Caption, r.Prompt, r.Model, strconv.Itoa(r.Width), strconv.Itoa(r.Height), strconv.Itoa(r.Tokens),
			number(&r.MS), kind, message, r.SHA256, r.ModelHash, r.PromptHash, number(r.Logprob), r.PHash, captions, r.DuplicateOf,
			embedding, number(r.ITM), clip, boxes,
		}); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// jsonCell is a list in a cell; an empty one is an empty cell.
func jsonCell(v any, length int) (string, error) {
	if length == 0 {
		return "", nil
	}
	text, err := json.Marshal(v)
	return string(text), err
}

func number(v *float64) string {
	if v == nil {
		return ""
	}
	return strconv.FormatFloat(*v, 'g', -1, 64)
}

// parquetRow is the schema of a Parquet part. Add at the end, never rename.
type parquetRow struct {
	ID           string           `parquet:"id"`
	Path         string           `parquet:"path"`
	Caption      string           `parquet:"caption"`
	Prompt       string           `parquet:"prompt,dict"`
	Model        string           `parquet:"model,dict"`
	Width        int32            `parquet:"width"`
	Height       int32            `parquet:"height"`
	Tokens       int32            `parquet:"tokens"`
	MS           float64          `parquet:"ms"`
	ErrorKind    *string          `parquet:"error_kind,optional,dict"`
	ErrorMessage *string          `parquet:"error_message,optional"`
	SHA256       *string          `parquet:"sha256,optional"`
	ModelHash    string           `parquet:"model_hash,dict"`
	PromptHash   string           `parquet:"prompt_hash,dict"`
	Logprob      *float64         `parquet:"logprob,optional"`
	PHash        *string          `parquet:"phash,optional"`
	Captions     []parquetCaption `parquet:"captions,list"`
	DuplicateOf  *string          `parquet:"duplicate_of,optional"`
	Embedding    []float32        `parquet:"embedding,list"`
	ITM          *float64         `parquet:"itm,optional"`
	Clip         *parquetClip     `parquet:"clip,optional"`
	Boxes        []parquetBox     `parquet:"boxes,list"`
}

type parquetClip struct {
	Frames   []int32   `parquet:"frames,list"`
	Seconds  []float64 `parquet:"seconds,list"`
	Total    int32     `parquet:"total"`
	FPS      *float64  `parquet:"fps,optional"`
	Duration *float64  `parquet:"duration,optional"`
	Sound    bool      `parquet:"sound"`
}

type parquetBox struct {
	Label  string  `parquet:"label"`
	X1     int32   `parquet:"x1"`
	Y1     int32   `parquet:"y1"`
	X2     int32   `parquet:"x2"`
	Y2     int32   `parquet:"y2"`
	Points []int32 `parquet:"points,list"` // x, y of each corner of a quadrangle
	Frame  int32   `parquet:"frame"`
}

type parquetCaption struct {
	Prompt  string       `parquet:"prompt"`
	Caption string       `parquet:"caption"`
	Tokens  int32        `parquet:"tokens"`
	Logprob *float64     `parquet:"logprob,optional"`
	Boxes   []parquetBox `parquet:"boxes,list"`
}

// rowGroupRows bounds the memory that writing a part takes.
const rowGroupRows = 50_000

func writeParquet(w io.Writer, rows iter.Seq2[*row.Row, error]) error {
	out := pq.NewGenericWriter[parquetRow](w, pq.Compression(&pq.Zstd), pq.MaxRowsPerRowGroup(rowGroupRows), pq.CreatedBy("glimpse", "1", "batch"))
	for r, err := range rows {
		if err != nil {
			return err
		}
		p := parquetRow{
			ID: r.ID, Path: r.Path, Caption: r.Caption, Prompt: r.Prompt, Model: r.Model, Width: int32(r.Width), Height: int32(r.Height),
			Tokens: int32(r.Tokens), MS: r.MS, SHA256: optional(r.SHA256), ModelHash: r.ModelHash, PromptHash: r.PromptHash, Logprob: r.Logprob,
			PHash: optional(r.PHash), DuplicateOf: optional(r.DuplicateOf), Embedding: r.Embedding, ITM: r.ITM,
		}
		if r.Error != nil {
			p.ErrorKind, p.ErrorMessage = &r.Error.Kind, &r.Error.Message
		}
		for _, c := range r.Captions {
			p.Captions = append(p.Captions, parquetCaption{c.Prompt, c.Caption, int32(c.Tokens), c.Logprob, parquetBoxes(c.Boxes)})
		}
		p.Clip, p.Boxes = newParquetClip(r.Clip), parquetBoxes(r.Boxes)
		if _, err := out.Write([]parquetRow{p}); err != nil {
			return err
		}
	}
	return out.Close()
}

func newParquetClip(c *row.Clip) *parquetClip {
	if c == nil {
		return nil
	}
	p := &parquetClip{Seconds: c.Seconds, Total: int32(c.Total), Sound: c.Sound}
	for _, f := range c.Frames {
		p.Frames = append(p.Frames, int32(f))
	}
	if c.FPS > 0 {
		p.FPS = &c.FPS
	}
	if c.Duration > 0 {
		p.Duration = &c.Duration
	}
	return p
}

func parquetBoxes(boxes []row.Box) []parquetBox {
	var list []parquetBox
	for _, b := range boxes {
		p := parquetBox{Label: b.Label, X1: int32(b.X1), Y1: int32(b.Y1), X2: int32(b.X2), Y2: int32(b.Y2), Frame: int32(b.Frame)}
		for _, point := range b.Points {
			p.Points = append(p.Points, int32(point[0]), int32(point[1]))
		}
		list = append(list, p)
	}
	return list
}

// optional is null for what is not there.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// writeSideCar writes PICTURE.txt beside a captioned picture. A text that is there is kept (skip), replaced (overwrite) or
// added to (append); a line that a killed run added already is not added again.
func writeSideCar(o *Options, r *row.Row) error {
	if r.Error != nil || r.DuplicateOf != "" {
		return nil
	}
	path := strings.TrimSuffix(r.Path, filepath.Ext(r.Path)) + ".txt"
	text := []byte(strings.ReplaceAll(r.Caption, "\n", " ") + "\n")
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !folderOf(path):
		return nil // the picture is not a file, or its folder is gone: its caption is in the part
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("caption beside %s: %w", r.Path, err)
	case bytes.Equal(old, text), o.OnExisting == Skip:
		return nil
	case o.OnExisting == Append:
		if bytes.HasSuffix(old, append([]byte("\n"), text...)) {
			return nil
		}
		if len(old) > 0 && old[len(old)-1] != '\n' {
			old = append(old, '\n')
		}
		text = append(old, text...)
	}
	return o.replaceFile(path+asideSuffix, path, "sidecar", func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}

func folderOf(path string) bool {
	info, err := os.Stat(filepath.Dir(path))
	return err == nil && info.IsDir()
}
