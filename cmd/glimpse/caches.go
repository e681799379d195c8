// The flags of what a model remembers between requests; docs/caches.md describes it.

package main

import (
	"strconv"

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
}

// AddFlags adds the flags; several says that the command answers more than one request.
func (o *CacheOptions) AddFlags(f *pflag.FlagSet, several bool) {
	o.Vision = defaultVisionCache
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
	}
}
