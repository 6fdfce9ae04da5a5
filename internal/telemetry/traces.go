package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/span"
)

// TracesConfig configures OpenTelemetry traces. The standard variables OTEL_* set the
// rest: the exporter's headers, certificate and timeout, the service's name and the
// batch size.
type TracesConfig struct {
	// Endpoint is the URL of a collector that accepts OTLP over HTTP, such as
	// "http://collector:4318/v1/traces". If it is empty, OTEL_EXPORTER_OTLP_ENDPOINT
	// applies. Without either, there are no traces. Defaults to "".
	Endpoint string `koanf:"endpoint"`
	// Sample is the share of conversations that get a trace, among those whose first
	// message has none. If that message has one, its producer has decided.
	// OTEL_TRACES_SAMPLER overrides Sample. Defaults to 0.005.
	Sample float64 `koanf:"sample"`
}

// DefaultTracesConfig returns the defaults.
func DefaultTracesConfig() TracesConfig { return TracesConfig{Sample: 0.005} }

// Validate reports all mistakes, naming the keys and variables.
func (c TracesConfig) Validate() error {
	errs := []error{
		validURL("traces.endpoint", c.Endpoint),
		check.Value(c.Sample >= 0 && c.Sample <= 1, "traces.sample", c.Sample, "0 to 1"),
	}

	if c.enabled() { // otherwise the variables are for other programs
		_, err := c.sample()
		errs = append(errs, oneOf("OTEL_TRACES_EXPORTER", "otlp", "none"), oneOf(variable("PROTOCOL"), "http/protobuf", "http/json"), err)
	}

	return errors.Join(errs...)
}

func validURL(key, value string) error {
	u, err := url.Parse(value)
	valid := value == "" || err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""

	return check.Value(valid, key, value, "an http or https URL")
}

// oneOf returns an error if a variable is set, but not to one of values.
func oneOf(name string, values ...string) error {
	value := os.Getenv(name)
	if value == "" || slices.Contains(values, value) {
		return nil
	}

	return fmt.Errorf("%s: is %q, expected one of %q: traces are exported with OTLP over HTTP, usually to port 4318", name, value, values)
}

// variable returns the name of the exporter's variable that applies: the one for traces
// if it is set, otherwise the one for all signals.
func variable(suffix string) string {
	if own := "OTEL_EXPORTER_OTLP_TRACES_" + suffix; os.Getenv(own) != "" {
		return own
	}

	return "OTEL_EXPORTER_OTLP_" + suffix
}

// sample returns the sample that the configuration or the environment asks for.
func (c TracesConfig) sample() (float64, error) {
	const sampler, argument = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"

	switch name := os.Getenv(sampler); name {
	case "":
		return c.Sample, nil
	case "parentbased_always_on":
		return 1, nil
	case "parentbased_always_off":
		return 0, nil
	case "parentbased_traceidratio":
		sample, err := strconv.ParseFloat(cmp.Or(os.Getenv(argument), "1"), 64)
		if err != nil || sample < 0 || sample > 1 {
			return 0, fmt.Errorf("%s: is %q, expected 0 to 1", argument, os.Getenv(argument))
		}

		return sample, nil
	default:
		return 0, fmt.Errorf("%s: is %q, expected parentbased_always_on, parentbased_always_off or parentbased_traceidratio", sampler, name)
	}
}

// enabled reports whether traces are exported.
func (c TracesConfig) enabled() bool {
	return os.Getenv("OTEL_SDK_DISABLED") != "true" && os.Getenv("OTEL_TRACES_EXPORTER") != "none" &&
		(c.Endpoint != "" || os.Getenv(variable("ENDPOINT")) != "")
}

// flushTimeout bounds how long the service waits for the export of the last spans.
const flushTimeout = 5 * time.Second

// NewTracer returns a service's tracer, which creates no spans if no endpoint is
// configured. It does not wait for the collector. Call the returned function to export
// the last spans.
func NewTracer(cfg TracesConfig, logger *slog.Logger) (*span.Tracer, func(), error) {
	if !cfg.enabled() {
		return &span.Tracer{}, func() {}, nil
	}

	sample, err := cfg.sample()
	if err != nil {
		return nil, nil, err
	}

	var options []otlptracehttp.Option
	if cfg.Endpoint != "" {
		options = append(options, otlptracehttp.WithEndpointURL(cfg.Endpoint))
	}

	ctx := context.Background()

	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("preparing the export of traces: %w", err)
	}

	// The environment comes last, so that OTEL_SERVICE_NAME and
	// OTEL_RESOURCE_ATTRIBUTES override what is set here.
	about, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName("millrace")),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(), resource.WithFromEnv())
	if err != nil {
		return nil, nil, fmt.Errorf("describing the service for traces: %w", err)
	}

	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&reporting{SpanExporter: exporter, logger: logger.With(slog.String("component", "traces"))}),
		sdktrace.WithResource(about),
		sdktrace.WithIDGenerator(span.IDs{}),
		sdktrace.WithSampler(sdktrace.AlwaysSample()), // the tracer has decided before it starts a span
	)

	flush := func() {
		ctx, cancel := context.WithTimeout(ctx, flushTimeout)
		defer cancel()

		_ = provider.Shutdown(ctx) // what could not be exported has been logged
	}

	return span.New(provider, sample), flush, nil
}

// reporting logs when exporting begins to fail, and when it succeeds again. Spans that
// could not be exported are lost: the work does not wait for them.
type reporting struct {
	sdktrace.SpanExporter

	logger  *slog.Logger
	failing atomic.Bool
}

// ExportSpans implements sdktrace.SpanExporter.
func (r *reporting) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := r.SpanExporter.ExportSpans(ctx, spans)

	switch before := r.failing.Swap(err != nil); {
	case err != nil && !before:
		r.logger.Warn("traces cannot be exported and are dropped", slog.Any("error", err))
	case err == nil && before:
		r.logger.Info("traces are exported again")
	}

	return nil
}
