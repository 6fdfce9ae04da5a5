// Package telemetry makes the logger and the metrics registry.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Config says what is logged, and how.
type Config struct {
	// Level is debug, info, warn or error.
	Level string `koanf:"level"`
	// Format is text or json.
	Format string `koanf:"format"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Level: "info", Format: "text"} }

// Validate reports every mistake, naming the key.
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

// NewLogger returns a logger that writes to w. A level that Validate refuses
// counts as info.
func NewLogger(cfg Config, w io.Writer) *slog.Logger {
	var level slog.Level

	_ = level.UnmarshalText([]byte(cfg.Level))
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: plain}

	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}

	return slog.New(slog.NewTextHandler(w, options))
}

// plain renders errors by their text. The text handler would print those of
// some libraries with the stack of where they were made.
func plain(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.StringValue(err.Error())
	}

	return a
}

// NewRegistry returns a registry with the metrics of the process and of Go.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)

	return registry
}
