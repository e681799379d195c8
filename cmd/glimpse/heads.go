// glimpse score and glimpse embed: models with heads that compare pictures with texts.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"glimpse/engine"
	"glimpse/manifest"
	"glimpse/preprocess"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// HeadOptions are the flags of score and embed.
type HeadOptions struct {
	Images    []string
	Texts     []string
	MaxPixels int
	NoEXIF    bool
	JSON      bool
	Score     string // of embed
}

// AddFlags adds the flags.
func (o *HeadOptions) AddFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.Images, "image", nil, "picture `file`; may be given several times")
	f.StringArrayVar(&o.Texts, "text", nil, "a text; may be given several times")
	o.MaxPixels = preprocess.DefaultMaxPixels
	f.Var(&count{&o.MaxPixels, 1}, "max-pixels", "largest width × height of a picture")
	f.BoolVar(&o.NoEXIF, "no-exif", false, "do not turn pictures upright")
	f.BoolVar(&o.JSON, "json", false, "print JSON")
}

func newScore(a *app) *cobra.Command {
	var o HeadOptions
	cmd := &cobra.Command{
		Use:   "score MODEL --image F... --text T...",
		Short: "Scores pictures against texts, for models with such heads",
		Long: "Prints, for each score that the model gives, a row a picture and a column a text. docs/scores.md says what the\n" +
			"numbers mean: of BLIP-2, itc is a cosine and itm a probability; InternVL 1.0's logits_c and logits_g are scaled cosines.",
		Example: "  glimpse score blip2-itm/ --image cat.jpg --image dog.jpg --text 'a cat' --text 'a dog'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runScore(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func newEmbed(a *app) *cobra.Command {
	var o HeadOptions
	cmd := &cobra.Command{
		Use:     "embed MODEL [--image F]... [--text T]...",
		Short:   "Embeds pictures and texts, for models with such heads",
		Long:    "Prints a vector of length 1 for each picture and each text, in the space that they share; docs/scores.md says more.",
		Example: "  glimpse embed blip2-itm/ --image cat.jpg --text 'a cat' --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEmbed(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&o.Score, "score", "", "the similarity whose embeddings are wanted, by its `name`, where a model has several")
	return cmd
}

// withHeads opens a model that has the heads, with the pictures read.
func withHeads(ctx context.Context, a *app, o HeadOptions, model, head string, f func(*engine.Engine, []engine.Picture) error) error {
	model, err := a.modelFolder(model)
	if err != nil {
		return err
	}
	m, err := manifest.Read(model)
	if err != nil {
		return badInput(err)
	}
	if m.Scoring == nil {
		return badInputf("%s (%s) has no %s heads", model, m.Family, head)
	}
	pictures, err := readPictures(o.Images, o.NoEXIF)
	if err != nil {
		return err
	}
	return a.withEngine(ctx, model, ModelOptions{Slots: 1, MaxPixels: o.MaxPixels}, func(e *engine.Engine) error { return f(e, pictures) })
}

func runScore(ctx context.Context, a *app, o HeadOptions, model string) error {
	return withHeads(ctx, a, o, model, "scoring", func(e *engine.Engine, pictures []engine.Picture) error {
		r, err := e.Score(ctx, engine.ScoreRequest{Pictures: pictures, Texts: o.Texts})
		if err != nil {
			return err
		}
		if !o.JSON {
			return printScores(a.stdout, o, r)
		}
		reply := map[string][][]float32{} // encoding/json sorts the keys
		for _, s := range r.Scores {
			reply[s.Name] = s.Values
		}
		return writeLine(a.stdout, reply)
	})
}

// writeLine prints a value as JSON on one line: indented, a vector takes a line a number.
func writeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// printScores prints a table a score: a row a picture, a column a text. Texts are long, so columns are numbered.
func printScores(w io.Writer, o HeadOptions, r *engine.ScoreResult) error {
	for j, text := range o.Texts {
		if _, err := fmt.Fprintf(w, "%d  %s\n", j+1, oneLineText(text)); err != nil {
			return fmt.Errorf("print scores: %w", err)
		}
	}
	t := newTable(w)
	for _, s := range r.Scores {
		t.row()
		head := []any{s.Name}
		for j := range o.Texts {
			head = append(head, j+1)
		}
		t.row(head...)
		for i, values := range s.Values {
			row := []any{oneLineText(filepath.Base(o.Images[i]))}
			for _, v := range values {
				row = append(row, fmt.Sprintf("%.4f", v))
			}
			t.row(row...)
		}
	}
	return t.flush()
}

// embedReply is the JSON of embed; its keys are public.
type embedReply struct {
	Data []embedded `json:"data"`
}

type embedded struct {
	Kind       string      `json:"kind"`   // image or text
	Source     string      `json:"source"` // the file, or the text itself
	Embedding  []float32   `json:"embedding"`
	Embeddings [][]float32 `json:"embeddings,omitempty"` // a picture's rows, where it has several
}

func runEmbed(ctx context.Context, a *app, o HeadOptions, model string) error {
	return withHeads(ctx, a, o, model, "embedding", func(e *engine.Engine, pictures []engine.Picture) error {
		r, err := e.Embed(ctx, engine.EmbedRequest{Pictures: pictures, Texts: o.Texts, Score: o.Score})
		if err != nil {
			return err
		}
		reply := embedReply{Data: []embedded{}}
		for i, v := range r.Pictures {
			reply.Data = append(reply.Data, embedded{"image", o.Images[i], v.Vector, v.Rows})
		}
		for i, v := range r.Texts {
			reply.Data = append(reply.Data, embedded{"text", o.Texts[i], v.Vector, nil})
		}
		if o.JSON {
			return writeLine(a.stdout, reply)
		}
		return printEmbeddings(a.stdout, reply)
	})
}

// printEmbeddings prints the beginning of each vector: whole ones are for --json.
func printEmbeddings(w io.Writer, r embedReply) error {
	const shown = 6
	t := newTable(w)
	t.row("kind", "source", "size", "begins")
	for _, d := range r.Data {
		size := fmt.Sprint(len(d.Embedding))
		if len(d.Embeddings) > 0 {
			size = fmt.Sprintf("%d (and %d rows)", len(d.Embedding), len(d.Embeddings))
		}
		begins := ""
		for _, v := range d.Embedding[:min(shown, len(d.Embedding))] {
			begins += fmt.Sprintf("%.4f ", v)
		}
		t.row(d.Kind, oneLineText(d.Source), size, begins+"…")
	}
	return t.flush()
}
