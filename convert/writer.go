// Writing a planned model into a folder that appears whole or not at all.

package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// embeddingsFile is the token table's name in a model folder.
const embeddingsFile = "embeddings.bin"

// copyChunk is how much of the token table or of a source file is held at once.
const copyChunk = 4 << 20

type writer struct {
	opts  Options
	src   *source
	plan  *families.Plan
	total int64 // bytes that will be written, but for the graphs' own

	done  atomic.Int64
	bytes int64
}

// write makes the folder. The source files are hashed beside the writing: their pages are in the cache then.
func (w *writer) write(ctx context.Context) (err error) {
	out := filepath.Clean(w.opts.Out)
	if err := checkSpace(filepath.Dir(out), w.total); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+".partial-")
	if err != nil {
		return fmt.Errorf("convert into %s: %w", out, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	group, gctx := errgroup.WithContext(ctx)
	var files []manifest.SourceFile
	group.Go(func() (err error) {
		files, err = hashFiles(gctx, w.src.files)
		return err
	})
	group.Go(func() error { return w.components(gctx, temp) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("convert %s: %w", w.opts.Checkpoint, err)
	}
	w.plan.Manifest.Source = manifest.Source{
		Name: w.src.release.Name, Architecture: w.src.architecture(), Repository: w.opts.Repository, Revision: w.opts.Revision, Files: files,
	}
	w.plan.Manifest.Converter = "glimpse " + w.opts.Version
	raw, err := w.plan.Manifest.Encode()
	if err != nil {
		return fmt.Errorf("convert %s: %w", w.opts.Checkpoint, err)
	}
	if err := writeFile(filepath.Join(temp, manifest.FileName), raw); err != nil {
		return err
	}
	w.bytes += int64(len(raw))
	return publish(temp, out)
}

// components writes the graphs one after the other (each uses every worker), then the table and the text files.
func (w *writer) components(ctx context.Context, folder string) error {
	m := &w.plan.Manifest
	m.Components = map[string]manifest.Component{}
	shared := onnx.NewShared()
	for _, c := range w.plan.Components {
		res, err := c.Builder.Write(ctx, filepath.Join(folder, c.Name+".onnx"), onnx.Options{
			Producer: "glimpse", Version: w.opts.Version, Workers: w.opts.Workers, Written: func(n int64) { w.advance(c.Name, n) }, Shared: shared,
		})
		if err != nil {
			return err
		}
		params, formats := c.Builder.Parameters()
		m.Components[c.Name] = manifest.Component{File: c.Name + ".onnx", Data: res.DataFile, Parameters: params, Bytes: res.ModelBytes + res.DataBytes,
			Precision: formats, Inputs: ports(c.Builder.Inputs), Outputs: ports(c.Builder.Outputs)}
		w.bytes += res.ModelBytes + res.DataBytes
	}
	if w.plan.Embeddings != nil {
		if err := w.embeddings(ctx, folder); err != nil {
			return err
		}
	}
	for _, f := range w.plan.Files {
		if err := writeFile(filepath.Join(folder, f.Name), f.Content); err != nil {
			return err
		}
		w.bytes += int64(len(f.Content))
	}
	return nil
}

func (w *writer) advance(component string, n int64) {
	done := w.done.Add(n)
	if w.opts.Progress != nil {
		w.opts.Progress(Progress{Component: component, Done: done, Total: w.total})
	}
}

// embeddingDType is the manifest's name for a dtype that the token table may have, or empty.
func embeddingDType(d checkpoint.DType) string {
	switch d {
	case "F32":
		return "float32"
	case "F16":
		return "float16"
	case "BF16":
		return "bfloat16"
	}
	return ""
}

// embeddings copies the token table as it is stored: looking rows up widens them.
func (w *writer) embeddings(ctx context.Context, folder string) (err error) {
	e := w.plan.Embeddings
	info, _ := w.src.tensors.Inventory().Lookup(e.Tensor)
	dtype := embeddingDType(info.DType)
	if dtype == "" {
		return &inputError{fmt.Errorf("%s has dtype %s; a token table is F32, F16 or BF16", e.Tensor, info.DType)}
	}
	f, err := os.Create(filepath.Join(folder, embeddingsFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(info.Bytes(), copyChunk))
	for at := int64(0); at < info.Bytes(); at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf = buf[:min(int64(len(buf)), info.Bytes()-at)]
		if err := w.src.weights.ReadRaw(ctx, w.src.tensors.StoredName(e.Tensor), at, buf); err != nil {
			return err
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
		w.advance("embeddings", int64(len(buf)))
	}
	w.src.weights.Release(w.src.tensors.StoredName(e.Tensor))
	w.plan.Manifest.Embeddings = &manifest.Embeddings{File: embeddingsFile, DType: dtype, Rows: int(e.Rows), HiddenSize: int(e.Hidden), Scale: e.Scale}
	w.bytes += info.Bytes()
	return f.Sync()
}

// checkSpace compares what will be written with what the file system has free, before an hour is spent.
func checkSpace(folder string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return nil // a file system that does not say is tried
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("convert into %s: %d MB are needed and %d MB are free", folder, need>>20, free>>20)
	}
	return nil
}

// hashFiles returns the SHA-256 of each file.
func hashFiles(ctx context.Context, files []checkpoint.File) ([]manifest.SourceFile, error) {
	out := make([]manifest.SourceFile, 0, len(files))
	buf := make([]byte, copyChunk)
	for _, file := range files {
		sum, err := hashFile(ctx, file.Path, buf)
		if err != nil {
			return nil, err
		}
		out = append(out, manifest.SourceFile{Name: file.Name, Bytes: file.Bytes, SHA256: sum})
	}
	return out, nil
}

func hashFile(ctx context.Context, path string, buf []byte) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() // read only
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", path, err)
		}
	}
}

func writeFile(path string, data []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// publish moves the finished folder into place. An existing one (Force) is moved aside first and comes back when the
// rename fails, so that there is a whole model under the name at every moment but one.
func publish(temp, out string) error {
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	old := ""
	if _, err := os.Lstat(out); err == nil {
		old = temp + ".old"
		if err := os.Rename(out, old); err != nil {
			return fmt.Errorf("replace %s: %w", out, err)
		}
	}
	if err := os.Rename(temp, out); err != nil {
		if old != "" {
			err = errors.Join(err, os.Rename(old, out))
		}
		return fmt.Errorf("put the model at %s: %w", out, err)
	}
	if old != "" {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("remove the replaced model: %w", err)
		}
	}
	return syncFolder(filepath.Dir(out))
}

// syncFolder makes the rename durable.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
