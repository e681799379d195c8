package glimpse_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// These tests hold the code to docs/architecture.md. They read imports only, so they run without building anything.

// mayImport lists, for each package of ours, those it may import; "*" is any. A package that is not here is an error:
// add it to the table and to docs/architecture.md. Test files may import whatever lies below their package at any distance,
// and convert: the running half is tested on models that its tests convert.
var mayImport = map[string][]string{
	"cmd/glimpse":           {"*"},
	"bench/accuracy":        {"*"},
	"bench/quality":         {"*"},
	"bench/demo":            {},
	"server":                {"server/spec", "media", "engine", "manifest"},
	"server/spec":           {},
	"server/browser":        {"server", "engine", "graphs"},
	"batch":                 {"batch/sink", "batch/source", "batch/journal", "batch/phash", "batch/row", "engine", "manifest"},
	"batch/sink":            {"batch/journal", "batch/row"},
	"batch/journal":         {"batch/row"},
	"batch/source":          {"batch/row"},
	"batch/queue":           {"batch/row"},
	"batch/report":          {"batch/row"},
	"batch/store":           {"batch/source"},
	"batch/phash":           {},
	"batch/row":             {},
	"hub":                   {},
	"hub/hubtest":           {},
	"media":                 {"preprocess", "manifest"},
	"worker":                {"engine", "graphs", "manifest"},
	"engine/verify":         {"media", "engine", "graphs", "preprocess", "tokenizer", "manifest"},
	"engine/replay":         {"engine", "graphs"},
	"engine":                {"graphs", "preprocess", "tokenizer", "manifest"},
	"graphs":                {"graphs/kernels"},
	"graphs/kernels":        {},
	"graphs/graphstest":     {"graphs"},
	"preprocess":            {"manifest"},
	"tokenizer":             {},
	"manifest":              {},
	"convert":               {"convert/families", "convert/blocks", "convert/calibration", "convert/quantize", "convert/onnx", "convert/checkpoint", "convert/sentencepiece", "manifest"},
	"convert/families":      {"convert/tiktoken", "convert/blocks", "convert/onnx", "convert/checkpoint", "convert/quantize", "manifest"},
	"convert/calibration":   {"convert/checkpoint"},
	"convert/blocks":        {"convert/calibration", "convert/checkpoint", "convert/onnx", "convert/quantize", "manifest"},
	"convert/quantize":      {},
	"convert/tiktoken":      {},
	"convert/sentencepiece": {},
	"convert/onnx":          {},
	"convert/checkpoint":    {},
}

// onlyIn lists modules that few packages may import.
var onlyIn = map[string][]string{
	"github.com/yalue/onnxruntime_go":     {"graphs"},
	"github.com/daulet/tokenizers":        {"tokenizer"},
	"github.com/labstack/echo":            {"server"},
	"google.golang.org/protobuf":          {"convert/onnx", "convert/sentencepiece", "cmd/glimpse"}, // cmd: tests that receive traces
	"github.com/prometheus/client_golang": {"server"},
	"go.opentelemetry.io":                 {"server", "cmd/glimpse"},
	"github.com/nats-io":                  {"batch/queue"},
	"gocloud.dev":                         {"batch/store"},
	"github.com/nfnt/resize":              {"batch/report"},
}

const module = "glimpse"

// maxLines bounds a file; longer ones hide more than one thing.
const maxLines = 500

type goFile struct {
	path    string // from the root, with slashes
	folder  string
	text    []byte
	name    string // of the package
	imports []string
}

func (f goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || entry.Name() == "bin") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%v", err)
			return nil
		}
		file := goFile{path: filepath.ToSlash(path), text: text, name: parsed.Name.Name}
		file.folder = filepath.ToSlash(filepath.Dir(path))
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			file.imports = append(file.imports, name)
		}
		files = append(files, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found")
	}
	return files
}

// owner is the entry of mayImport that a folder belongs to: its own, or for an internal folder that of its parent.
func owner(folder string) (string, bool) {
	if at := strings.Index(folder+"/", "/internal/"); at >= 0 {
		folder = folder[:at]
	}
	_, ok := mayImport[folder]
	return folder, ok
}

func TestArchitectureImports(t *testing.T) {
	for _, file := range goFiles(t) {
		if file.folder == "." {
			continue
		}
		from, ok := owner(file.folder)
		if !ok {
			t.Errorf("%s: package %s is not in the table of this test", file.path, file.folder)
			continue
		}
		for _, name := range file.imports {
			for restricted, homes := range onlyIn {
				if (name == restricted || strings.HasPrefix(name, restricted+"/")) && !slices.Contains(homes, from) {
					t.Errorf("%s imports %s, which only %v may", file.path, name, homes)
				}
			}
			ours, ok := strings.CutPrefix(name, module+"/")
			if !ok {
				continue
			}
			to, known := owner(ours)
			switch {
			case !known:
				t.Errorf("%s imports %s, which is not in the table of this test", file.path, name)
			case to == from:
			case slices.Contains(mayImport[from], "*") || slices.Contains(mayImport[from], to):
			case file.isTest() && to == "graphs" && strings.HasPrefix(from, "convert"): // what convert writes is run by its tests
			case file.isTest() && to == "graphs/graphstest" && reaches(from, "graphs"): // a device whose memory faults
			case file.isTest() && (reaches(from, to) || to == "convert" || strings.HasPrefix(to, "convert/") || strings.HasPrefix(to, from+"/")):
			default:
				t.Errorf("%s imports %s: %s may import %v", file.path, name, from, mayImport[from])
			}
		}
	}
}

// reaches says whether a package depends on another at any distance.
func reaches(from, to string) bool {
	for _, next := range mayImport[from] {
		if next == to || reaches(next, to) {
			return true
		}
	}
	return false
}

// The table itself must go down only.
func TestArchitectureHasNoCycle(t *testing.T) {
	for name := range mayImport {
		if reaches(name, name) {
			t.Errorf("%s reaches itself", name)
		}
	}
	for running := range mayImport {
		if running == "cmd/glimpse" || strings.HasPrefix(running, "convert") {
			continue
		}
		if reaches(running, "convert") || reaches("convert", running) && running != "manifest" {
			t.Errorf("%s and convert meet elsewhere than in manifest", running)
		}
	}
}

// families are names that only convert/families may know in its code; elsewhere what differs is data. Prose (comments,
// help texts) may name them: looked at are identifiers, and strings of one word, which is what a comparison would hold.
var families = regexp.MustCompile(`(?i)llava|blip|internvl|qwen|idefics|smolvlm|gemma|vicuna|mistral|video_?llama`)

func TestArchitectureFamilyNames(t *testing.T) {
	for _, file := range goFiles(t) {
		if file.isTest() || file.folder == "convert/families" || strings.HasPrefix(file.folder, "bench/") { // bench names the models it shows
			continue
		}
		positions := token.NewFileSet()
		parsed, err := parser.ParseFile(positions, file.path, file.text, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		ast.Inspect(parsed, func(node ast.Node) bool {
			word := ""
			switch node := node.(type) {
			case *ast.Ident:
				word = node.Name
			case *ast.BasicLit:
				if text, err := strconv.Unquote(node.Value); err == nil && !strings.ContainsAny(text, " \n/") {
					word = text
				}
			}
			// A vocabulary file has its name from the release.
			if families.MatchString(word) && !strings.HasSuffix(word, ".tiktoken") {
				t.Errorf("%s: %q: what differs between families belongs into convert/families or the manifest", positions.Position(node.Pos()), word)
			}
			return true
		})
	}
}

func TestArchitectureFiles(t *testing.T) {
	for _, file := range goFiles(t) {
		if lines := bytes.Count(file.text, []byte("\n")); lines > maxLines {
			t.Errorf("%s has %d lines; split it by what its parts do (limit %d)", file.path, lines, maxLines)
		}
		if name := strings.TrimSuffix(file.name, "_test"); slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, name) {
			t.Errorf("%s: package %s says nothing about what it holds", file.path, name)
		}
	}
}
