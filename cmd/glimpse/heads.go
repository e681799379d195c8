// glimpse score and glimpse embed need a model with scoring or embedding heads. No family that converts today has any,
// and the commands say so by the model's name rather than being unknown.

package main

import (
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// HeadOptions are the flags of score and embed.
type HeadOptions struct {
	Images []string
	Texts  []string
	JSON   bool
}

// AddFlags adds the flags.
func (o *HeadOptions) AddFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.Images, "image", nil, "picture `file`; may be given several times")
	f.StringArrayVar(&o.Texts, "text", nil, "a text; may be given several times")
	f.BoolVar(&o.JSON, "json", false, "print JSON")
}

func newScore(a *app) *cobra.Command {
	return newHead("score MODEL --image F... --text T...", "Scores pictures against texts, for models with such heads", "scoring")
}

func newEmbed(a *app) *cobra.Command {
	return newHead("embed MODEL [--image F]... [--text T]...", "Embeds pictures and texts, for models with such heads", "embedding")
}

func newHead(use, short, head string) *cobra.Command {
	var o HeadOptions
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			m, err := manifest.Read(args[0])
			if err != nil {
				return badInput(err)
			}
			return badInputf("%s (%s) has no %s heads", args[0], m.Family, head)
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}
