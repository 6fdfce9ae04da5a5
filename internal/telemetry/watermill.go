package telemetry

import (
	"log/slog"

	"github.com/ThreeDotsLabs/watermill"
)

// Watermill returns a logger for Watermill and its pub/subs. They tell at Info
// what matters to their developers alone; their errors are told at errorLevel.
func Watermill(logger *slog.Logger, errorLevel slog.Level) watermill.LoggerAdapter {
	return untraced{watermill.NewSlogLoggerWithLevelMapping(logger, map[slog.Level]slog.Level{
		slog.LevelInfo:  slog.LevelDebug,
		slog.LevelError: errorLevel,
	})}
}

// untraced drops what is told of every message: no level of ours shows it, and
// preparing it takes several percent of the service's CPU.
type untraced struct{ watermill.LoggerAdapter }

// Trace drops its arguments.
func (untraced) Trace(string, watermill.LogFields) {}

// With keeps dropping.
func (u untraced) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return untraced{u.LoggerAdapter.With(fields)}
}
