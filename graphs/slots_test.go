package graphs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSlots compiles the places in native.h against the header of the binding:
// a wrong place would call another function of ONNX Runtime.
func TestSlots(t *testing.T) {
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler: ", err)
	}
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", bindingModule).Output()
	if err != nil {
		t.Skip("the binding's source is not at hand: ", err)
	}
	header, err := os.ReadFile("native.h")
	if err != nil {
		t.Fatal(err)
	}
	places := regexp.MustCompile(`GL_(\w+) = \d+`).FindAllStringSubmatch(string(header), -1)
	if len(places) < 20 {
		t.Fatalf("only %d places found in native.h", len(places))
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	code.WriteString("#include <stddef.h>\n#include \"onnxruntime_c_api.h\"\n#include \"" + filepath.Join(here, "native.h") + "\"\n")
	fmt.Fprintf(&code, "_Static_assert(ORT_API_VERSION == %d, \"requiredAPI\");\n", requiredAPI)
	for _, place := range places {
		code.WriteString("_Static_assert(offsetof(OrtApi, " + place[1] + ") == GL_" + place[1] + " * sizeof(void *), \"" + place[1] + "\");\n")
	}
	source := filepath.Join(t.TempDir(), "slots.c")
	if err := os.WriteFile(source, []byte(code.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	compile := exec.Command(compiler, "-std=c11", "-fsyntax-only", "-I"+strings.TrimSpace(string(folder)), source)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Errorf("native.h does not fit the binding's header: %v\n%s", err, out)
	}
}
