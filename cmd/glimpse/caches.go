// The flags of what a model remembers between requests, and of what it guesses from that; docs/caches.md describes both.

package main

import (
	"errors"
	"strconv"

	"glimpse/engine"

	"github.com/spf13/pflag"
)

// defaultVisionCache is the default of --vision-cache: 28 pictures of LLaVA-1.5-7B, 800 of BLIP-2.
const defaultVisionCache = 256 << 20

// CacheOptions are the flags of the caches.
type CacheOptions struct {
	Vision     int64
	VisionDir  string
	VisionDisk int64
	Prefix     bool

	Speculation int // as engine.Options
}

// AddFlags adds the flags; several says that the command answers more than one request.
func (o *CacheOptions) AddFlags(f *pflag.FlagSet, several bool) {
	o.Vision = defaultVisionCache
	f.Var(&speculation{&o.Speculation}, "speculation", "tokens of an answer that are guessed from what came before: off, auto (where that is faster), or how many at once")
	if several {
		f.BoolVar(&o.Prefix, "prefix-cache", true, "prompts use the keys and values of those before that begin like them")
	}
	f.Var(&byteCount{&o.Vision}, "vision-cache", "`bytes` of pictures' features that are kept in memory; 0: none")
	f.StringVar(&o.VisionDir, "vision-cache-dir", "", "`folder` where pictures' features are kept for later runs as well")
	f.Var(&byteCount{&o.VisionDisk}, "vision-cache-dir-bytes", "`bytes` that this folder may hold; 0: 4 GiB")
}

// arguments are the flags that give a worker the same settings.
func (o CacheOptions) arguments() []string {
	return []string{
		"--vision-cache", strconv.FormatInt(o.Vision, 10), "--vision-cache-dir", o.VisionDir,
		"--vision-cache-dir-bytes", strconv.FormatInt(o.VisionDisk, 10), "--prefix-cache=" + strconv.FormatBool(o.Prefix),
		"--speculation", (&speculation{&o.Speculation}).String(),
	}
}

// speculation is auto, off, or a number of tokens.
type speculation struct{ value *int }

func (s *speculation) String() string {
	switch {
	case s.value == nil || *s.value == 0:
		return "off"
	case *s.value == engine.SpeculationAuto:
		return "auto"
	}
	return strconv.Itoa(*s.value)
}

func (s *speculation) Set(text string) error {
	switch n, err := strconv.Atoi(text); {
	case text == "auto":
		*s.value = engine.SpeculationAuto
	case text == "off":
		*s.value = 0
	case err == nil && n >= 1 && n <= engine.MaxSpeculation:
		*s.value = n
	default:
		return errors.New("it must be auto, off, or a number of tokens from 1 to " + strconv.Itoa(engine.MaxSpeculation))
	}
	return nil
}

func (s *speculation) Type() string { return "word" }
