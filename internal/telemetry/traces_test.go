package telemetry_test

import (
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/telemetry"
)

func TestMistakesInTracesAreNamed(t *testing.T) {
	for _, c := range []struct {
		change         func(*telemetry.TracesConfig)
		variable, text string
		want           string
	}{
		{change: func(c *telemetry.TracesConfig) { c.Endpoint = "collector:4318" }, want: `traces.endpoint: is "collector:4318", expected an http or https URL`},
		{change: func(c *telemetry.TracesConfig) { c.Sample = 1.5 }, want: "traces.sample: is 1.5, expected 0 to 1"},
		{variable: "OTEL_EXPORTER_OTLP_PROTOCOL", text: "grpc", want: `OTEL_EXPORTER_OTLP_PROTOCOL: is "grpc", expected one of`},
		{variable: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", text: "grpc", want: `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: is "grpc"`},
		{variable: "OTEL_TRACES_EXPORTER", text: "zipkin", want: `OTEL_TRACES_EXPORTER: is "zipkin"`},
		{variable: "OTEL_TRACES_SAMPLER", text: "always_on", want: `OTEL_TRACES_SAMPLER: is "always_on", expected parentbased_always_on`},
		{variable: "OTEL_TRACES_SAMPLER", text: "parentbased_traceidratio"},
		{variable: "OTEL_EXPORTER_OTLP_PROTOCOL", text: "http/protobuf"},
		{change: func(c *telemetry.TracesConfig) { c.Endpoint = "" }, variable: "OTEL_TRACES_SAMPLER", text: "always_on"}, // no traces, so no mistake
	} {
		t.Run(c.variable+"="+c.text, func(t *testing.T) {
			if c.variable != "" {
				t.Setenv(c.variable, c.text)
			}

			cfg := telemetry.DefaultTracesConfig()
			cfg.Endpoint = "http://collector:4318"

			if c.change != nil {
				c.change(&cfg)
			}

			var got string
			if err := cfg.Validate(); err != nil {
				got = err.Error()
			}

			if !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
				t.Errorf("got %q, expected %q", got, c.want)
			}
		})
	}
}
