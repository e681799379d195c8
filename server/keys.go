// API keys. The file holds hashes, so reading it gives nobody access.

package server

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Keys are the API keys that a server takes.
type Keys struct {
	names  []string
	hashes [][sha256.Size]byte
	quotas []*quota // nil: without limits
}

// keyLimits are what a key may use a minute; 0: as much as it wants.
type keyLimits struct{ requests, tokens int64 }

// The limits that a line may name.
const (
	limitRequests = "requests_per_minute"
	limitTokens   = "tokens_per_minute"
)

// Bounds of a key file.
const (
	maxKeyFileBytes = 1 << 20
	maxKeys         = 4096
)

// LoadKeys reads a key file: one key a line, its SHA-256 in hex and, after spaces, a name for logs and metrics and limits as
// in "requests_per_minute=60 tokens_per_minute=20000"; empty lines and lines that begin with # do not count.
// `printf %s "$KEY" | sha256sum` makes the hash. Keys should be long and random: a hash does not hide a guessable one. Every
// problem of the file is in the error.
func LoadKeys(path string) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read API keys: %w", err)
	}
	defer f.Close()
	k, err := parseKeys(io.LimitReader(f, maxKeyFileBytes))
	if err != nil {
		return nil, fmt.Errorf("read API keys %s: %w", path, err)
	}
	return k, nil
}

func parseKeys(r io.Reader) (*Keys, error) {
	var (
		k        Keys
		problems []error
		seen     = map[string]bool{}
	)
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		raw, err := hex.DecodeString(fields[0])
		if err != nil || len(raw) != sha256.Size {
			problems = append(problems, fmt.Errorf("line %d does not begin with the 64 hex digits of a SHA-256", n))
			continue
		}
		words, limits, err := parseLimits(fields[1:])
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		name := strings.Join(words, " ")
		if name == "-" || name == "" { // sha256sum prints "-" for its standard input
			name = fmt.Sprintf("line %d", n)
		}
		if seen[name] {
			problems = append(problems, fmt.Errorf("line %d: the name %q is there twice", n, name))
		}
		seen[name] = true
		k.names, k.hashes, k.quotas = append(k.names, name), append(k.hashes, [sha256.Size]byte(raw)), append(k.quotas, newQuota(limits))
	}
	if err := lines.Err(); err != nil {
		problems = append(problems, err)
	}
	if len(problems) == 0 && (len(k.names) == 0 || len(k.names) > maxKeys) {
		problems = append(problems, fmt.Errorf("it has %d keys; it must have 1 to %d", len(k.names), maxKeys))
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return &k, nil
}

// parseLimits takes the limits out of the words behind a hash.
func parseLimits(fields []string) (words []string, limits keyLimits, err error) {
	var problems []error
	for _, field := range fields {
		name, value, ok := strings.Cut(field, "=")
		if !ok {
			words = append(words, field)
			continue
		}
		var into *int64
		switch name {
		case limitRequests:
			into = &limits.requests
		case limitTokens:
			into = &limits.tokens
		default:
			problems = append(problems, fmt.Errorf("unknown limit %q; known are %s and %s", name, limitRequests, limitTokens))
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 1 || n > maxLimit || *into != 0 {
			problems = append(problems, fmt.Errorf("%s must be there once and a whole number from 1 to %d, not %q", name, int64(maxLimit), value))
			continue
		}
		*into = n
	}
	return words, limits, errors.Join(problems...)
}

// maxLimit keeps a minute's worth exact in a float64, and sums of it too.
const maxLimit = 1 << 40

// match finds a key. It compares with every hash, in the same time whichever one it is.
func (k *Keys) match(key string) (name string, q *quota, ok bool) {
	hash := sha256.Sum256([]byte(key))
	found := -1
	for i := range k.hashes {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], k.hashes[i][:]), i, found)
	}
	if key == "" || found < 0 {
		return "", nil, false
	}
	return k.names[found], k.quotas[found], true
}
