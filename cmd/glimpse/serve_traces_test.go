package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// receiver stands in for a collector of traces, over both transports of OTLP.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu      sync.Mutex
	spans   map[string]*trace.Span // by name
	service string
	token   string // of the header x-token
}

func (r *receiver) take(request *collector.ExportTraceServiceRequest, token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.token = token
	for _, resource := range request.ResourceSpans {
		for _, a := range resource.Resource.Attributes {
			if a.Key == "service.name" {
				r.service = a.Value.GetStringValue()
			}
		}
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				r.spans[s.Name] = s
			}
		}
	}
}

// Export is OTLP over gRPC.
func (r *receiver) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	r.take(request, strings.Join(headers.Get("x-token"), ","))
	return &collector.ExportTraceServiceResponse{}, nil
}

// ServeHTTP is OTLP over HTTP.
func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body := io.Reader(q.Body)
	if q.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	raw, err := io.ReadAll(body)
	var request collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(raw, &request)
	}
	if err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "no traces", http.StatusBadRequest)
		return
	}
	r.take(&request, q.Header.Get("X-Token"))
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// listen starts the receiver and returns its endpoint.
func (r *receiver) listen(t *testing.T, protocol string) string {
	t.Helper()
	if protocol != "grpc" {
		server := httptest.NewServer(r)
		t.Cleanup(server.Close)
		return server.URL
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	go server.Serve(ln) // ends with Stop
	t.Cleanup(server.Stop)
	return "http://" + ln.Addr().String()
}

// The spans of a request that a worker process answers arrive where the standard variables say, below the caller's.
func TestServeSendsTraces(t *testing.T) {
	const callersTrace, callersSpan = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	picture, err := os.ReadFile("../../testdata/pictures/scene-01.png")
	if err != nil {
		t.Fatal(err)
	}
	m := model(t)
	body, err := json.Marshal(map[string]any{"model": "tiny", "max_tokens": 4, "messages": []any{map[string]any{"role": "user", "content": []any{
		map[string]any{"type": "image_url", "image_url": map[string]any{"url": "data:image/png;base64," + base64.StdEncoding.EncodeToString(picture)}},
		map[string]any{"type": "text", "text": "what is this?"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"", "http/protobuf", "grpc"} {
		t.Run(firstOf(protocol, "default"), func(t *testing.T) {
			r := &receiver{spans: map[string]*trace.Span{}}
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", r.listen(t, protocol))
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
			t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")
			t.Setenv("OTEL_SERVICE_NAME", "pictures")
			s := startServing(t, m)
			q, err := http.NewRequest(http.MethodPost, s.base+"/v1/chat/completions", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			q.Header.Set("Content-Type", "application/json")
			q.Header.Set("Traceparent", "00-"+callersTrace+"-"+callersSpan+"-01")
			resp, err := s.client.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.StatusCode, string(raw))
			}
			s.stop(t) // sends what is left
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.service != "pictures" || r.token != "secret" {
				t.Errorf("service %q, header %q", r.service, r.token)
			}
			parents := map[string]string{"POST /v1/chat/completions": "", "media": "POST /v1/chat/completions", "chat tiny": "POST /v1/chat/completions"}
			for _, stage := range []string{"preprocess", "vision", "connector", "queue", "prefill", "decode"} {
				parents[stage] = "chat tiny"
			}
			root := r.spans["POST /v1/chat/completions"]
			for name, parent := range parents {
				span := r.spans[name]
				if span == nil {
					t.Errorf("no span %s", name)
					continue
				}
				want := callersSpan
				if parent != "" {
					want = hex.EncodeToString(r.spans[parent].GetSpanId())
				}
				if hex.EncodeToString(span.TraceId) != callersTrace || hex.EncodeToString(span.ParentSpanId) != want {
					t.Errorf("%s is in trace %s below %s, want %s", name, hex.EncodeToString(span.TraceId), hex.EncodeToString(span.ParentSpanId), want)
				}
				if span.StartTimeUnixNano < root.GetStartTimeUnixNano() || span.EndTimeUnixNano > root.GetEndTimeUnixNano() || span.EndTimeUnixNano < span.StartTimeUnixNano {
					t.Errorf("%s is not within the request", name)
				}
			}
			if !strings.Contains(s.text(), "trace="+callersTrace) {
				t.Error("the request's line in the log has no trace")
			}
		})
	}
}

// Variables that ask for what is not there are refused before anything is loaded.
func TestTraceVariablesAreChecked(t *testing.T) {
	m := model(t)
	for _, tc := range []struct{ name, value string }{
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"}, {"OTEL_TRACES_EXPORTER", "zipkin"}, {"OTEL_TRACES_SAMPLER", "jaeger_remote"}, {"OTEL_SDK_DISABLED", "maybe"},
		{"OTEL_PROPAGATORS", "b3"}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "127.0.0.1:4318"},
	} {
		cmd := command(t, "serve", m, "--listen", "127.0.0.1:0")
		cmd.Env = slices.Concat(os.Environ(), []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", tc.name + "=" + tc.value})
		refused(t, runIt(t, cmd), tc.name, tc.value)
	}
}

// stop ends the server as an operator does.
func (s *serving) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.told = true
	<-s.ended
}
