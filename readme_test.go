package glimpse_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeFamiliesAreVerified holds the README's table to the tests: each golden set it names is in the repository and
// verified by a test of engine/verify, and each set that is here is named in the table.
func TestReadmeFamiliesAreVerified(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(readme), "| family | upstream class | verified against |")
	if !found {
		t.Fatal("README.md has no table of families")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	listed := map[string]bool{}
	for _, set := range regexp.MustCompile(`[a-z0-9]+(-[a-z0-9]+)*-tiny`).FindAllString(table, -1) {
		listed[set] = true
	}
	tests, err := filepath.Glob("engine/verify/*_test.go")
	if err != nil || len(tests) == 0 {
		t.Fatalf("no tests of engine/verify: %v", err)
	}
	var sources strings.Builder
	for _, name := range tests {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources.Write(raw)
	}
	for set := range listed {
		if _, err := os.Stat(filepath.Join("testdata/goldens", set, "cases.json")); err != nil {
			t.Errorf("the README names %s: %v", set, err)
		}
		if !strings.Contains(sources.String(), `"`+set+`"`) {
			t.Errorf("the README names %s, which no test of engine/verify runs", set)
		}
	}
	sets, err := filepath.Glob("testdata/goldens/*-tiny")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sets {
		if set := filepath.Base(path); !listed[set] {
			t.Errorf("testdata/goldens has %s and the README's table does not name it", set)
		}
	}
}
