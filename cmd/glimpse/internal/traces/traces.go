// Package traces sets up where the server's spans go. Nothing of it is in glimpse.toml: the variables of the OpenTelemetry
// specification say everything, as they do for the other services of a deployment, and without them nothing is traced.
package traces

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Protocols of OTLP that are spoken.
const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
)

// samplers are those of the specification that the SDK has.
var samplers = []string{"always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"}

// Provider is where spans go. Shutdown sends what is left; it is idempotent.
type Provider struct {
	trace.TracerProvider
	shutdown func(context.Context) error
}

// Shutdown sends the spans that were not sent yet and closes the exporter.
func (p *Provider) Shutdown(ctx context.Context) error { return p.shutdown(ctx) }

// Open reads the environment. The provider is nil where it asks for no traces: OTEL_EXPORTER_OTLP_ENDPOINT and its form
// for traces are empty and OTEL_TRACES_EXPORTER is not otlp, or OTEL_SDK_DISABLED is true. All that is wrong with the
// variables is in the error; those that only tune (headers, timeouts, certificates, batches) are the SDK's to read.
func Open(ctx context.Context, version string) (*Provider, error) {
	on, protocol, err := read()
	if err != nil || !on {
		return nil, err
	}
	exporter, err := newExporter(ctx, protocol)
	if err != nil {
		return nil, fmt.Errorf("open the OTLP exporter of traces: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("glimpse"), semconv.ServiceVersion(version)),
		resource.WithHost(), resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // last: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
	if err != nil {
		return nil, errors.Join(fmt.Errorf("describe this service to the receiver of traces: %w", err), exporter.Shutdown(ctx))
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)) // sampler and limits: from the environment
	return &Provider{TracerProvider: p, shutdown: p.Shutdown}, nil
}

func newExporter(ctx context.Context, protocol string) (*otlptrace.Exporter, error) {
	if protocol == protocolGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

// read says whether traces are wanted and how they are sent. The SDK warns about values that it does not know and goes on
// with defaults; here they are errors.
func read() (on bool, protocol string, err error) {
	var problems []error
	problem := func(name, value, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s is %q: "+format, append([]any{name, value}, args...)...))
	}
	if value := variable("OTEL_SDK_DISABLED"); strings.EqualFold(value, "true") {
		return false, "", nil
	} else if value != "" && !strings.EqualFold(value, "false") {
		problem("OTEL_SDK_DISABLED", value, "it must be true or false")
	}
	endpointName, endpoint := first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	on = endpoint != ""
	switch exporter := variable("OTEL_TRACES_EXPORTER"); exporter {
	case "":
	case "otlp":
		on = true
	case "none":
		return false, "", nil
	default:
		problem("OTEL_TRACES_EXPORTER", exporter, "it must be otlp or none")
	}
	if !on { // the rest is for those who send
		return false, "", errors.Join(problems...)
	}
	protocolName, protocol := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
	switch protocol {
	case "":
		protocol = protocolHTTP
	case protocolGRPC, protocolHTTP:
	default:
		problem(protocolName, protocol, "it must be %s or %s", protocolGRPC, protocolHTTP)
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		problem(endpointName, endpoint, "it must be a URL such as http://127.0.0.1:4318")
	}
	if sampler := strings.ToLower(variable("OTEL_TRACES_SAMPLER")); sampler != "" && !slices.Contains(samplers, sampler) {
		problem("OTEL_TRACES_SAMPLER", sampler, "it must be one of %s", strings.Join(samplers, ", "))
	} else if share := variable("OTEL_TRACES_SAMPLER_ARG"); share != "" && strings.Contains(sampler, "ratio") {
		if n, err := strconv.ParseFloat(share, 64); err != nil || !(n >= 0 && n <= 1) {
			problem("OTEL_TRACES_SAMPLER_ARG", share, "it must be a number from 0 to 1")
		}
	}
	for _, p := range strings.Split(variable("OTEL_PROPAGATORS"), ",") {
		if p = strings.TrimSpace(p); p != "" && p != "tracecontext" && p != "baggage" {
			problem("OTEL_PROPAGATORS", p, "callers' traces are read from W3C headers only (tracecontext)")
		}
	}
	return on, protocol, errors.Join(problems...)
}

// variable is an environment variable; an empty one counts as not set.
func variable(name string) string { return strings.TrimSpace(os.Getenv(name)) }

// first is the first of two variables that is set.
func first(names ...string) (name, value string) {
	for _, name := range names {
		if value := variable(name); value != "" {
			return name, value
		}
	}
	return "", ""
}
