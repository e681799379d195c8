// Flag values that check themselves, so that a wrong one is refused before anything is opened.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"glimpse/graphs"
)

// choice is one of a few words.
type choice struct {
	value *string
	words []string
}

func (c *choice) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}

func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("it must be one of %s", strings.Join(c.words, ", "))
	}
	*c.value = s
	return nil
}

func (c *choice) Type() string { return "word" }

// deviceName is a device as graphs know it.
type deviceName struct{ value *string }

func (d *deviceName) String() string {
	if d.value == nil {
		return ""
	}
	return *d.value
}

func (d *deviceName) Set(s string) error {
	if s == "" {
		return errors.New("it must be cpu, cuda, cuda:N or auto")
	}
	if _, _, _, err := graphs.ParseDevice(s); err != nil {
		return err
	}
	*d.value = s
	return nil
}

func (d *deviceName) Type() string { return "word" }

// count is a whole number that is at least min.
type count struct {
	value *int
	min   int
}

func (c *count) String() string {
	if c.value == nil {
		return "0"
	}
	return strconv.Itoa(*c.value)
}

func (c *count) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < c.min {
		return fmt.Errorf("it must be a whole number, at least %d", c.min)
	}
	*c.value = n
	return nil
}

func (c *count) Type() string { return "n" }

// logLevel is a slog level by name.
type logLevel struct {
	value *slog.Level
	given *bool // set when a level was asked for
}

func (l *logLevel) String() string {
	if l.value == nil {
		return ""
	}
	return strings.ToLower(l.value.String())
}

func (l *logLevel) Set(s string) error {
	switch s {
	case "debug", "info", "warn", "error":
		*l.given = true
		return l.value.UnmarshalText([]byte(s))
	}
	return errors.New("it must be one of debug, info, warn, error")
}

func (l *logLevel) Type() string { return "level" }

// counts is a list of whole numbers, each at least 1.
type counts struct{ value *[]int }

func (c *counts) String() string {
	if c.value == nil {
		return ""
	}
	words := make([]string, len(*c.value))
	for i, n := range *c.value {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

func (c *counts) Set(s string) error {
	var list []int
	for word := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 1 || n > 1024 {
			return errors.New("it must be whole numbers from 1 to 1024, with commas between")
		}
		list = append(list, n)
	}
	*c.value = list
	return nil
}

func (c *counts) Type() string { return "n,n…" }

// writeJSON prints a value as indented JSON.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// byteCount is a number of bytes with a unit.
type byteCount struct{ value *int64 }

// byteUnits are the units that byteCount knows, longest first.
var byteUnits = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}}

func (b *byteCount) String() string {
	if b.value == nil {
		return "0"
	}
	return strconv.FormatInt(*b.value, 10)
}

func (b *byteCount) Set(s string) error {
	number, factor := s, int64(1)
	for _, unit := range byteUnits {
		if before, ok := strings.CutSuffix(s, unit.name); ok {
			number, factor = before, unit.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(n >= 0) || n*float64(factor) > 1<<60 {
		return errors.New("it must be a number of bytes, such as 12GiB or 800MB")
	}
	*b.value = int64(n * float64(factor))
	return nil
}

func (b *byteCount) Type() string { return "bytes" }
