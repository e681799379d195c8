// Traces (OpenTelemetry): a span for each request that is for a model, and below it where the time went. The engine measures
// its stages itself and says so in its result, from whichever process it runs in; the spans of the stages are made here,
// from those durations, so that workers need neither an exporter nor a clock that agrees with ours. docs/observability.md
// lists spans and attributes.

package server

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"glimpse/engine"
)

// tracerName is the instrumentation scope of the spans.
const tracerName = "glimpse/server"

// Attributes of the GenAI semantic conventions, which the Go module of the conventions does not have.
const (
	keyOperation        = attribute.Key("gen_ai.operation.name")
	keyProvider         = attribute.Key("gen_ai.provider.name")
	keyRequestModel     = attribute.Key("gen_ai.request.model")
	keyResponseModel    = attribute.Key("gen_ai.response.model")
	keyMaxTokens        = attribute.Key("gen_ai.request.max_tokens")
	keyTemperature      = attribute.Key("gen_ai.request.temperature")
	keyTopP             = attribute.Key("gen_ai.request.top_p")
	keyTopK             = attribute.Key("gen_ai.request.top_k")
	keyFrequencyPenalty = attribute.Key("gen_ai.request.frequency_penalty")
	keyPresencePenalty  = attribute.Key("gen_ai.request.presence_penalty")
	keySeed             = attribute.Key("gen_ai.request.seed")
	keyStops            = attribute.Key("gen_ai.request.stop_sequences")
	keyFinishReasons    = attribute.Key("gen_ai.response.finish_reasons")
	keyInputTokens      = attribute.Key("gen_ai.usage.input_tokens")
	keyOutputTokens     = attribute.Key("gen_ai.usage.output_tokens")
)

// Attributes of our own.
const (
	keyRequestID   = attribute.Key("glimpse.request_id")
	keyAPIKey      = attribute.Key("glimpse.api_key") // its name, never the key
	keyPictures    = attribute.Key("glimpse.pictures")
	keyImageTokens = attribute.Key("glimpse.image_tokens")
	keyAudioTokens = attribute.Key("glimpse.audio_tokens")
	keyChoice      = attribute.Key("glimpse.choice")
	keyMediaScheme = attribute.Key("glimpse.media.scheme")
	keyMediaBytes  = attribute.Key("glimpse.media.bytes")
)

// operationChat is the conventions' name for answering; the other operations are named by their endpoints.
const operationChat = "chat"

func newTracer(p trace.TracerProvider) trace.Tracer {
	if p == nil {
		p = noop.NewTracerProvider()
	}
	return p.Tracer(tracerName)
}

// trace begins the request's span, which started with the request. The caller's trace goes on where it sent one (W3C
// traceparent and tracestate).
func (s *Server) trace(x *exchange, rt route, r *http.Request) *http.Request {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	ctx, x.span = s.tracer.Start(ctx, rt.method+" "+rt.path, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.start), trace.WithAttributes(
		semconv.HTTPRequestMethodKey.String(r.Method), semconv.HTTPRoute(rt.path), semconv.URLPath(clipped(r.URL.Path)), semconv.URLScheme(scheme), keyRequestID.String(x.id)))
	return r.WithContext(ctx)
}

// endTrace closes the request's span with what became of it.
func (x *exchange) endTrace(status int, failed *Error) {
	if x.span == nil {
		return
	}
	x.span.SetAttributes(semconv.HTTPResponseStatusCode(status))
	for _, a := range []attribute.KeyValue{keyAPIKey.String(x.key), keyRequestModel.String(x.model)} {
		if a.Value.AsString() != "" {
			x.span.SetAttributes(a)
		}
	}
	if x.pictures > 0 {
		x.span.SetAttributes(keyPictures.Int(x.pictures))
	}
	if failed != nil {
		x.span.SetAttributes(semconv.ErrorTypeKey.String(failed.Code))
		if failed.Status >= 500 { // what a client did wrong is no error of this span, as the conventions have it
			x.span.SetStatus(codes.Error, failed.Code)
		}
	}
	x.span.End()
}

// traceID is the request's trace, for its log line; "" where nobody keeps it.
func (x *exchange) traceID() string {
	if x.span == nil || !x.span.SpanContext().IsSampled() {
		return ""
	}
	return x.span.SpanContext().TraceID().String()
}

// step runs f in a span below ctx's.
func (s *Server) step(ctx context.Context, name string, f func(ctx context.Context, span trace.Span) error) error {
	ctx, span := s.tracer.Start(ctx, name)
	defer span.End()
	err := f(ctx, span)
	failSpan(span, err)
	return err
}

// failSpan notes an error by its code: messages may hold what strangers sent.
func failSpan(span trace.Span, err error) {
	if err == nil || !span.IsRecording() {
		return
	}
	code := asError(err).Code
	span.SetAttributes(semconv.ErrorTypeKey.String(code))
	span.SetStatus(codes.Error, code)
}

// traceModel begins the span of a model at work.
func (s *Server) traceModel(ctx context.Context, operation string, m *served) (context.Context, trace.Span) {
	return s.tracer.Start(ctx, operation+" "+m.name, trace.WithAttributes(
		keyOperation.String(operation), keyProvider.String("glimpse"), keyRequestModel.String(m.name), keyResponseModel.String(m.name)))
}

// requestAttributes are what was asked for; what the request left open is left out.
func requestAttributes(r engine.Request, choice int) []attribute.KeyValue {
	list := []attribute.KeyValue{keyTemperature.Float64(r.Temperature), keyPictures.Int(pictures(r)), keyChoice.Int(choice)}
	add := func(given bool, a attribute.KeyValue) {
		if given {
			list = append(list, a)
		}
	}
	add(r.MaxTokens > 0, keyMaxTokens.Int(r.MaxTokens))
	add(r.TopP > 0, keyTopP.Float64(r.TopP))
	add(r.TopK > 0, keyTopK.Int(r.TopK))
	add(r.FrequencyPenalty != 0, keyFrequencyPenalty.Float64(r.FrequencyPenalty))
	add(r.PresencePenalty != 0, keyPresencePenalty.Float64(r.PresencePenalty))
	add(len(r.Stop) > 0, keyStops.StringSlice(r.Stop))
	if r.Seed != nil {
		add(true, keySeed.Int64(int64(*r.Seed)))
	}
	return list
}

// traceAnswer closes the span of one answer, begun at start, and hangs its stages below it. They are placed from their
// durations, backwards from the moment at which the result was there: what lies in front of them is the way to the model's
// process, which may have had to be loaded. Of a failed answer nobody knows the stages.
func (s *Server) traceAnswer(ctx context.Context, span trace.Span, start time.Time, pictures int, r *engine.Result, err error) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	if err != nil {
		failSpan(span, err)
		return
	}
	u, t := r.Usage, r.Timings
	span.SetAttributes(keyInputTokens.Int(u.PromptTokens), keyOutputTokens.Int(u.CompletionTokens), keyFinishReasons.StringSlice([]string{r.FinishReason}))
	if u.ImageTokens > 0 {
		span.SetAttributes(keyImageTokens.Int(u.ImageTokens))
	}
	if u.AudioTokens > 0 {
		span.SetAttributes(keyAudioTokens.Int(u.AudioTokens))
	}
	submitted := max(t.Submitted, t.Preprocess+t.Vision+t.Connector)
	began := time.Now().Add(-submitted - t.Queue - t.Prefill - t.Decode)
	if began.Before(start) { // clocks are not that exact
		began = start
	}
	stage := func(name string, from time.Time, took time.Duration, attributes ...attribute.KeyValue) time.Time {
		to := from.Add(took)
		if took > 0 {
			_, child := s.tracer.Start(ctx, name, trace.WithTimestamp(from), trace.WithAttributes(attributes...))
			child.End(trace.WithTimestamp(to))
		}
		return to
	}
	if wait := began.Sub(start); wait > time.Millisecond {
		stage("worker", start, wait)
	}
	stage("preprocess", began, t.Preprocess, keyPictures.Int(pictures))
	queued := began.Add(submitted)
	at := stage("vision", queued.Add(-t.Vision-t.Connector), t.Vision, keyImageTokens.Int(u.ImageTokens))
	stage("connector", at, t.Connector)
	at = stage("queue", queued, t.Queue)
	at = stage("prefill", at, t.Prefill, keyInputTokens.Int(u.PromptTokens))
	stage("decode", at, t.Decode, keyOutputTokens.Int(u.CompletionTokens))
}
