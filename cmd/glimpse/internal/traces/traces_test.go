package traces

import (
	"os"
	"strings"
	"testing"
)

// Traces are on when the environment says where to, and in no other case.
func TestOnAndOff(t *testing.T) {
	for _, name := range os.Environ() {
		if key, _, _ := strings.Cut(name, "="); strings.HasPrefix(key, "OTEL_") {
			t.Setenv(key, "")
		}
	}
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, tc := range []struct {
		set string
		on  bool
	}{
		{"", false},
		{"OTEL_SERVICE_NAME=x OTEL_TRACES_SAMPLER=always_on OTEL_EXPORTER_OTLP_PROTOCOL=grpc", false},
		{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:1", false},
		{endpoint, true},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://collector.example/v1/traces", true},
		{"OTEL_TRACES_EXPORTER=otlp", true},
		{endpoint + " OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG=0.1", true},
		{endpoint + " OTEL_SDK_DISABLED=false", true},
		{endpoint + " OTEL_SDK_DISABLED=TRUE", false},
		{endpoint + " OTEL_TRACES_EXPORTER=none", false},
		// What is for others does not matter where nothing is sent.
		{"OTEL_PROPAGATORS=b3 OTEL_TRACES_SAMPLER=jaeger_remote", false},
	} {
		t.Run(tc.set, func(t *testing.T) {
			for _, pair := range strings.Fields(tc.set) {
				key, value, _ := strings.Cut(pair, "=")
				t.Setenv(key, value)
			}
			p, err := Open(t.Context(), "v")
			if err != nil || (p != nil) != tc.on {
				t.Fatalf("%v, %v", p, err)
			}
			if p == nil {
				return
			}
			for range 2 { // nothing was recorded, so nothing is sent
				if err := p.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestProblemsAreReportedTogether(t *testing.T) {
	for key, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_TRACES_SAMPLER": "traceidratio",
		"OTEL_TRACES_SAMPLER_ARG": "2", "OTEL_PROPAGATORS": "tracecontext,b3",
	} {
		t.Setenv(key, value)
	}
	_, err := Open(t.Context(), "v")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, says := range []string{"127.0.0.1:4317", "http/json", "OTEL_TRACES_SAMPLER_ARG", `"2"`, `"b3"`} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%q is not in %v", says, err)
		}
	}
}
