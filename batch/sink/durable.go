// Files that are there whole or not at all.

package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// asideSuffix ends the names of files under way. They are removed when an output is opened.
const asideSuffix = ".aside"

// replaceFile writes a file aside, makes it durable and gives it its name. write gets the file; step names the failpoints.
func (o *Options) replaceFile(aside, path, step string, write func(*os.File) error) (err error) {
	f, err := os.Create(aside)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(aside)
		}
	}()
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	o.Hook(step + ".fsync")
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	o.Hook(step + ".rename")
	if err := os.Rename(aside, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	o.Hook(step + ".folder")
	return syncFolder(filepath.Dir(path))
}

func (o *Options) replaceJSON(aside, path, step string, v any) error {
	return o.replaceFile(aside, path, step, func(f *os.File) error {
		text, err := json.MarshalIndent(v, "", "  ")
		if err == nil {
			_, err = f.Write(append(text, '\n'))
		}
		return err
	})
}

// readJSON returns false where there is no such file.
func readJSON(path string, v any) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, fs.ErrInvalid) {
		return fmt.Errorf("sync folder %s: %w", path, err) // EINVAL: a file system without this call
	}
	return nil
}

// lock keeps other runs away from an output until the file is closed.
func lock(f *os.File, what string) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("%w: output %s is being written by another run", ErrInput, what)
		}
		return fmt.Errorf("lock %s: %w", what, err)
	}
	return nil
}
