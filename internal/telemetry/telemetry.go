// Package telemetry creates the logger and the metrics registry.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Config configures the log.
type Config struct {
	// Level is debug, info, warn or error. Defaults to "info".
	Level string `koanf:"level"`
	// Format is text or json. Defaults to "text".
	Format string `koanf:"format"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Level: "info", Format: "text"} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return fmt.Errorf("log.level: is %q, expected debug, info, warn or error", c.Level)
	}

	if c.Format != "text" && c.Format != "json" {
		return fmt.Errorf("log.format: is %q, expected text or json", c.Format)
	}

	return nil
}

// NewLogger returns a logger that writes to w and removes secrets from errors and
// text. An invalid level is treated as info.
func NewLogger(cfg Config, w io.Writer) *slog.Logger {
	var level slog.Level

	_ = level.UnmarshalText([]byte(cfg.Level))
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: plain}

	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}

	return slog.New(slog.NewTextHandler(w, options))
}

// plain formats errors by their message, because the text handler would add the stack
// traces that some libraries attach, and scrubs all text.
func plain(_ []string, a slog.Attr) slog.Attr {
	switch value := a.Value.Any().(type) {
	case error:
		a.Value = slog.StringValue(scrub.Text(value.Error()))
	case string:
		a.Value = slog.StringValue(scrub.Text(value))
	default:
		if a.Value.Kind() != slog.KindAny {
			break
		}

		// Lists, maps and structs keep their form unless they contain a secret.
		text := fmt.Sprintf("%+v", value)
		if clean := scrub.Text(text); clean != text {
			a.Value = slog.StringValue(clean)
		}
	}

	return a
}

// Native returns the options of a native histogram. Each of its buckets is at most a
// tenth larger than the one before, whatever the values are, and Prometheus stores it as
// one series.
func Native(opts prometheus.HistogramOpts) prometheus.HistogramOpts {
	opts.NativeHistogramBucketFactor = 1.1
	opts.NativeHistogramMaxBucketNumber = 160
	opts.NativeHistogramMinResetDuration = time.Hour

	return opts
}

// NewRegistry returns a registry with the Go and process metrics.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)

	return registry
}
