// The models folder: models by name, so that they need not be called by their paths.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"glimpse/manifest"
)

// modelNames are the names that models may have there. What begins with a point is being written or removed.
var modelNames = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$`)

// modelsDir is the models folder: --models, or one in the user's data folder.
func (a *app) modelsDir() (string, error) {
	if a.global.Models != "" {
		return a.global.Models, nil
	}
	data := os.Getenv("XDG_DATA_HOME")
	if data == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", badInputf("where are the models? name their folder with --models or GLIMPSE_MODELS: %w", err)
		}
		data = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(data, "glimpse", "models"), nil
}

// modelFolder is the folder of a MODEL argument: the path itself, or else the model of that name in the models folder. A
// model that was pulled may be called by the name of its repository too.
func (a *app) modelFolder(text string) (string, error) {
	if _, err := os.Stat(text); !errors.Is(err, fs.ErrNotExist) {
		return text, nil
	}
	org, name, repository := strings.Cut(text, "/")
	if !repository {
		name = org
	}
	if !modelNames.MatchString(name) || repository && !modelNames.MatchString(org) {
		return text, nil // a path, and whoever opens it says what is wrong with it
	}
	dir, err := a.modelsDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(dir, name)
	m, err := manifest.Read(folder)
	switch {
	case err == nil && (!repository || m.Source.Repository == text):
		return folder, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", badInput(err)
	}
	return "", badInputf("%s: there is no such folder, and no model of that name in %s; `glimpse list` shows those that are there, `glimpse pull` fetches more", text, dir)
}

// named puts the folder of the model in the place of its name.
func (a *app) named(args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	folder, err := a.modelFolder(args[0])
	if err != nil {
		return nil, err
	}
	return append([]string{folder}, args[1:]...), nil
}

// lockModel keeps other processes from writing or removing the model until unlock. It waits for them.
func lockModel(ctx context.Context, a *app, dir, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "."+name+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the model %s: %w", name, err)
	}
	for told := false; ; told = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing unlocks; the file stays, or two could lock two files of one name
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the model %s: %w", name, err), f.Close())
		}
		if !told {
			fmt.Fprintf(a.stderr, "glimpse: another process is at work on %s; waiting for it\n", name)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// folderSize adds up the files of a folder.
func folderSize(folder string) (int64, error) {
	var total int64
	err := filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
