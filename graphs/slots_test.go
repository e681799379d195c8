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
	compileAgainstHeader(t, "native.h", places(t, "native.h", "GL")+
		fmt.Sprintf("_Static_assert(ORT_API_VERSION == %d, \"requiredAPI\");\n", requiredAPI))
}

// TestCustomOperators does the same for what kernels offer to ONNX Runtime, whose structure must have every field in its place.
func TestCustomOperators(t *testing.T) {
	fields := [][2]string{{"version", "version"}, {"CreateKernel", "create_kernel"}, {"GetName", "get_name"}, {"GetExecutionProviderType", "get_provider"},
		{"GetInputType", "get_input_type"}, {"GetInputTypeCount", "get_input_count"}, {"GetOutputType", "get_output_type"}, {"GetOutputTypeCount", "get_output_count"},
		{"KernelCompute", "compute"}, {"KernelDestroy", "destroy"}, {"GetInputCharacteristic", "get_input_characteristic"},
		{"GetOutputCharacteristic", "get_output_characteristic"}, {"GetInputMemoryType", "get_input_memory_type"},
		{"GetVariadicInputMinArity", "get_variadic_input_min"}, {"GetVariadicInputHomogeneity", "get_variadic_input_homogeneous"},
		{"GetVariadicOutputMinArity", "get_variadic_output_min"}, {"GetVariadicOutputHomogeneity", "get_variadic_output_homogeneous"},
		{"CreateKernelV2", "create_kernel_v2"}, {"KernelComputeV2", "compute_v2"}, {"InferOutputShapeFn", "infer_shape"}, {"GetStartVersion", "get_start_version"},
		{"GetEndVersion", "get_end_version"}, {"GetMayInplace", "get_may_inplace"}, {"ReleaseMayInplace", "release_may_inplace"},
		{"GetAliasMap", "get_alias_map"}, {"ReleaseAliasMap", "release_alias_map"}}
	var code strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&code, "_Static_assert(offsetof(struct OrtCustomOp, %s) == offsetof(gk_op, %s), \"%s\");\n", f[0], f[1], f[0])
	}
	for ours, theirs := range map[string]string{"GK_FLOAT": "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT", "GK_UINT8": "ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8",
		"GK_INT8": "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8", "GK_INT32": "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32", "GK_INT64": "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64",
		"GK_REQUIRED": "INPUT_OUTPUT_REQUIRED", "GK_OPTIONAL": "INPUT_OUTPUT_OPTIONAL"} {
		fmt.Fprintf(&code, "_Static_assert(%s == (int)%s, \"%s\");\n", ours, theirs, ours)
	}
	header := filepath.Join("kernels", "ort.h")
	compileAgainstHeader(t, header, places(t, header, "GK")+code.String())
}

// places asserts that each function that a header gives a place (PREFIX_Name = number) is there.
func places(t *testing.T, header, prefix string) string {
	t.Helper()
	text, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`\b`+prefix+`_([A-Z]\w+[a-z]\w*) = \d+`).FindAllStringSubmatch(string(text), -1)
	if len(found) < 15 {
		t.Fatalf("only %d places found in %s", len(found), header)
	}
	var code strings.Builder
	for _, place := range found {
		fmt.Fprintf(&code, "_Static_assert(offsetof(OrtApi, %s) == %s_%s * sizeof(void *), \"%s\");\n", place[1], prefix, place[1], place[1])
	}
	return code.String()
}

func compileAgainstHeader(t *testing.T, header, code string) {
	t.Helper()
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler: ", err)
	}
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", bindingModule).Output()
	if err != nil {
		t.Skip("the binding's source is not at hand: ", err)
	}
	header, err = filepath.Abs(header)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "slots.c")
	text := "#include <stddef.h>\n#include \"onnxruntime_c_api.h\"\n#include \"" + header + "\"\n" + code
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	compile := exec.Command(compiler, "-std=c11", "-fsyntax-only", "-I"+strings.TrimSpace(string(folder)), source)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Errorf("%s does not fit the binding's header: %v\n%s", header, err, out)
	}
}
