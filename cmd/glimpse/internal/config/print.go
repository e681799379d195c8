package config

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

// Print writes the settings of a command as a glimpse.toml, each with where it comes from.
func Print(w io.Writer, flags *pflag.FlagSet, sources Sources) error {
	var text strings.Builder
	for _, k := range keys {
		flag := flags.Lookup(k.flag())
		if flag == nil {
			continue
		}
		source := sources[flag.Name]
		var value any = flag.Value.String()
		switch list, isList := flag.Value.(pflag.SliceValue); {
		case isList:
			value = list.GetSlice()
		case flag.Value.Type() == "n" || flag.Value.Type() == "bool":
			if err := toml.Unmarshal([]byte("v = "+flag.Value.String()), &struct{ V *any }{&value}); err != nil {
				return fmt.Errorf("print %s: %w", k, err)
			}
		case k == ortLib && source == "" && os.Getenv(k.env()) != "": // which graphs reads, not this package
			value, source = os.Getenv(k.env()), k.env()
		}
		line, err := toml.Marshal(map[string]any{string(k): value})
		if err != nil {
			return fmt.Errorf("print %s: %w", k, err)
		}
		if source == "" {
			source = "default"
		}
		fmt.Fprintf(&text, "%-40s # %s\n", strings.TrimSpace(string(line)), source)
	}
	if _, err := io.WriteString(w, text.String()); err != nil {
		return fmt.Errorf("print the configuration: %w", err)
	}
	return nil
}

// nearby is how many letters a variable may be off to be taken for a misspelt one.
const nearby = 2

// Strange says which variables look like misspelt settings. They are no errors: the environment has many writers, and
// Kubernetes makes variables of its own for a service that is called glimpse.
func Strange(environ []string) (complaints []string) {
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "GLIMPSE") {
			continue
		}
		nearest, best := "", nearby+1
		for _, k := range append([]key{"config"}, keys...) {
			if d := distance(name, k.env()); d < best {
				nearest, best = k.env(), d
			}
		}
		if best > 0 && best <= nearby {
			complaints = append(complaints, fmt.Sprintf("%s is no setting and is passed over; did you mean %s?", name, nearest))
		}
	}
	return complaints
}
