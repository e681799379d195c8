// glimpse pull: a release from a hub becomes a model in the models folder.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"glimpse/convert"
	"glimpse/hub"
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// PullOptions are the flags of pull.
type PullOptions struct {
	Name      string
	Precision string
	Target    string
	NoConvert bool
	Force     bool
	Parallel  int
	JSON      bool

	precisionGiven, targetGiven bool
}

// AddFlags adds the flags.
func (o *PullOptions) AddFlags(f *pflag.FlagSet) {
	o.Precision = "auto"
	f.StringVar(&o.Name, "name", "", "the model's `name` here; default: that of the repository")
	f.Var(&choice{&o.Precision, []string{"auto", "fp32", "fp16", "int8", "int4"}}, "precision", "how weights are stored: auto, fp32, fp16, int8, int4")
	o.Target = "cpu"
	f.Var(&choice{&o.Target, []string{"cpu", "cuda"}}, "target", "what the graphs are made for: cpu, cuda")
	f.BoolVar(&o.NoConvert, "no-convert", false, "fetch only")
	f.BoolVar(&o.Force, "force", false, "convert anew, and replace a model of that name whatever it was made from")
	f.Var(&count{&o.Parallel, 0}, "parallel", "files that are fetched at once; 0: 4")
	f.BoolVar(&o.JSON, "json", false, "print the summary as JSON")
}

func newPull(a *app) *cobra.Command {
	var o PullOptions
	cmd := &cobra.Command{
		Use:   "pull ORG/NAME[@REV]",
		Short: "Fetches a release from a hub and converts it",
		Long: "Fetches what convert needs of a release from a hub that speaks the Hugging Face protocol (HF_ENDPOINT, HF_TOKEN),\n" +
			"into the cache that the hub's own tools use (HF_HOME, HF_HUB_CACHE), and converts it into the models folder, from\n" +
			"where the other commands take it by its name. Interrupted, it goes on where it stopped.",
		Example: "  glimpse pull llava-hf/llava-1.5-7b-hf --precision int4\n  glimpse serve llava-1.5-7b-hf",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.precisionGiven = cmd.Flags().Changed("precision")
			o.targetGiven = cmd.Flags().Changed("target")
			return runPull(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

// pulled is the JSON of pull.
type pulled struct {
	Repository string           `json:"repository"`
	Revision   string           `json:"revision"`
	Snapshot   string           `json:"snapshot"`
	Files      int              `json:"files"`
	Bytes      int64            `json:"bytes"`
	Fetched    int64            `json:"fetched_bytes"`
	Parts      []pulled         `json:"parts,omitempty"` // other releases that it is made of
	Name       string           `json:"name,omitempty"`
	Model      string           `json:"model,omitempty"` // its folder
	Conversion *convert.Summary `json:"conversion,omitempty"`
}

func runPull(ctx context.Context, a *app, o PullOptions, text string) error {
	ref, err := hub.ParseReference(text)
	if err != nil {
		return err
	}
	if o.NoConvert && (o.Name != "" || o.precisionGiven || o.targetGiven || o.Force) {
		return badInputf("pull: --no-convert makes no model, so --name, --precision, --target and --force say nothing")
	}
	name := firstOf(o.Name, ref.Name())
	if !modelNames.MatchString(name) {
		return badInputf("pull: %q cannot be a model's name: letters, digits, point, dash and underscore, and no point or dash at its beginning (--name)", name)
	}
	result, err := pullRelease(ctx, a, o, ref, convert.Needs)
	if err == nil && !o.NoConvert {
		err = convertPulled(ctx, a, o, name, result)
	}
	if err != nil {
		return err
	}
	if o.JSON {
		return writeJSON(a.stdout, result)
	}
	return printPulled(a, result)
}

// pullRelease brings what is needed of a release into the cache.
func pullRelease(ctx context.Context, a *app, o PullOptions, ref hub.Reference, needs hub.Choose) (*pulled, error) {
	options, err := hub.FromEnvironment(os.Getenv)
	if err != nil {
		return nil, err
	}
	m := a.newMeter("pull", unitBytes)
	defer m.close()
	options.Parallel, options.Logger, options.UserAgent = o.Parallel, a.log, "glimpse/"+buildVersion().Version
	options.Progress = func(p hub.Progress) { m.update(p.Done, p.Total, p.Cached, p.File) }
	client, err := hub.New(options)
	if err != nil {
		return nil, err
	}
	s, err := client.Pull(ctx, ref, needs)
	if err != nil {
		return nil, fmt.Errorf("pull %w", err)
	}
	return &pulled{Repository: s.Repository, Revision: s.Revision, Snapshot: s.Folder, Files: len(s.Files), Bytes: s.Bytes, Fetched: s.Fetched}, nil
}

// convertPulled makes the model, unless it is there as it would be.
func convertPulled(ctx context.Context, a *app, o PullOptions, name string, result *pulled) error {
	dir, err := a.modelsDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("the models folder: %w", err)
	}
	unlock, err := lockModel(ctx, a, dir, name)
	if err != nil {
		return err
	}
	defer unlock()
	result.Name, result.Model = name, filepath.Join(dir, name)
	there, err := manifest.Read(result.Model)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !o.Force:
		return badInputf("%s is broken: replace it with --force: %w", result.Model, err)
	case err != nil || o.Force:
	case there.Source.Repository != result.Repository:
		return badInputf("there is a model %s already, from %s: give this one another name with --name, or replace that one with --force", name, origin(there))
	case there.Source.Revision == result.Revision && (!o.precisionGiven || there.Precision == o.Precision) && (!o.targetGiven || targetOf(there) == o.Target):
		return nil
	default: // another revision of the same model, or another kind: for the rest as it was made
		if !o.precisionGiven {
			o.Precision = there.Precision
		}
		if !o.targetGiven {
			o.Target = targetOf(there)
		}
	}
	if o.Force {
		if err := replaceable(result.Model); err != nil {
			return err
		}
	}
	result.Conversion, err = convertWithParts(ctx, a, o, result)
	return err
}

// targetOf is the --target that a model was made with.
func targetOf(m *manifest.Manifest) string { return cmp.Or(m.Target, "cpu") }

// maxParts bounds the other releases that one is made of.
const maxParts = 4

// convertWithParts converts, and pulls the other releases that the release turns out to be made of.
func convertWithParts(ctx context.Context, a *app, o PullOptions, result *pulled) (*convert.Summary, error) {
	parts := map[string]string{}
	for {
		m := a.newMeter("convert", unitBytes)
		summary, err := convert.Convert(ctx, convert.Options{
			Checkpoint: result.Snapshot, Out: result.Model, Precision: o.Precision, Target: o.Target, Force: true, Version: buildVersion().Version, Logger: a.log,
			Name: filepath.Base(result.Repository), Repository: result.Repository, Revision: result.Revision, Parts: parts,
			Progress: func(p convert.Progress) { m.update(p.Done, p.Total, 0, p.Component) },
		})
		m.close()
		var missing *convert.MissingPartError
		if err == nil || !errors.As(err, &missing) || len(parts) == maxParts {
			return summary, err
		}
		ref, parseErr := hub.ParseReference(missing.Reference)
		if parseErr != nil {
			return nil, err // it names no repository, so the advice of the error is what is left
		}
		part, err := pullRelease(ctx, a, o, ref, convert.NeedsPart)
		if err != nil {
			return nil, fmt.Errorf("the %s of %s is another release: %w", missing.Part, result.Repository, err)
		}
		parts[missing.Part] = part.Snapshot
		result.Parts = append(result.Parts, *part)
	}
}

func printPulled(a *app, p *pulled) error {
	for _, r := range append([]pulled{*p}, p.Parts...) {
		fmt.Fprintf(a.stdout, "pulled %s@%.12s: %d files, %s (%s fetched) in %s\n", r.Repository, r.Revision, r.Files, byteSize(r.Bytes), byteSize(r.Fetched), r.Snapshot)
	}
	if p.Conversion != nil {
		if err := printConversion(a, p.Conversion); err != nil {
			return err
		}
	} else if p.Name != "" {
		fmt.Fprintf(a.stdout, "%s is made from it already (--force makes it anew)\n", p.Model)
	}
	if p.Name == "" {
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "its name is %s: glimpse serve %s\n", p.Name, p.Name)
	return err
}

// origin says for people what a model was made from.
func origin(m *manifest.Manifest) string {
	if m.Source.Repository == "" {
		return "the checkpoint " + m.Source.Name
	}
	return fmt.Sprintf("%s@%.12s", m.Source.Repository, m.Source.Revision)
}
