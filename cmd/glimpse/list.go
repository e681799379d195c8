// glimpse list, glimpse rm: what the models folder has, and away with it.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/hub"
	"glimpse/manifest"

	"github.com/spf13/cobra"
)

// listed is one model of the models folder.
type listed struct {
	Name         string `json:"name"`
	Path         string `json:"path"`
	Family       string `json:"family,omitempty"`
	Architecture string `json:"architecture,omitempty"`
	Precision    string `json:"precision,omitempty"`
	Bytes        int64  `json:"bytes"`
	Repository   string `json:"repository,omitempty"`
	Revision     string `json:"revision,omitempty"`
	Problem      string `json:"problem,omitempty"`
}

func newList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Lists the models of the models folder",
		Long:    "Lists the models that can be called by their names. Exit status 1 when one of them is broken.",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return runList(a, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runList(a *app, asJSON bool) error {
	dir, err := a.modelsDir()
	if err != nil {
		return err
	}
	models, err := listModels(dir)
	if err != nil {
		return badInput(err)
	}
	if asJSON {
		err = writeJSON(a.stdout, map[string]any{"folder": dir, "models": models})
	} else {
		err = printModels(a, dir, models)
	}
	if err == nil && slices.ContainsFunc(models, func(m listed) bool { return m.Problem != "" }) {
		return errFound
	}
	return err
}

// listModels looks at each model folder in dir; a folder that is not there is empty.
func listModels(dir string) ([]listed, error) {
	models := []listed{}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return models, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the models folder: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, err := os.Stat(filepath.Join(path, manifest.FileName)); err != nil || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		l := listed{Name: e.Name(), Path: path}
		m, err := manifest.Read(path)
		if err == nil {
			l.Family, l.Architecture, l.Precision, l.Repository, l.Revision = m.Family, m.Source.Architecture, m.Precision, m.Source.Repository, m.Source.Revision
			if missing := inspect(path, m).MissingFile; len(missing) > 0 {
				err = fmt.Errorf("it lacks %s", strings.Join(missing, ", "))
			}
		}
		if err == nil {
			l.Bytes, err = folderSize(path)
		}
		if err != nil {
			l.Problem = err.Error()
		}
		models = append(models, l)
	}
	return models, nil
}

func printModels(a *app, dir string, models []listed) error {
	if len(models) == 0 {
		_, err := fmt.Fprintf(a.stdout, "no models in %s; `glimpse pull ORG/NAME` fetches one\n", dir)
		return err
	}
	t := newTable(a.stdout)
	t.row("name", "family", "precision", "size", "source")
	for _, m := range models {
		source := m.Repository
		if source != "" {
			source = fmt.Sprintf("%s@%.12s", m.Repository, m.Revision)
		}
		if m.Problem != "" {
			source = "broken: " + oneLineText(m.Problem)
		}
		t.row(oneLineText(m.Name), firstOf(m.Family, "-"), firstOf(m.Precision, "-"), byteSize(m.Bytes), firstOf(oneLineText(source), "-"))
	}
	return t.flush()
}

func newRemove(a *app) *cobra.Command {
	var cache, asJSON bool
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Removes models from the models folder",
		Long: "Removes the named models without asking. What is no model is refused. With --cache the release that a model was\n" +
			"made from leaves the hub's cache too, but for what other revisions share with it.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRemove(cmd.Context(), a, args, cache, asJSON)
		},
	}
	cmd.Flags().BoolVar(&cache, "cache", false, "remove the release from the hub's cache too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// removed is one line of rm's JSON.
type removed struct {
	Name        string `json:"name"`
	Path        string `json:"path"`
	Bytes       int64  `json:"bytes"`
	CachedBytes int64  `json:"cached_bytes"` // those that left the hub's cache
}

func runRemove(ctx context.Context, a *app, names []string, cache, asJSON bool) error {
	dir, err := a.modelsDir()
	if err != nil {
		return err
	}
	// All are judged before one is gone.
	models := map[string]*manifest.Manifest{}
	var wrong []error
	for _, name := range names {
		m, err := removable(dir, name)
		models[name] = m
		wrong = append(wrong, err)
	}
	if err := errors.Join(wrong...); err != nil {
		return badInput(err)
	}
	done := []removed{}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		r, err := removeModel(ctx, a, dir, name)
		if err == nil && cache {
			r.CachedBytes, err = removeCached(a, name, models[name])
		}
		if err != nil {
			return err
		}
		done = append(done, r)
	}
	if asJSON {
		return writeJSON(a.stdout, map[string]any{"removed": done})
	}
	for _, r := range done {
		fmt.Fprintf(a.stdout, "removed %s: %s", r.Name, byteSize(r.Bytes))
		if cache {
			fmt.Fprintf(a.stdout, ", and %s of the hub's cache", byteSize(r.CachedBytes))
		}
		fmt.Fprintln(a.stdout)
	}
	return nil
}

// removable returns a model's manifest, if it could be read; what is no model by its name is an error.
func removable(dir, name string) (*manifest.Manifest, error) {
	if !modelNames.MatchString(name) {
		return nil, fmt.Errorf("rm %s: that is no model's name (paths are not taken: remove such a folder yourself)", name)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(filepath.Join(path, manifest.FileName)); err != nil {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("rm %s: %s has no %s: it is no model, and stays", name, path, manifest.FileName)
		}
		return nil, fmt.Errorf("rm %s: there is no model of that name in %s", name, dir)
	}
	m, err := manifest.Read(path)
	if err != nil {
		return nil, nil //nolint:nilerr // a broken model may go, that is what rm is for
	}
	return m, nil
}

// removeModel takes the folder out of sight at once, so that nobody opens half a model, and then removes it.
func removeModel(ctx context.Context, a *app, dir, name string) (removed, error) {
	unlock, err := lockModel(ctx, a, dir, name)
	if err != nil {
		return removed{}, err
	}
	defer unlock()
	r := removed{Name: name, Path: filepath.Join(dir, name)}
	if r.Bytes, err = folderSize(r.Path); err != nil {
		return r, fmt.Errorf("rm %s: %w", name, err)
	}
	away, err := os.MkdirTemp(dir, "."+name+".removed-")
	if err != nil {
		return r, fmt.Errorf("rm %s: %w", name, err)
	}
	err = os.Rename(r.Path, filepath.Join(away, name))
	if err = errors.Join(err, os.RemoveAll(away)); err != nil {
		return r, fmt.Errorf("rm %s: %w", name, err)
	}
	return r, nil
}

// removeCached removes the release that a model was made from. That it is gone already is no error.
func removeCached(a *app, name string, m *manifest.Manifest) (int64, error) {
	if m == nil || m.Source.Repository == "" {
		a.log.Warn("the model does not say which release it was made from, so the hub's cache stays as it is", "model", name)
		return 0, nil
	}
	options, err := hub.FromEnvironment(os.Getenv)
	if err != nil {
		return 0, err
	}
	client, err := hub.New(options)
	if err != nil {
		return 0, err
	}
	freed, err := client.Remove(m.Source.Repository, m.Source.Revision)
	if errors.Is(err, hub.ErrAbsent) {
		return 0, nil
	}
	return freed, err
}
